"""Live migration (pre-copy) of guests to and from the host, and what all migrations share."""

from __future__ import annotations

from simvm.scenario import fields as f
from simvm.scenario.base import Model
from simvm.units import MIB, MS


class MigrateIn(Model):
    """Members arrive by live migration (pre-copy) from another host: they do not boot."""

    resident: f.PageMultiple
    """Memory that they bring: the kernel's (`boot`, struct pages), then programs' regions, of one
    that follows a series as much as it says then."""


class MigrateOut(Model):
    """Members leave by live migration (pre-copy) to another host, while they run."""

    downtime: f.Duration = 300 * MS
    """They are stopped when what is dirty can be sent in so long (QEMU migration/options.c)."""
    timeout: f.Duration | None = None
    """They are stopped after so long whatever is dirty; by default never."""


class Migration(Model):
    """What all live migrations of the host, in and out, share."""

    bandwidth: f.Size = 128 * MIB
    """Bytes a second; the default is QEMU's for one migration (migration/options.c)."""
    parallel: f.Parallelism = 1
    """At once; others wait. The default is OpenStack Nova's (nova/conf/compute.py)."""
