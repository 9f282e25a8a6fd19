"""Opening Parquet files from anywhere: what is checked before a library reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from simvm.errors import InvalidInput, Mistake

MAGIC: Final = b"PAR1"
_MAX_FOOTER_BYTES: Final = 64 << 20

DECODE_ERRORS: Final = (
    pa.ArrowException, OSError, ValueError, OverflowError, KeyError, TypeError,
)  # fmt: skip
"""What pyarrow raises on damaged bytes: its own errors, and built-in ones from its decoders."""


def refusal(
    path: str | os.PathLike[str], key: str, value: str, rule: str, fix: str
) -> InvalidInput:
    """An :class:`InvalidInput` of one mistake, to raise."""
    return InvalidInput([Mistake(file=str(path), key=key, value=value, rule=rule, fix=fix)])


def check_marks(path: Path, what: str, rule: str, fix: str, again: str) -> None:
    """Refuse what does not begin and end as a Parquet file does.

    `what` is its name in messages, `rule` and `fix` are for a file of another kind, `again` is
    the fix for one that is damaged.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(len(MAGIC))
            file.seek(max(0, size - 8))
            tail = file.read(8)
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(path, "", reason, "must be a readable file", "correct the path") from None
    if head != MAGIC[: len(head)] or not head:
        raise refusal(path, "", f"begins with {head!r}", rule, fix)
    footer = int.from_bytes(tail[:4], "little")
    if size < 16 or tail[4:] != MAGIC or footer + 12 > size:
        raise refusal(
            path, "", f"{size} bytes", f"the {what} must be whole, and is cut short", again
        )
    if footer > _MAX_FOOTER_BYTES:
        value = f"a footer of {footer} bytes"
        raise refusal(path, "", value, f"at most {_MAX_FOOTER_BYTES}", again)


@contextlib.contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, with limits on what its footer may make the library allocate."""
    with path.open("rb") as file:
        yield pq.ParquetFile(
            file,
            pre_buffer=False,
            thrift_string_size_limit=_MAX_FOOTER_BYTES,
            thrift_container_size_limit=1 << 18,
            page_checksum_verification=True,
        )
