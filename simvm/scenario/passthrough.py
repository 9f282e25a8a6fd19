"""Words of the passthrough channel: the operations of pvmemcontrol (RFC of 2024)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from simvm.scenario.fields import one_of

FREEING: Final = ("DONTNEED", "REMOVE", "FREE")
"""What may be done about memory that the guest has freed: one of these."""

BY_ITSELF: Final = ("INFO", "SET_VMA_ANON_NAME", *FREEING)
"""What the guest's kernel may send without a phase that asks for it."""

OPERATIONS: Final = (
    *BY_ITSELF, "PAGEOUT", "MLOCK", "MUNLOCK", "MPROTECT_NONE", "MPROTECT_R", "MPROTECT_W",
    "MPROTECT_RW", "MERGEABLE", "UNMERGEABLE", "DONTDUMP",
)  # fmt: skip
"""All operations."""

Operation = Annotated[
    Literal[
        "INFO", "SET_VMA_ANON_NAME", "DONTNEED", "REMOVE", "FREE", "PAGEOUT", "MLOCK", "MUNLOCK",
        "MPROTECT_NONE", "MPROTECT_R", "MPROTECT_W", "MPROTECT_RW", "MERGEABLE", "UNMERGEABLE",
        "DONTDUMP",
    ],
    one_of(*OPERATIONS),
]  # fmt: skip

OwnOperation = Annotated[
    Literal["INFO", "SET_VMA_ANON_NAME", "DONTNEED", "REMOVE", "FREE"], one_of(*BY_ITSELF)
]

Operations = tuple[Operation, ...]
OwnOperations = tuple[OwnOperation, ...]
