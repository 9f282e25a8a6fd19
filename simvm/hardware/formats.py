"""The page-table formats that architectures define, by name, each with its source.

Stage 1 translates what a program accesses, stage 2 (SLAT, G-stage) what a guest takes for
physical. Formats of Arm's stage 2 are those that KVM chooses: up to 16 tables in a row as
the root wherever they save a level. Left out: Sv57x4, whose 59 bits of address are more
than a table here reaches, and Sv32, whose entries have 4 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from simvm.hardware.geometry import TableFormat

GRANULES: Final[Mapping[int, int]] = {12: 4, 14: 3, 16: 3}
"""By granule shift, the levels of a format of which nothing more is said."""

_LARGE_LEAVES: Final = {12: 2, 14: 1, 16: 1}
"""By granule shift, how many sizes of leaf there are besides the granule."""

_X86: Final = "Intel SDM, volume 3A, chapter 4 (paging)"
_EPT: Final = "volume 3C (EPT); AMD64 APM, volume 2 (long mode, nested paging)"
_ARM: Final = "Arm ARM, DDI 0487, AArch64 virtual memory system architecture"
_KVM_ARM: Final = "Linux, arch/arm64/include/asm/stage2_pgtable.h"
_RISCV: Final = "RISC-V Instruction Set Manual, volume II (privileged architecture)"


@dataclass(frozen=True)
class NamedFormat:
    """A format of an architecture."""

    form: TableFormat
    stages: tuple[int, ...]
    source: str
    hint: bool = True
    """Whether sixteen pages of 4 KiB can be marked as contiguous: Arm's Contiguous bit, Svnapot
    of RISC-V."""


def _x86(levels: int) -> NamedFormat:
    return NamedFormat(TableFormat(levels), (1, 2), f"{_X86}; {_EPT}", hint=False)


def _stage1(levels: int, granule_shift: int, root_bits: int = 0) -> NamedFormat:
    return NamedFormat(TableFormat(levels, granule_shift, root_bits), (1,), f"{_ARM}, stage 1")


def _stage2(levels: int, granule_shift: int, root_bits: int) -> NamedFormat:
    form = TableFormat(levels, granule_shift, root_bits)
    return NamedFormat(form, (2,), f"{_ARM}, stage 2, concatenated tables; {_KVM_ARM}")


def _sv(levels: int) -> NamedFormat:
    return NamedFormat(TableFormat(levels), (1,), f"{_RISCV}, Sv39, Sv48 and Sv57")


def _svx4(levels: int) -> NamedFormat:
    source = f"{_RISCV}, hypervisor extension: a root of 16 KiB"
    return NamedFormat(TableFormat(levels, root_bits=11), (2,), source)


FORMATS: Final[Mapping[str, NamedFormat]] = {
    "x86-4": _x86(4),
    "x86-5": _x86(5),
    "arm-stage1-4k-39bit": _stage1(3, 12),
    "arm-stage1-4k-48bit": _stage1(4, 12),
    "arm-stage1-16k-47bit": _stage1(3, 14),
    "arm-stage1-16k-48bit": _stage1(4, 14, 1),
    "arm-stage1-64k-42bit": _stage1(2, 16),
    "arm-stage1-64k-48bit": _stage1(3, 16, 6),
    "arm-stage2-4k-40bit": _stage2(3, 12, 10),
    "arm-stage2-4k-48bit": _stage2(4, 12, 9),
    "arm-stage2-4k-52bit": _stage2(4, 12, 13),
    "arm-stage2-16k-40bit": _stage2(2, 14, 15),
    "arm-stage2-16k-48bit": _stage2(3, 14, 12),
    "arm-stage2-64k-40bit": _stage2(2, 16, 11),
    "arm-stage2-64k-48bit": _stage2(3, 16, 6),
    "sv39": _sv(3),
    "sv48": _sv(4),
    "sv57": _sv(5),
    "sv39x4": _svx4(3),
    "sv48x4": _svx4(4),
}


def leaf_bytes(granule_shift: int, levels: int) -> tuple[int, ...]:
    """The sizes that leaves of a table may have, by order."""
    orders = range(min(_LARGE_LEAVES[granule_shift] + 1, levels))
    return tuple(1 << granule_shift + (granule_shift - 3) * order for order in orders)


def root_bytes(form: TableFormat) -> int:
    """Bytes that the root takes: at least a table."""
    return root_tables(form) << form.granule_shift


def root_tables(form: TableFormat) -> int:
    """How many tables in a row the root is."""
    return 1 << max(form.root_bits - (form.granule_shift - 3), 0)
