"""Mistakes in the settings of reclaim and of guests' limits."""

from pathlib import Path

import pytest
from test_scenario_check import mistakes, only_one_says


@pytest.mark.parametrize(
    ("part", "text", "key", "rule", "fix"),
    [
        ("host", 'reclaim = { policy = "damon", min_regions = 2000 }', "host.reclaim.min_regions",
         "more than max_regions", "1000"),
        ("host", 'reclaim = { policy = "damon", sample_interval = "1s" }',
         "host.reclaim.sample_interval", "more than aggregation_interval", "100ms"),
        ("host", 'reclaim = { min_ttl = "1s" }', "host.reclaim.min_ttl", "no such key", "did you"),
        ("host", 'reclaim = { policy = "lur" }', "host.reclaim.policy", "none, lru", "'lru'"),
        ("host", "reclaim = { proactive = {} }", "host.reclaim.proactive", "rate or free", "rate"),
        ("host", 'reclaim = { policy = "none", proactive = { rate = "1MiB" } }',
         "host.reclaim.proactive", "no policy", "lru"),
        ("host", 'reclaim = { proactive = { free = "16GiB" } }', "host.reclaim.proactive.free",
         "less than the host's memory", "less"),
        ("guest", 'memcg = { max = "1GiB", low = "2GiB" }', "guest.g.memcg.low",
         "not be more than max", "1GiB"),
        ("host", "reclaim = 3", "host.reclaim", "a table", "reclaim = {"),
        ("host", 'reclaim = { policy = "none", min_fre = "1MiB" }', "host.reclaim.min_fre",
         "no such key", "'min_free'"),
        ("host", 'reclaim = { min_free = "8GiB" }', "host.reclaim.min_free", "half", "less"),
        ("host", 'reclaim = { policy = "none" }\n[guest.h]\nmemory = "1GiB"\n'
         'memcg = { max = "1GiB" }', "guest.h.memcg", "nothing can be reclaimed", "lru"),
        ("host", 'backing = "hugetlb"\npage_size = "2MiB"\n'
         'hugetlb = { page_size = "2MiB", size = "8GiB" }\n[guest.h]\nmemory = "1GiB"\n'
         'memcg = { min = "1GiB" }', "guest.h.memcg", "not counted", "remove"),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, part: str, text: str, key: str, rule: str, fix: str) -> None:
    only_one_says(mistakes(tmp_path, **{part: text}), key, rule, fix)  # type: ignore[arg-type]
