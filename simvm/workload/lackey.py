"""Reads what ``valgrind --tool=lackey --trace-mem=yes`` writes of a program.

A line is one access: `` L address,size`` a load, `` S`` a store, `` M`` a modify (one
access that reads and writes), ``I  address,size`` an instruction fetch; addresses are
hexadecimal, sizes decimal (source: the lackey chapter of the Valgrind manual). Lines
that begin with ``==``, ``--`` or ``**`` are Valgrind's own words and are passed over;
of them the command is kept. Any other line is malformed.

Left out: sizes, and who made an access. Lackey names neither process nor thread, so
with ``--trace-children=yes`` address spaces would mix; record one process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from simvm.workload.trace import Kind, MalformedLine

MAX_LINE_BYTES = 4096
"""A longer line is malformed, and is passed over without being held."""

_BLOCK_BYTES = 4 << 20
_PADDING = b"\n" * 32  # more than an access line is read past its start
_KEPT_EXAMPLES = 5
_KEPT_CHARACTERS = 80
_HOPELESS_LINES = 1000

_MAX_ADDRESS_DIGITS = 16
_MAX_SIZE_DIGITS = 4

_NOT_A_DIGIT = 255
_HEX = np.full(256, _NOT_A_DIGIT, dtype=np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)
_HEX[np.frombuffer(b"ABCDEF", dtype=np.uint8)] = np.arange(10, 16)
_NO_KIND = 255
_KIND = np.full(256, _NO_KIND, dtype=np.uint8)
for _letter, _code in ((b"L", Kind.LOAD), (b"S", Kind.STORE), (b"M", Kind.MODIFY)):
    _KIND[_letter[0]] = _code

_COMMAND = re.compile(rb"^==\d+== Command: ([^\r\n]*)", re.MULTILINE)


class LackeyReader:
    """One pass over a recording, from a file or a pipe, in bounded memory.

    Attributes
    ----------
    lines, malformed_lines : int
        Lines read so far, and those of them that were malformed.
    access_lines : int
        Lines that were accesses, instruction fetches included.
    malformed_first : list of MalformedLine
        The first few.
    command : str or None
        The command that Valgrind says it ran, once met.
    bytes_read : int
    """

    def __init__(self, *, instructions: bool = False) -> None:
        self._instructions = instructions
        self.lines = 0
        self.access_lines = 0
        self.malformed_lines = 0
        self.malformed_first: list[MalformedLine] = []
        self.command: str | None = None
        self.bytes_read = 0

    def blocks(self, stream: BinaryIO) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
        """Yield (byte addresses, kinds) in order; instruction fetches only if asked for.

        Stops early when the source is plainly something else: more than
        1,000 malformed lines, and more of them than accesses.
        """
        for data in self._whole_lines(stream):
            yield self._parse(data)
            if self.malformed_lines > max(_HOPELESS_LINES, self.access_lines):
                return

    def _whole_lines(self, stream: BinaryIO) -> Iterator[bytes]:
        """Blocks that end with a line; an overlong line keeps only its beginning."""
        carry = b""
        overlong = False
        while block := stream.read(_BLOCK_BYTES):
            self.bytes_read += len(block)
            if overlong:
                newline = block.find(b"\n")
                if newline < 0:
                    continue
                block = block[newline + 1 :]
                overlong = False
            data = carry + block
            cut = data.rfind(b"\n") + 1
            data, carry = data[:cut], data[cut:]
            if len(carry) > MAX_LINE_BYTES:
                data += carry[: MAX_LINE_BYTES + 1] + b"\n"
                carry = b""
                overlong = True
            if data:
                yield data
        if carry:
            yield carry + b"\n"

    def _parse(self, data: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        if self.command is None and (found := _COMMAND.search(data)):
            self.command = found[1].decode("utf-8", "backslashreplace")
        text = np.frombuffer(data + _PADDING, dtype=np.uint8)
        end = np.flatnonzero(text[: len(data)] == ord("\n"))
        start = np.empty_like(end)
        start[0] = 0
        start[1:] = end[:-1] + 1

        first, second, third = text[start], text[start + 1], text[start + 2]
        spaced = third == ord(" ")
        kind = _KIND[second]
        is_data = (first == ord(" ")) & spaced & (kind != _NO_KIND)
        is_fetch = (first == ord("I")) & (second == ord(" ")) & spaced
        ours = np.zeros(len(start), dtype=bool)
        for mark in b"=-*":
            ours |= (first == mark) & (second == mark)
        length = end - start
        ours |= (length == 0) | ((length == 1) & (first == ord("\r")))

        wanted = is_data
        if self._instructions:
            wanted = is_data | is_fetch
            kind[is_fetch] = Kind.INSTRUCTION
        index = np.flatnonzero(wanted)
        address, whole = _addresses(text, start[index] + 3, end[index])
        good = is_fetch | ours
        good[index] = whole
        good &= length <= MAX_LINE_BYTES
        self._note(data, start, end, good)
        self.access_lines += int(np.count_nonzero(good & ~ours))
        return address[whole], kind[index[whole]]

    def _note(
        self, data: bytes, start: NDArray[np.int64], end: NDArray[np.int64], good: NDArray[np.bool_]
    ) -> None:
        bad = np.flatnonzero(~good)
        for i in bad[: _KEPT_EXAMPLES - len(self.malformed_first)].tolist():
            text = data[start[i] : min(end[i], start[i] + _KEPT_CHARACTERS)]
            shown = text.decode("ascii", "backslashreplace")
            self.malformed_first.append(MalformedLine(line=self.lines + i + 1, text=shown))
        self.malformed_lines += len(bad)
        self.lines += len(start)


def _addresses(
    text: NDArray[np.uint8], at: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Addresses that stand at `at` in lines ending at `end`, and which lines are whole."""
    address = np.zeros(len(at), dtype=np.uint64)
    digits = np.zeros(len(at), dtype=np.int64)
    running = np.ones(len(at), dtype=bool)
    for j in range(_MAX_ADDRESS_DIGITS):
        digit = _HEX[text[at + j]]
        running &= digit != _NOT_A_DIGIT
        if not running.any():
            break
        np.left_shift(address, np.uint64(4), out=address, where=running)
        np.bitwise_or(address, digit, out=address, where=running)
        digits += running
    comma = at + digits
    end = end - (text[end - 1] == ord("\r"))
    size_digits = end - comma - 1
    whole = (digits > 0) & (text[comma] == ord(","))
    whole &= (size_digits >= 1) & (size_digits <= _MAX_SIZE_DIGITS)
    some = np.zeros(len(at), dtype=bool)
    for j in range(_MAX_SIZE_DIGITS):
        digit = _HEX[text[comma + 1 + j]]
        inside = j < size_digits
        whole &= ~inside | (digit < 10)
        some |= inside & (digit > 0)
    return address, whole & some
