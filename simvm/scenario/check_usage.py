"""The rules about paced phases, and about regions that follow a series of memory use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from simvm.errors import InvalidInput
from simvm.scenario.finding import Finding
from simvm.scenario.usage import AnyUsage, BurstyUsage, DiurnalUsage, RecordedUsage
from simvm.units import format_bytes, format_ns, human_bytes

if TYPE_CHECKING:
    from simvm.scenario.models import GuestClass, Meta, Phase
    from simvm.workload.usage import UsageSeries

PAGE: Final = 4096

Wrong = tuple[str, str, str]
"""A key of a phase, the rule that it breaks, and the fix."""


def loop(phase: Phase) -> Iterator[Wrong]:
    """What a paced phase must have and must not have."""
    paced = "a paced phase has access_rate, and a duration or usage"
    for key in ("accesses", "rate", "accesses_per_request"):
        if getattr(phase, key) is not None:
            yield key, paced, "remove it, or access_rate and usage"
    if phase.think_time:
        yield "think_time", "a paced phase rests by the clock", "remove it"
    if phase.access_rate is not None and phase.pattern is None:
        yield "pattern", "accesses need a pattern", 'add pattern = { kind = "uniform" }'
    if phase.pattern is not None and phase.access_rate is None:
        yield "access_rate", "is required: the phase keeps to the clock", 'add access_rate = "2M"'
    if phase.usage is None:
        if phase.duration is None:
            yield "duration", "is required: else accesses are due for ever", 'add duration = "60s"'
        return
    if phase.allocate is not None:
        yield "allocate", "the series says how large the region is", "remove it"
    if phase.pattern is not None and phase.pattern.kind == "trace":
        yield "pattern.kind", "a trace says itself how large its region is", "use another pattern"
    if phase.free not in ("none", "all"):
        fix = 'write free = "all", or remove it'
        yield "free", "a region that follows a series is freed whole or not at all", fix


def interval(phase: Phase) -> Iterator[Wrong]:
    """A key that only paced accesses have."""
    if phase.interval is not None and phase.access_rate is None:
        yield "interval", "only paced accesses have one", "remove it, or add access_rate"


def findings(meta: Meta, where: str, guest: GuestClass) -> Iterator[Finding]:
    """The rules that the series of the class of guests at `where` break."""
    cached: list[str] = []
    for phase in guest.workload:
        usage, at = phase.usage, f"{where}.workload.{phase.name}"
        if usage is None:
            continue
        wrong: list[Wrong] = []
        if isinstance(usage, RecordedUsage):
            wrong += _file(usage)
            series = series_of(usage)
            if series is not None and usage.cached and series.cached_bytes is not None:
                wrong += _cache(guest, usage, series, cached)
                cached.append(phase.name)
        else:
            wrong += _generated(usage)
        endless = not isinstance(usage, RecordedUsage) or usage.loop
        if endless and phase.duration is None and meta.duration == "work":
            fix = 'add duration = "24h" to the phase, or to [scenario]'
            wrong.append(("duration", "the series has no end, so the phase needs one", fix))
        uses = (at, f"{where}.page_cache", "scenario.duration")
        yield from (Finding(f"{at}.{key}", rule, fix, uses) for key, rule, fix in wrong)


def _file(usage: RecordedUsage) -> Iterator[Wrong]:
    from simvm.workload.usage import open_usage

    if usage.members != "same" and not usage.loop:
        fix = 'add loop = true, or write members = "same"'
        yield "usage.members", "who begins elsewhere in a series goes round in it", fix
    try:
        open_usage(usage.file)
    except InvalidInput as error:
        for mistake in error.mistakes:
            inner = f" ({mistake.key} = {mistake.value})" if mistake.key else ""
            yield "usage.file", mistake.rule + inner, mistake.fix


def series_of(usage: RecordedUsage) -> UsageSeries | None:
    """The file of a recorded series; None where its mistakes are reported."""
    from simvm.workload.usage import open_usage

    try:
        return open_usage(usage.file)
    except InvalidInput:
        return None


def _cache(
    guest: GuestClass, usage: RecordedUsage, series: UsageSeries, earlier: list[str]
) -> Iterator[Wrong]:
    """A recorded cache needs one in the guest, as large as it gets."""
    assert series.cached_bytes is not None
    most = -(-int(series.cached_bytes.max() * usage.scale) // PAGE) * PAGE
    if guest.page_cache is None:
        has = "a container has no page cache" if not guest.is_vm else "the guest has no page_cache"
        fix = "write cached = false in usage"
        if guest.is_vm:
            files = format_bytes(max(PAGE, most))
            fix += f', or add page_cache = {{ files = "{files}", read_rate = "100MiB" }}'
        yield "usage.cached", f"the file has cached_bytes, and {has}", fix
    elif guest.page_cache.files < most:
        yield (
            "usage.cached", f"the cache gets as large as {human_bytes(most)}, and the files of "
            f"page_cache have {human_bytes(guest.page_cache.files)}",
            f'write page_cache.files = "{format_bytes(most)}", or cached = false',
        )  # fmt: skip
    if earlier:
        yield (
            "usage.cached", f"the cache follows {earlier[0]} already", "write cached = false",
        )  # fmt: skip


def _generated(usage: DiurnalUsage | BurstyUsage) -> Iterator[Wrong]:
    if usage.low > usage.high:
        yield "usage.low", "must not exceed high", f'write "{format_bytes(usage.high)}" or less'
    if not isinstance(usage, DiurnalUsage):
        return
    if usage.step > usage.period:
        rule, fix = "must not be longer than the period", format_ns(usage.period)
        yield "usage.step", rule, f'write "{fix}" or less'
    if usage.correlation is not None and not usage.noise:
        yield "usage.correlation", "is that of the noise, which is 0", "remove it, or add noise"


def extremes(usage: AnyUsage) -> tuple[int, int] | None:
    """The least and the most that a phase uses, in whole 4 KiB pages; None: not known."""
    if not isinstance(usage, RecordedUsage):
        return usage.low, usage.high
    from simvm.workload.usage import scaled

    series = series_of(usage)
    if series is None:
        return None
    used = series.used_bytes
    return scaled(int(used.min()), usage.scale), scaled(int(used.max()), usage.scale)
