"""Same-page merging: settings of ksmd."""

from __future__ import annotations

from simvm import units
from simvm.scenario import fields as f
from simvm.scenario.base import Model


class Ksm(Model):
    """One thread that looks for pages of the same content and merges them (mm/ksm.c)."""

    pages_to_scan: f.PagesToScan = 100
    """4 KiB pages that it looks at before it sleeps."""
    sleep: f.Duration = 20 * units.MS
    max_page_sharing: f.Sharers = 256
    """Most mappings of one merged page; a content that more pages have takes several."""
