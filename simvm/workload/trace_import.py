"""From the recording of a real program to a trace file, in one pass and bounded memory.

An importer is a reader such as :class:`simvm.workload.lackey.LackeyReader`; adding
one means one module and one line in :data:`IMPORTERS`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from simvm.errors import InvalidInput, Mistake
from simvm.workload.lackey import LackeyReader
from simvm.workload.trace import MalformedLine, TraceHeader
from simvm.workload.trace_writer import TraceWriter

MALFORMED_SHARE = 0.01
"""The largest share of malformed lines, of those that ought to be accesses, let pass."""

Progress = Callable[[int, int], None]
"""Called now and then with the bytes read and the accesses kept so far."""


class Importer(Protocol):
    """What a reader of recordings offers; see :class:`LackeyReader` for the meanings."""

    lines: int
    access_lines: int
    malformed_lines: int
    malformed_first: list[MalformedLine]
    command: str | None
    bytes_read: int

    def blocks(
        self, stream: BinaryIO
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]: ...


class _MakeImporter(Protocol):
    def __call__(self, *, instructions: bool) -> Importer: ...


IMPORTERS: dict[str, _MakeImporter] = {"lackey": LackeyReader}


def import_trace(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str = "lackey",
    instructions: bool = False,
    program: str | None = None,
    command: str | None = None,
    skip: int = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> TraceHeader:
    """Read a recording and write a trace file.

    Parameters
    ----------
    source
        The recording, or ``-`` for standard input.
    out
        The trace file; written beside and renamed, so that it appears whole or not at all.
    kind
        Which program wrote the recording: a key of :data:`IMPORTERS`.
    instructions
        Keep instruction fetches as well; a replay treats them as loads.
    program, command
        For the header; by default what the recording itself says.
    skip, limit
        Leave out this many accesses at the beginning; stop after this many kept.
    progress
        Called after each block.

    Returns
    -------
    TraceHeader
        The header as written, with the malformed lines that were let pass.

    Raises
    ------
    InvalidInput
        The source cannot be read, holds no access, or has more than `MALFORMED_SHARE`
        malformed lines; or `out` cannot be written.
    """
    if kind not in IMPORTERS:
        rule = f"known kinds: {', '.join(sorted(IMPORTERS))}"
        raise _refusal(source, "kind", kind, rule, "name one of these")
    if skip < 0 or (limit is not None and limit < 1):
        rule = "skip is 0 or more, limit 1 or more"
        raise _refusal(source, "skip, limit", f"{skip}, {limit}", rule, "correct the numbers")
    reader = IMPORTERS[kind](instructions=instructions)
    with _source(source) as stream, _writer(out) as writer:
        complete = _copy(reader, stream, writer, skip, limit, progress)
        _check(source, reader, writer.accesses, skip)
        command = command if command is not None else reader.command or ""
        return writer.finish(
            source=kind,
            program=program if program is not None else _program(command),
            command=command,
            skipped=skip,
            complete=complete,
            source_lines=reader.lines,
            malformed_lines=reader.malformed_lines,
            malformed_first=tuple(reader.malformed_first),
        )


@contextmanager
def _source(source: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(Path(source).open("rb"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise _refusal(source, "", reason, "must be readable", "correct the path") from None
        yield stream


def _writer(out: str | os.PathLike[str]) -> TraceWriter:
    fix = "choose another place with --out"
    if Path(out).is_dir():
        raise _refusal(out, "", "a folder", "must be a file", fix)
    try:
        return TraceWriter(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise _refusal(out, "", reason, "must be writable", fix) from None


def _copy(
    reader: Importer,
    stream: BinaryIO,
    writer: TraceWriter,
    skip: int,
    limit: int | None,
    progress: Progress | None,
) -> bool:
    """Move accesses from reader to writer; whether the source was read to its end."""
    for addresses, kinds in reader.blocks(stream):
        passed = min(skip, len(addresses))
        skip -= passed
        stop = None if limit is None else passed + limit - writer.accesses
        writer.append(addresses[passed:stop], kinds[passed:stop])
        if progress is not None:
            progress(reader.bytes_read, writer.accesses)
        if stop is not None and stop < len(addresses):
            return False
    return True


def _check(source: str | os.PathLike[str], reader: Importer, accesses: int, skip: int) -> None:
    examples = _examples(reader.malformed_first)
    expected = reader.malformed_lines + reader.access_lines
    fix = "record with `valgrind --tool=lackey --trace-mem=yes --log-file=FILE PROGRAM`"
    if reader.malformed_lines > MALFORMED_SHARE * expected:
        value = f"{reader.malformed_lines} malformed of {expected}{examples}"
        rule = f"at most {MALFORMED_SHARE:.0%} of the lines may be malformed"
        raise _refusal(source, "lines", value, rule, fix)
    if not accesses:
        value = f"{reader.lines} lines, no access" + (f" after the first {skip}" if skip else "")
        raise _refusal(source, "lines", value, "must hold an access", fix)


def _examples(malformed: Sequence[MalformedLine]) -> str:
    return "".join(f"; line {m.line}: {m.text!r}" for m in malformed)


def _program(command: str) -> str:
    """The name of the program that a command runs."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return os.path.basename(words[0]) if words else ""


def _refusal(
    file: str | os.PathLike[str], key: str, value: str, rule: str, fix: str
) -> InvalidInput:
    return InvalidInput([Mistake(file=str(file), key=key, value=value, rule=rule, fix=fix)])
