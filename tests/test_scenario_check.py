"""What a scenario must not say: every mistake at once, each with key, value, rule and fix."""

import re
import time
from pathlib import Path

import pytest

from simvm import scenario
from simvm.errors import Mistake
from simvm.scenario.check import MOST_TAGS

HEAD = """
schema = 1
[scenario]
name = "a"
{scenario}
[host]
cpu = "zen4"
cores = 4
memory = "16GiB"
{host}
[guest.g]
memory = "4GiB"
vcpus = 2
{guest}
"""
PHASE = """
[[guest.g.workload]]
region = "heap"
allocate = "1GiB"
pattern = { kind = "uniform" }
accesses = 1000
"""


def mistakes(
    folder: Path,
    *,
    meta: str = "",
    host: str = "",
    guest: str = "",
    phases: str = PHASE,
    rest: str = "",
    sets: tuple[str, ...] = (),
) -> list[Mistake]:
    file = folder / "a.toml"
    file.write_text(HEAD.format(scenario=meta, host=host, guest=guest) + phases + rest)
    return scenario.check(file, sets)


def only(found: list[Mistake]) -> Mistake:
    assert len(found) == 1, "\n".join(map(str, found))
    assert found[0].fix
    return found[0]


def only_one_says(found: list[Mistake], key: str, rule: str, fix: str) -> None:
    """One mistake alone, of this key, whose rule and fix hold these words."""
    mistake = only(found)
    assert mistake.key == key
    assert rule in mistake.rule
    assert fix in mistake.fix
    assert mistake.file.endswith(".toml")


def phase(text: str, base: str = PHASE) -> str:
    """`base` with keys replaced or added by `text`, one a line."""
    lines = base.strip().splitlines()
    for line in text.strip().splitlines():
        key = line.split("=")[0].strip("- ")
        lines = [old for old in lines if old.split("=")[0].strip() != key]
        if not line.startswith("-"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def test_a_good_one_has_none(tmp_path: Path) -> None:
    assert mistakes(tmp_path) == []


@pytest.mark.parametrize(
    ("part", "text", "key", "rule", "fix"),
    [
        ("meta", 'fidelity = "fast"', "scenario.fidelity", "one of", "exact"),
        ("meta", 'quantum_max = "1us"', "scenario.quantum_max", "shorter than quantum", "20us"),
        ("meta", 'fidelity = "sampled"\n[guest.s]\nmemory = "1GiB"\nvirtualization = "shadow"',
         "scenario.fidelity", "shadow", "exact"),
        ("meta", 'quantum = "0s"', "scenario.quantum", "more than 0", "1ns"),
        ("meta", 'sample_interval = "0s"', "scenario.sample_interval", "more than 0", "1ns"),
        ("meta", 'duration = "0s"', "scenario.duration", "more than 0", "1ns"),
        ("meta", 'duration = "wrok"', "scenario.duration", "must be work", "'work'"),
        ("meta", 'duration = "1s"\nwarmup = "1s"', "scenario.warmup", "shorter", "1s"),
        ("meta", 'quantum = "20ms"', "scenario.quantum", "sample_interval", "10ms"),
        ("meta", 'quantum = "20"', "scenario.quantum", "no unit", "20ns"),
        ("meta", "quantum = 20", "scenario.quantum", "has no unit", "20us"),
        ("meta", 'warmup = "-1s"', "scenario.warmup", "negative", "such as"),
        ("meta", "train = 0", "scenario.train", "more than 0", "1 or more"),
        ("meta", "seed = -1", "scenario.seed", "negative", "0 or more"),
        ("meta", 'seed = "1"', "scenario.seed", "an integer", "without quotes"),
        ("meta", "sed = 1", "scenario.sed", "no such key", "did you mean 'seed'"),
        ("host", 'page_size = "3MiB"', "host.page_size", "4KiB, 2MiB, 1GiB", "2MiB"),
        ("host", 'page_size = "1GiB"', "host.page_size", "only hugetlb", "hugetlb"),
        ("host", 'backing = "hugetlb"', "host.page_size", "2MiB or 1GiB", "2MiB"),
        ("host", 'backing = "hugetlb"\npage_size = "2MiB"', "host.hugetlb", "needs a pool",
         'page_size = "2MiB"'),
        ("host", 'backing = "hugetlb"\npage_size = "1GiB"\n'
         'hugetlb = { page_size = "2MiB", size = "8GiB" }', "host.hugetlb.page_size",
         "must be of host.page_size", "1GiB"),
        ("host", 'hugetlb = { page_size = "1GiB", size = "8194MiB" }', "host.hugetlb.size",
         "whole pages", "9GiB"),
        ("host", 'hugetlb = { page_size = "1GiB", size = "16GiB" }', "host.hugetlb.size",
         "leave nothing", "smaller pool"),
        ("host", 'backing = "hugetlb"\npage_size = "1GiB"\n'
         'hugetlb = { page_size = "1GiB", size = "2GiB" }', "guest.g.memory", "than the pool",
         "2GiB"),
        ("host", 'defrag = "direct"\npage_size = "4KiB"', "host.defrag", "look for a block",
         "page_size"),
        ("host", 'page_size = "4KiB"\nkhugepaged = {}', "host.khugepaged", "no huge pages",
         "page_size"),
        ("host", 'defrag = "always"', "host.defrag", "never, direct, background", "one of"),
        ("host", "fragmentation = { share = 1.5 }", "host.fragmentation.share", "0 to 1", "0"),
        ("host", "fragmentation = { share = 0.5, pages = 500 }", "host.fragmentation.pages",
         "448 or less", "448"),
        ("host", "khugepaged = { max_ptes_none = 512 }", "host.khugepaged.max_ptes_none",
         "511 or less", "511"),
        ("host", 'backing = "hugetlb"\npage_size = "2MiB"\nkhugepaged = {}\n'
         'hugetlb = { page_size = "2MiB", size = "4GiB" }', "host.khugepaged", "keeps them whole",
         "anon"),
        ("host", "fault_workers = 2", "host.fault_workers", "only the path userfaultfd", "remove"),
        ("host", "table_levels = 2", "host.table_levels", "3 or more", "3"),
        ("host", "contiguous = true", "host.contiguous", "contiguous hint", "neoverse_n1"),
        ("host", 'invalidation = "asid"', "host.invalidation", "guest, range", "one of"),
        ("host", "tagged_tlb = 1", "host.tagged_tlb", "true or false", "quotes"),
        ("guest", "table_levels = 2", "guest.g.table_levels", "3 or more", "3"),
        ("host", 'swap = { device = "zrm" }', "host.swap.device", "none, nvme, zram", "'zram'"),
        ("host", 'swap = { size = "1GiB" }', "host.swap.device", "is required", "nvme"),
        ("host", 'swap = { device = "nvme" }', "host.swap.size", "needs a size", "32GiB"),
        ("host", 'swap = { device = "zram", size = "1GiB", latency = "1ms" }', "host.swap.latency",
         "no such key", "memory_limit"),
        ("host", 'swap = { device = "nvme", size = "1GiB", latency = "0s" }', "host.swap.latency",
         "more than 0", "1ns"),
        ("host", 'swap = { device = "nvme", size = "1GiB", latency_p99 = "1s" }',
         "host.swap.latency_p99", "1 to 14 times the mean, 63246ns", "885444ns"),
        ("host", 'swap = { device = "zswap", size = "1GiB", max_pool_percent = 101 }',
         "host.swap.max_pool_percent", "100 or less", "100"),
        ("host", 'swap = { device = "cxl", size = "1GiB", miss_share = 0.5 }',
         "host.swap.miss_share", "belongs to accesses in place", "in_place"),
        ("host", 'swap = { device = "cxl", size = "4KiB", access = "in_place" }',
         "host.swap.size", "blocks of 2MiB", "2MiB"),
        ("guest", "content = { zero = 0.6, duplicate = 0.6 }", "guest.g.content.duplicate",
         "together 1 or less", "less"),
        ("guest", "content = { ratio = 4.0, incompressible = 0.5 }",
         "guest.g.content.incompressible", "a ratio of 4 is out of reach", "0.25"),
        ("guest", "mergeable = true", "guest.g.mergeable", "without host.ksm", "ksm = {}"),
        ("host", "ksm = { sleep = \"0s\" }", "host.ksm.sleep", "more than 0", "1ns"),
        ("host", "ksm = { max_page_sharing = 1 }", "host.ksm.max_page_sharing", "2 or more", "2"),
        ("guest", "content = { ratio = 0.5 }", "guest.g.content.ratio", "1 to 64", "between"),
        ("host", 'kernel_reserved = "16GiB"', "host.memory", "leave nothing", "more memory"),
        ("host", 'kernel_reserved = "5000B"', "host.kernel_reserved", "multiple of 4KiB", "8KiB"),
        ("host", "costs = { zap_2mm = 1 }", "host.costs.zap_2mm", "no such cost", "'zap_2m'"),
        ("host", "costs = 3", "host.costs", "a table", "slat_fault_2m"),
        ("host", "[[host.node]]\ncores = 1", "host.node", "not modelled", "remove"),
        ("guest", "count = 0", "guest.g.count", "more than 0", "1 or more"),
        ("guest", "count = 5462", "guest.g.count",
         "at most 16,383 address spaces, two for each guest and one for each of its processes, "
         "not 16,386", "less"),
        ("guest", 'stop = "1s"\nstart = "2s"', "guest.g.stop", "later than start", "2s"),
        ("guest", 'stagger = "1s"', "guest.g.stagger", "one guest alone", "remove"),
        ("guest", 'virtualization = "paravirtual"', "guest.g.virtualization",
         "nested, shadow", "one of"),
        ("guest", 'boot = "-1GiB"', "guest.g.boot", "negative", "such as"),
        ("guest", 'boot = "4GiB"', "guest.g.workload.heap.allocate", "live together", "allocate"),
        ("guest", 'zeroing = "host"', "guest.g.zeroing", "guest, none", "one of"),
    ],
)  # fmt: skip
def test_values(tmp_path: Path, part: str, text: str, key: str, rule: str, fix: str) -> None:
    only_one_says(mistakes(tmp_path, **{part: text}), key, rule, fix)  # type: ignore[arg-type]


def test_as_many_guests_as_the_core_has_tags_for(tmp_path: Path) -> None:
    header = Path(scenario.__file__).parents[1] / "core" / "mmu.pxd"
    (tags,) = re.findall(r"\bMAX_TAGS = (\d+)", header.read_text(encoding="utf-8"))
    assert int(tags) == MOST_TAGS
    assert mistakes(tmp_path, guest=f"count = {MOST_TAGS // 3}") == []


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ("threads = 3", "threads", "2 vCPUs"),
        ('allocate = "8GiB"', "allocate", "live together"),
        ('allocate = "1000B"', "allocate", "4KiB or more"),
        ('allocate = "1GB"', "allocate", "'GB'"),
        ("- allocate", "region", "no earlier phase"),
        ("- accesses", "accesses", "is required"),
        ("- pattern", "accesses", "accesses need a pattern"),
        ("accesses = 0", "accesses", "more than 0"),
        ('accesses = "5MiB"', "accesses", "'MiB'"),
        ("rate = 10", "accesses", "a closed loop"),
        ("- accesses\nrate = 10\naccesses_per_request = 5", "duration", "an open loop needs"),
        ('- accesses\nrate = 10\naccesses_per_request = 5\nduration = "1s"\nthink_time = "1ns"',
         "think_time", "closed loop"),
        ('every = "1s"', "every", "without repeat"),
        ("repeat = 2", "repeat", "must free all"),
        ('free = "2GiB"', "free", "frees more"),
        ('free = "some"', "free", "none, all"),
        ("walk_exposed = 1.1", "walk_exposed", "0 to 1"),
        ("write_fraction = nan", "write_fraction", "0 to 1"),
        ("write_fraction = true", "write_fraction", "a number"),
        ("cycles_per_access = 0", "cycles_per_access", "more than 0"),
        ("cycles_per_access = 1.5", "cycles_per_access", "an integer"),
        ("measure = 1", "measure", "true or false"),
        ("region = 3", "region", "a text"),
        ('task = "a b"', "task", "letters"),
        ('pattern = { kind = "zpf" }', "pattern.kind", "must be one of"),
        ('pattern = { kind = "mix" }', "pattern.kind", "not modelled yet"),
        ("pattern = { exponent = 1 }", "pattern.kind", "is required"),
        ('pattern = { kind = "zipf" }', "pattern.exponent", "is required"),
        ('pattern = { kind = "zipf", exponent = 0 }', "pattern.exponent", "more than 0"),
        ('pattern = { kind = "zipf", exponent = 1, stride = 1 }', "pattern.stride", "no such key"),
        ('pattern = { kind = "strided", stride = "2GiB" }', "pattern.stride", "exceed the region"),
        ('pattern = { kind = "strided", stride = "0B" }', "pattern.stride", "more than 0"),
        ('pattern = { kind = "pointer_chase", granule = "2GiB" }', "pattern.granule", "exceed"),
        ('pattern = { kind = "hot_cold", hot_fraction = 1, hot_share = 0.5 }',
         "pattern.hot_fraction", "less than 1"),
        ('allocate = "4KiB"\npattern = { kind = "hot_cold", hot_fraction = 0.1, hot_share = 0.9 }',
         "pattern.kind", "two pages"),
        ('allocate = "4KiB"\nthreads = 2\npattern = { kind = "sequential" }', "threads",
         "each needs a 4 KiB page"),
        ("pattern = 3", "pattern", "a table"),
    ],
)  # fmt: skip
def test_phases(tmp_path: Path, text: str, key: str, rule: str) -> None:
    found = only(mistakes(tmp_path, phases=phase(text)))
    name = "3" if text == "region = 3" else "heap"
    assert found.key == f"guest.g.workload.{name}.{key}"
    assert rule in found.rule


def test_the_guests_of_a_class_together_may_have_more_than_the_host(tmp_path: Path) -> None:
    assert mistakes(tmp_path, guest="count = 100") == []


def test_one_guest_must_not_have_more_than_memory_and_swap(tmp_path: Path) -> None:
    large = {"sets": ("guest.g.memory=20GiB",)}
    found = only(mistakes(tmp_path, **large))  # type: ignore[arg-type]
    assert found.key == "guest.g.memory"
    assert found.file == "--set"
    assert "16 GiB" in found.rule
    swap = 'swap = { device = "nvme", size = "4GiB" }'
    assert mistakes(tmp_path, host=swap, **large) == []  # type: ignore[arg-type]


def test_nothing_to_do(tmp_path: Path) -> None:
    found = only(mistakes(tmp_path, phases=""))
    assert (found.key, found.value) == ("scenario.duration", "")
    assert mistakes(tmp_path, phases="", meta='duration = "1s"') == []


def test_a_phase_that_does_nothing(tmp_path: Path) -> None:
    rest = '[[guest.g.workload]]\nname = "idle"\nregion = "heap"\n'
    found = only(mistakes(tmp_path, rest=rest))
    assert (found.key, found.rule) == ("guest.g.workload.idle.pattern", "the phase does nothing")


# --- regions ----------------------------------------------------------------------------


def test_a_region_is_there_until_it_is_freed(tmp_path: Path) -> None:
    again = phase("name = \"again\"\n- allocate")
    assert mistakes(tmp_path, rest=again) == []
    found = only(mistakes(tmp_path, phases=phase('free = "all"'), rest=again))
    assert found.key == "guest.g.workload.again.region"
    assert "it was freed" in found.rule
    found = only(mistakes(tmp_path, rest=phase('name = "again"\nprocess = "other"\n- allocate')))
    assert "the process 'other'" in found.rule
    found = only(mistakes(tmp_path, rest=phase('name = "again"')))
    assert "is there already" in found.rule


def test_a_region_shrinks_by_what_is_freed(tmp_path: Path) -> None:
    def freed(size: str) -> str:
        return f'[[guest.g.workload]]\nname = "f"\nregion = "heap"\nfree = "{size}"\n'

    again = phase('name = "again"\n- allocate\npattern = { kind = "strided", stride = "600MiB" }')
    assert mistakes(tmp_path, rest=freed("256MiB") + again) == []
    assert only(mistakes(tmp_path, rest=freed("512MiB") + again)).key.endswith("pattern.stride")
    assert "freed" in only(mistakes(tmp_path, rest=freed("1GiB") + again)).rule
    whole = only(mistakes(tmp_path, guest='page_size = "2MiB"', rest=freed("1MiB")))
    assert "whole guest pages" in whole.rule


def test_memory_counts_only_regions_that_live_together(tmp_path: Path) -> None:
    first = phase('name = "one"\nallocate = "3GiB"\nfree = "all"')
    second = phase('name = "two"\nallocate = "3GiB"')
    assert mistakes(tmp_path, phases=first, rest=second) == []
    found = only(mistakes(tmp_path, phases=second, rest=first.replace("heap", "other")))
    assert found.key == "guest.g.workload.one.allocate"
    assert "6 GiB" in found.rule


def test_tasks_side_by_side_add_up(tmp_path: Path) -> None:
    first = phase('name = "one"\nallocate = "3GiB"\nfree = "all"')
    second = phase('name = "two"\nallocate = "3GiB"\nregion = "b"\ntask = "other"')
    found = only(mistakes(tmp_path, phases=first, rest=second))
    assert found.key == "guest.g.workload.two.allocate"


def test_tasks_side_by_side_need_vcpus_of_their_own(tmp_path: Path) -> None:
    second = phase('name = "two"\nregion = "b"\ntask = "other"\nthreads = 2')
    found = only(mistakes(tmp_path, rest=second))
    assert found.key == "guest.g.vcpus"
    assert "need 3" in found.rule


def test_huge_guest_pages_round_regions_up(tmp_path: Path) -> None:
    small = [phase(f'name = "p{i}"\nregion = "r{i}"\nallocate = "4KiB"') for i in range(4)]
    assert mistakes(tmp_path, phases="".join(small)) == []
    found = only(mistakes(tmp_path, guest='page_size = "1GiB"', phases="".join(small)))
    assert found.key == "guest.g.workload.p3.allocate"
    assert "3 GiB" in found.rule
    assert "whole pages of 1 GiB" in found.rule
    container = 'page_size = "1GiB"\nvirtualization = "none"'
    assert mistakes(tmp_path, guest=container, phases="".join(small)) == []


# --- traces -----------------------------------------------------------------------------

TRACE = """
[[guest.g.workload]]
region = "heap"
pattern = { kind = "trace", file = "builtin" }
"""


def test_a_trace_says_itself_how_large_it_is(tmp_path: Path) -> None:
    assert mistakes(tmp_path, phases=TRACE) == []
    found = only(mistakes(tmp_path, phases=TRACE + 'allocate = "1GiB"\n'))
    assert found.key == "guest.g.workload.heap.allocate"
    assert "write_fraction" in only(mistakes(tmp_path, phases=TRACE + "write_fraction = 1\n")).key
    assert "threads" in only(mistakes(tmp_path, phases=TRACE + "threads = 2\n")).key
    assert "must free all" in only(mistakes(tmp_path, phases=TRACE + "repeat = 2\n")).rule
    assert mistakes(tmp_path, phases=TRACE + 'repeat = 2\nfree = "all"\n') == []


@pytest.mark.parametrize("content", [None, b"", b"not a trace", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_a_trace_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t.simvm-trace").write_bytes(content)
    found = only(mistakes(tmp_path, phases=TRACE.replace("builtin", "t.simvm-trace")))
    assert found.key == "guest.g.workload.heap.pattern.file"
    assert found.value == '"t.simvm-trace"'


# --- variants, settings, expectations ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "rule", "fix"),
    [
        ('"guest.g.page_siz" = "2MiB"', 'variant.v."guest.g.page_siz"', "no such key",
         "'page_size'"),
        ('"guest.h.page_size" = "2MiB"', 'variant.v."guest.h.page_size"', "no class", "one of g"),
        ('"guest.g.workload.hep.accesses" = 1', 'variant.v."guest.g.workload.hep.accesses"',
         "no phase", "'heap'"),
        ('"guest.g" = 1', 'variant.v."guest.g"', "not a class", "page_size"),
        ('"guest.g.workload.heap" = 1', 'variant.v."guest.g.workload.heap"', "a value of a phase",
         "accesses"),
        ('"hots.cores" = 1', 'variant.v."hots.cores"', "begins with", "'host'"),
        ('"host.cores.x" = 1', 'variant.v."host.cores.x"', "nothing below it", "end"),
        ('"host.costs.a.b" = 1', 'variant.v."host.costs.a.b"', "as deep", "shorten"),
        ("host = 1", 'variant.v."host"', "a path names a value", "guest.web.page_size"),
        ('"host..cores" = 1', 'variant.v."host..cores"', "joined by dots", "such as"),
        ('"host.cores" = 0', 'variant.v."host.cores"', "more than 0", "1 or more"),
        ('"guest.g.memory" = "64GiB"', 'variant.v."guest.g.memory"', "more than the host's",
         "16GiB"),
        ('"guest.g.vcpus" = 1\n"guest.g.workload.heap.threads" = 2',
         'variant.v."guest.g.workload.heap.threads"', "1 vCPUs", "raise vcpus"),
        ('"guest.g.boot" = "4GiB"', "guest.g.workload.heap.allocate (variant v)", "live together",
         "allocate less"),
    ],
)  # fmt: skip
def test_variants(tmp_path: Path, text: str, key: str, rule: str, fix: str) -> None:
    only_one_says(mistakes(tmp_path, rest=f"[variant.v]\n{text}\n"), key, rule, fix)


def test_a_mistake_of_the_base_is_not_repeated_by_variants(tmp_path: Path) -> None:
    rest = '[variant.v]\n"host.cores" = 2\n[variant.w]\n"host.cores" = 3\n'
    assert only(mistakes(tmp_path, guest="count = 0", rest=rest)).key == "guest.g.count"


def test_base_is_no_name_for_a_variant(tmp_path: Path) -> None:
    assert only(mistakes(tmp_path, rest='[variant.base]\n"host.cores" = 2\n')).key == "variant.base"


@pytest.mark.parametrize(
    ("setting", "rule"),
    [("host.cores", "PATH=VALUE"), ("host.coers=1", "no such key"), ("=1", "a path names"),
     ("host.cores=many", "an integer"), ("schema=2", "a path names"), ("guest.x.y=1", "no class")],
)  # fmt: skip
def test_settings(tmp_path: Path, setting: str, rule: str) -> None:
    found = only(mistakes(tmp_path, sets=(setting,)))
    assert found.file == "--set"
    assert rule in found.rule


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ('"guest.g.slowdown" = "1.3"', 'expect."guest.g.slowdown"', "an operator"),
        ('"guest.g.slowdown" = 1.3', 'expect."guest.g.slowdown"', "an operator"),
        ('"guest.g.slowdown" = "< a"', 'expect."guest.g.slowdown"', "end in a number"),
        ('"guest.g.slowdon" = "< 1"', 'expect."guest.g.slowdon"', "no 'slowdon'"),
        ('"guest.h.slowdown" = "< 1"', 'expect."guest.h.slowdown"', "no class"),
        ('"guest.g.workload.x.slowdown" = "< 1"', 'expect."guest.g.workload.x.slowdown"',
         "no phase"),
        ('"scenario.seed" = "< 1"', 'expect."scenario.seed"', "begins with guest or host"),
        ('guest.g.slowdown = "< 1"', "expect.guest.g", "in quotes"),
        ('host.slowdown = "< 1"', "expect.host", "no such variant"),
        ('[expect.v]\n"host.oom_kills" = "== 0"', "expect.v", "no such variant"),
    ],
)  # fmt: skip
def test_expectations(tmp_path: Path, text: str, key: str, rule: str) -> None:
    found = mistakes(tmp_path, rest=f"[expect]\n{text}\n")
    assert any(each.key == key and rule in each.rule for each in found), found


# --- all at once, and hostile files -----------------------------------------------------


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path,
        meta='quantum = "0s"\nsed = 1',
        host='cpus = 1\npage_size = "1GiB"',
        guest="count = 0\nvcpu = 1",
        phases=phase("threads = 3\nwrite_fraction = 2"),
        rest='[guest.h]\nboot = "1GB"\n[variant.v]\n"host.core" = 1\n',
        sets=("host.x=1",),
    )
    assert {mistake.key or mistake.value for mistake in found} >= {
        "scenario.quantum", "scenario.sed", "host.cpus", "host.page_size", "guest.g.count",
        "guest.g.vcpu", "guest.g.workload.heap.threads", "guest.g.workload.heap.write_fraction",
        "guest.h.memory", "guest.h.boot", 'variant.v."host.core"', "host.x=1",
    }  # fmt: skip
    assert len(found) == 12
    assert all(mistake.rule and mistake.fix for mistake in found)


def test_a_faulty_value_is_not_blamed_twice(tmp_path: Path) -> None:
    found = only(mistakes(tmp_path, sets=("host.memory=1GB",)))
    assert found.key == "host.memory"
    assert only(mistakes(tmp_path, sets=("guest.g.memory=4GB",))).key == "guest.g.memory"


BASE = HEAD.format(scenario="", host="", guest="") + PHASE


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"a = " + b"[" * 50_000, "nested too deeply"),
        (b"a." * 60 + b"a = 1", "nested too deeply"),
        (b"a." * 100_000 + b"a = 1", "dots"),
        (b"#" * (4 << 20) + b"##", "4 MiB"),
        (b"\xff\xfe", "UTF-8"),
        (b"\0", "TOML"),
        (b"a = 1\na = 2", "TOML"),
        (b"memory = 8GiB", "TOML"),
        (b"schema = " + b"9" * 5000, "TOML"),
        (b"schema = 0x" + b"f" * 50_000, "reads schema 1"),
        (b"", "is required"),
        (b'schema="x"\nscenario=1\nhost=[]\nguest="a"\nvariant=3\nexpect=4\n', "a table"),
        (b"schema = 1\n[[guest]]\n[[guest.x]]\n", "a table"),
        ((BASE + "[guest.x]\nworkload = 3\nmemory = 1979-05-27\n").encode(), "a list of tables"),
        ((BASE + PHASE * 2000).encode(), "at most"),
        ((BASE + "".join(f"[guest.g{i}]\n" for i in range(2000))).encode(), "at most"),
        ((BASE + "".join(f"[variant.v{i}]\n" for i in range(300))).encode(), "at most"),
        (BASE.replace("cores = 4", "cores = 0x" + "f" * 10_000).encode(), "65536 or less"),
        (BASE.replace("zen4", "\\u0000/x").encode(), "path of a file"),
    ],
    ids=range(19),
)  # fmt: skip
def test_hostile_files_are_refused_soon(tmp_path: Path, content: bytes, rule: str) -> None:
    file = tmp_path / "h.toml"
    file.write_bytes(content)
    start = time.perf_counter()
    found = scenario.check(file)
    assert time.perf_counter() - start < 10
    assert any(rule in mistake.rule for mistake in found), found
    assert all(len(str(mistake)) < 2000 for mistake in found)


def test_a_file_that_is_not_there_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "overcommit.toml").write_text("")
    found = only(scenario.check(tmp_path / "overcomit.toml"))
    assert "overcommit.toml" in found.fix
    assert only(scenario.check(tmp_path)).rule.startswith("cannot be read")


@pytest.mark.parametrize(("key", "value"), [("host.memory", "8TiB"), ("host.swap.size", "64TiB")])
def test_memory_beyond_what_is_modelled(tmp_path: Path, key: str, value: str) -> None:
    sets = (f"{key}={value}", "host.swap.device=nvme")
    if key == "host.memory":
        sets += ("host.swap.size=1GiB",)
    found = only(mistakes(tmp_path, sets=sets))
    assert found.key.startswith(key)
    assert "less than" in found.rule


def test_memory_beyond_the_reach_of_the_tables(tmp_path: Path) -> None:
    sets = ("host.cpu=neoverse_n1", "host.memory=4TiB", "guest.g.memory=2TiB")
    found = only(mistakes(tmp_path, sets=sets))
    assert found.key == "guest.g.memory"
    assert "serve 1 TiB" in found.rule  # 40 bits of guest-physical address
    assert mistakes(tmp_path, sets=(*sets, "host.table_levels=4")) == []
    assert mistakes(tmp_path, sets=(*sets, "guest.g.virtualization=none")) == []


def test_processes_of_a_container_with_three_levels(tmp_path: Path) -> None:
    sets = ("guest.g.virtualization=none", "guest.g.table_levels=3")
    phases = [phase(f'process = "p{number}"\nname = "n{number}"') for number in range(4)]
    assert mistakes(tmp_path, phases="".join(phases[:3]), sets=sets) == []
    found = only(mistakes(tmp_path, phases="".join(phases), sets=sets))
    assert found.key == "guest.g.workload"
    assert "room for 3 processes" in found.rule
    assert mistakes(tmp_path, phases="".join(phases), sets=sets[:1]) == []


def test_memory_beyond_three_levels(tmp_path: Path) -> None:
    """A program of 39 bits has 256 GiB, from 128 GiB up; a container's, less the gaps."""
    sets = ("host.memory=1TiB", "guest.g.table_levels=3")
    assert mistakes(tmp_path, sets=(*sets, "guest.g.memory=128GiB")) == []
    found = only(mistakes(tmp_path, sets=(*sets, "guest.g.memory=129GiB")))
    assert "serve 128 GiB" in found.rule
    sets = (*sets, "guest.g.virtualization=none")
    assert mistakes(tmp_path, sets=(*sets, "guest.g.memory=64GiB")) == []
    assert "serve 64 GiB" in only(mistakes(tmp_path, sets=(*sets, "guest.g.memory=65GiB"))).rule


def test_the_contiguous_hint_of_an_arm_cpu(tmp_path: Path) -> None:
    sets = ("host.cpu=neoverse_n1", "host.contiguous=true")
    assert mistakes(tmp_path, sets=sets) == []


def test_shadow_paging_is_of_x86(tmp_path: Path) -> None:
    assert mistakes(tmp_path, sets=("guest.g.virtualization=shadow",)) == []
    sets = ("host.cpu=neoverse_n1", "guest.g.virtualization=shadow")
    found = only(mistakes(tmp_path, sets=sets))
    assert found.key == "guest.g.virtualization"
    assert "on x86 alone" in found.rule
