"""Recorded traces: the text is read right, the file keeps it, and damage is refused."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simvm.errors import InvalidInput
from simvm.workload import (
    builtin_trace,
    import_trace,
    lackey,
    open_trace,
    parquet_files,
    read_header,
    trace,
    trace_info,
    trace_writer,
)
from simvm.workload.page_set import PageSet
from simvm.workload.parquet_pages import page_sizes

HAND = Path(__file__).parent / "fixtures" / "hand.lackey"

# Of the hand-written text: block 2 (0x400000) is the first 2 MiB of the region, then the
# stack's (0x1ffe00000), then the block of 0x7f0000000000. Offsets are those of lines.
HAND_REGION = [
    (0x2FFE40, 0), (0x000FC0, 1), (0x000FC0, 1), (0x001000, 0),
    (0x2FFE40, 1), (0x400040, 0), (0x000FC0, 0),
]  # fmt: skip


def text_of(seed: int, lines: int) -> str:
    """A recording in which pages are hot and cold, spread over 3 GiB."""
    rng = random.Random(seed)
    bases = [rng.randrange(0, 3 << 30, 4096) for _ in range(40)]
    out = ["==7== Command: made up\n"]
    for _ in range(lines):
        kind = rng.choice(["I ", " L", " L", " S", " M"])
        address = rng.choice(bases[: rng.randint(1, 40)]) + rng.randrange(3 * 4096)
        out.append(f"{kind} {address:08x},{rng.choice([1, 4, 8, 32])}\n")
    return "".join(out)


def plain_parse(text: str) -> list[tuple[int, str]]:
    found = re.findall(r"^(I | [LSM]) ([0-9a-f]+),\d+$", text, re.MULTILINE)
    return [(int(address, 16), kind.strip()) for kind, address in found]


def imported(tmp_path: Path, text: str | bytes, **options: Any) -> Path:
    source = tmp_path / "recording"
    source.write_bytes(text.encode() if isinstance(text, str) else text)
    out = tmp_path / "made.simvm-trace"
    import_trace(source, out, **options)
    return out


def accesses(path: Path, max_accesses: int = 1 << 20) -> list[int]:
    return [word for chunk in open_trace(path).chunks(max_accesses) for word in chunk.tolist()]


def mistake(path: Path, act: Callable[[Path], object] = lambda p: open_trace(p).verify()) -> str:
    with pytest.raises(InvalidInput) as caught:
        act(path)
    (first, *_rest) = caught.value.mistakes
    assert first.file == str(path)
    assert first.rule
    assert first.fix
    return f"{first.key}: {first.value}: {first.rule}"


class TestParsing:
    def test_hand_written_text(self, tmp_path: Path) -> None:
        out = tmp_path / "hand.simvm-trace"
        header = import_trace(HAND, out)
        assert accesses(out) == [offset << 1 | write for offset, write in HAND_REGION]
        assert (header.loads, header.stores, header.modifies, header.instructions) == (4, 2, 1, 0)
        assert (header.accesses, header.writes) == (7, 3)
        assert (header.program, header.command) == (
            "probe",
            '/usr/bin/probe --deep "two words"',
        )
        assert (header.source, header.source_lines, header.malformed_lines) == ("lackey", 16, 0)
        assert header.distinct_4k_pages == 4
        assert header.distinct_2m_pages == 3
        assert header.distinct_1g_pages == 3
        assert [(s.start, s.bytes) for s in header.segments] == [
            (0x400000, 2 << 20),
            (0x1FFE00000, 2 << 20),
            (0x7F0000000000, 2 << 20),
        ]
        assert open_trace(out).region_bytes == 6 << 20
        assert read_header(out) == header

    def test_instruction_fetches_on_request(self, tmp_path: Path) -> None:
        out = tmp_path / "hand.simvm-trace"
        header = import_trace(HAND, out, instructions=True)
        assert (header.instructions, header.accesses, header.writes) == (3, 10, 3)
        kinds = np.concatenate([kind for _page, _line, kind in open_trace(out).records()])
        kind = trace.Kind
        assert kinds[:4].tolist() == [kind.INSTRUCTION, kind.LOAD, kind.INSTRUCTION, kind.STORE]

    def test_neighbouring_blocks_are_one_segment(self, tmp_path: Path) -> None:
        text = " L 001fffff,1\n L 00200000,1\n S 00600000,1\n"
        header = read_header(imported(tmp_path, text))
        assert [(s.start, s.bytes) for s in header.segments] == [(0, 4 << 20), (6 << 20, 2 << 20)]

    def test_addresses_to_the_last(self, tmp_path: Path) -> None:
        out = imported(tmp_path, " L ffffffffffffffff,1\n S 0,1\n M FFFFFFFFFFFFF000,8\n")
        assert accesses(out) == [0x3FFFC0 << 1, 1, 0x3FF000 << 1 | 1]
        assert read_header(out).distinct_1g_pages == 2

    def test_against_a_plain_parser(self, tmp_path: Path, monkeypatch: Any) -> None:
        text = text_of(1, 5000)
        monkeypatch.setattr(lackey, "_BLOCK_BYTES", 1000)  # lines are cut at every block's end
        out = imported(tmp_path, text, instructions=True)
        blocks = sorted({address >> 21 for address, _ in plain_parse(text)})
        assert accesses(out) == [
            ((blocks.index(a >> 21) << 21 | (a & 0x1FFFC0)) << 1) | (kind in "SM")
            for a, kind in plain_parse(text)
        ]

    def test_carriage_returns_and_a_last_line_without_end(self, tmp_path: Path) -> None:
        out = imported(tmp_path, b" L 1000,4\r\n\r\n S 2000,4")
        assert accesses(out) == [0x1000 << 1, 0x2000 << 1 | 1]

    def test_skip_and_limit(self, tmp_path: Path) -> None:
        text = text_of(2, 3000)
        kept = [kind for _, kind in plain_parse(text) if kind != "I"][100:600]
        header = read_header(imported(tmp_path, text, skip=100, limit=500))
        assert (header.skipped, header.complete, header.accesses) == (100, False, 500)
        assert header.loads == kept.count("L")
        assert header.modifies == kept.count("M")

    def test_program_and_command_as_told(self, tmp_path: Path) -> None:
        header = read_header(imported(tmp_path, " L 0,1\n", program="x", command="x -y"))
        assert (header.program, header.command) == ("x", "x -y")

    def test_standard_input(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(HAND.read_bytes())))
        seen: list[tuple[int, int]] = []
        out = tmp_path / "t.simvm-trace"
        import_trace("-", out, progress=lambda read, kept: seen.append((read, kept)))
        assert len(accesses(out)) == 7
        assert seen[-1] == (HAND.stat().st_size, 7)

    def test_same_text_same_bytes(self, tmp_path: Path) -> None:
        text = text_of(3, 1000)
        first = imported(tmp_path, text).read_bytes()
        assert imported(tmp_path, text).read_bytes() == first


class TestMalformedText:
    @pytest.mark.parametrize(
        "line",
        [
            " L 1000", " L 1000,", " L ,4", " L 1000,x", " L 1000,0", " L 1000,4 ", " L 10g0,4",
            " L 11111111111111111,4", " L 1000,12345", " X 1000,4", "L 1000,4", "  L 1000,4",
            " L  1000,4", "hello", "\x00\xff", " L 1000,4" + " " * 5000, "==" + "=" * 5000,
        ],
    )  # fmt: skip
    def test_is_counted_and_quoted(self, tmp_path: Path, line: str) -> None:
        good = " L 1000,4\n" * 200
        header = read_header(imported(tmp_path, good + line + "\n" + good))
        assert header.accesses == 400
        assert header.malformed_lines == 1
        assert header.malformed_first[0].line == 201
        assert header.source_lines == 401

    def test_more_than_one_percent_is_refused(self, tmp_path: Path) -> None:
        text = " L 1000,4\n" * 100 + "oops\nand again\n"
        with pytest.raises(InvalidInput) as caught:
            imported(tmp_path, text)
        (only,) = caught.value.mistakes
        assert "2 malformed of 102" in only.value
        assert "line 101: 'oops'; line 102: 'and again'" in only.value
        assert [p.name for p in tmp_path.iterdir()] == ["recording"]

    @pytest.mark.parametrize("text", ["", "\n", "==1== Command: true\n", "I  1000,4\n"])
    def test_no_access_is_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidInput, match="hold an access"):
            imported(tmp_path, text)

    def test_skipping_past_the_end_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="after the first 8"):
            import_trace(HAND, tmp_path / "out", skip=8)

    def test_something_else_is_left_early(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(lackey, "_BLOCK_BYTES", 1 << 16)
        read: list[int] = []
        with pytest.raises(InvalidInput):
            imported(tmp_path, b"garbage\n" * 500_000, progress=lambda r, _k: read.append(r))
        assert max(read) <= 1 << 16

    def test_an_endless_line_is_not_held(self) -> None:
        class Endless(io.RawIOBase):
            left = 64

            def read(self, size: int = -1) -> bytes:
                self.left -= 1
                return b"x" * size if self.left > 0 else b""

        reader = lackey.LackeyReader()
        largest = max(len(data) for data in reader._whole_lines(Endless()))  # type: ignore[arg-type]
        assert largest <= lackey.MAX_LINE_BYTES + 2
        assert reader.bytes_read == 63 * lackey._BLOCK_BYTES

    def test_reading_goes_on_after_a_long_line(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(lackey, "_BLOCK_BYTES", 5000)
        good = " L 1000,4\n" * 200
        header = read_header(imported(tmp_path, good + "x" * 30_000 + "\n" + good + " S 0,1\n"))
        assert (header.accesses, header.stores, header.malformed_lines) == (401, 1, 1)
        assert header.source_lines == 402

    @given(st.binary(max_size=2000))
    @settings(max_examples=60, deadline=None)
    def test_any_bytes_are_read_or_counted(self, text: bytes) -> None:
        reader = lackey.LackeyReader(instructions=True)
        got = sum(len(a) for a, _ in reader.blocks(io.BytesIO(text)))
        assert got == reader.access_lines
        assert reader.lines == len(text.split(b"\n")) - (text.endswith(b"\n") or not text)

    def test_unknown_kind_missing_source_and_folder(self, tmp_path: Path) -> None:
        for source, out, options in [
            (HAND, tmp_path / "o", {"kind": "pin"}),
            (HAND, tmp_path / "o", {"limit": 0}),
            (tmp_path / "absent", tmp_path / "o", {}),
            (tmp_path, tmp_path / "o", {}),
            (HAND, tmp_path / "no" / "o", {}),
            (HAND, tmp_path, {}),
        ]:
            with pytest.raises(InvalidInput):
                import_trace(source, out, **options)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []

    def test_too_wide_a_program_is_refused(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(trace_writer, "MAX_BLOCKS", 3)
        with pytest.raises(InvalidInput, match="at most 3 blocks"):
            imported(tmp_path, "".join(f" L {i << 21:x},1\n" for i in range(4)))
        assert [p.name for p in tmp_path.iterdir()] == ["recording"]


class TestPageSet:
    @given(st.lists(st.lists(st.integers(0, 1 << 18), min_size=1, max_size=200), max_size=5))
    @settings(max_examples=50, deadline=None)
    def test_is_a_set(self, parts: list[list[int]]) -> None:
        pages, plain = PageSet(), set[int]()
        for part in parts:
            pages.add(np.array(part, dtype=np.int64))
            plain.update(part)
            assert len(pages) == len(plain)
            assert pages.blocks.tolist() == sorted({page >> 9 for page in plain})
            assert pages.block_count == len(pages.blocks)

    def test_grows(self) -> None:
        pages = PageSet()
        for _ in range(2):
            pages.add(np.arange(0, 1000 << 9, 256, dtype=np.int64))
        assert (len(pages), pages.block_count) == (2000, 1000)


class TestFile:
    def test_chunks_of_any_size_hold_the_same(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(trace_writer, "ROW_GROUP_ACCESSES", 700)
        out = imported(tmp_path, text_of(4, 4000))
        assert pq.ParquetFile(out).num_row_groups > 3
        whole = accesses(out)
        assert len(whole) == read_header(out).accesses
        for size in (1, 7, 699, 700, 701, 10**6):
            chunks = list(open_trace(out).chunks(size))
            assert all(1 <= len(c) <= size and c.dtype == np.uint64 for c in chunks)
            assert np.concatenate(chunks).tolist() == whole

    def test_a_chunk_holds_at_least_one(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"max_accesses\(=0\)"):
            next(open_trace(imported(tmp_path, " L 0,1\n")).chunks(0))

    def test_cut_short_anywhere(self, tmp_path: Path) -> None:
        whole = imported(tmp_path, text_of(5, 2000)).read_bytes()
        cut = tmp_path / "cut.simvm-trace"
        lengths = [*range(0, 40), *range(40, len(whole), 97), *range(len(whole) - 40, len(whole))]
        for length in lengths:
            cut.write_bytes(whole[:length])
            said = mistake(cut)
            assert "cut short" in said or length < 4, (length, said)

    @pytest.mark.parametrize("content", [b"", b"P", b" L 1000,4\n", b"\x00" * 4096, b"PAR1PAR1"])
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "else"
        path.write_bytes(content)
        assert "must be" in mistake(path)

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        assert "readable" in mistake(tmp_path / "absent")
        assert "readable" in mistake(tmp_path)

    def test_another_parquet_file(self, tmp_path: Path) -> None:
        pq.write_table(trace.pa.table({"a": [1, 2]}), tmp_path / "t.parquet")
        assert "another kind" in mistake(tmp_path / "t.parquet")

    @given(st.binary(max_size=300))
    @settings(
        max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_garbage_between_the_marks(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "garbage"
        path.write_bytes(b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1")
        mistake(path)

    @given(st.data())
    @settings(
        max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_damage_is_refused_or_harmless(self, tmp_path: Path, data: st.DataObject) -> None:
        sound = tmp_path / "made.simvm-trace"
        if not sound.exists():
            imported(tmp_path, text_of(6, 300))
        content = bytearray(sound.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path = tmp_path / "damaged"
        path.write_bytes(content)
        try:
            open_trace(path).verify()
            found = accesses(path)
        except InvalidInput:
            return
        assert found == accesses(sound)  # a word of the header that no replay uses

    def test_a_page_that_claims_too_much(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(trace, "_MAX_COLUMN_BYTES", 500_000)
        path = tmp_path / "t.simvm-trace"
        with trace_writer.TraceWriter(path) as writer:
            address = np.arange(20_000, dtype=np.uint64) << np.uint64(8)
            writer.append(address, np.zeros(len(address), dtype=np.uint8))
            writer.finish(source="test", program="", command="")
        open_trace(path).verify()
        content = bytearray(path.read_bytes())
        at = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
        assert content[at : at + 3] == b"\x15\x00\x15"
        assert content[at + 4] >= 0x80 > content[at + 5]  # the unpacked size, in three bytes
        content[at + 3 : at + 6] = b"\xfe\xff\x7f"  # now a little under 1 MiB
        path.write_bytes(content)
        assert "unpack to more" in mistake(path)


class TestPageHeaders:
    """Bytes of Thrift's compact protocol, by hand."""

    @staticmethod
    def sizes(data: bytes, length: int | None = None) -> list[int]:
        column = SimpleNamespace(
            data_page_offset=0,
            dictionary_page_offset=None,
            total_compressed_size=len(data) if length is None else length,
        )
        return list(page_sizes(io.BytesIO(data), column))  # type: ignore[arg-type]

    def test_two_pages(self) -> None:
        page = b"\x15\x00\x15\x0a\x15\x04\x00" + b"xx"
        assert self.sizes(page + page) == [5, 5]

    def test_other_fields_are_passed_over(self) -> None:
        nested = b"\x2c" + b"\x15\x02\x18\x02ab\x11\x13\x09\x27" + bytes(8) + b"\x00"
        assert self.sizes(b"\x15\x00\x15\x0a\x15\x00" + nested + b"\x00") == [5]

    @pytest.mark.parametrize(
        "data",
        [b"\x15", b"\x15\x00\x15\x0a\x00", b"\x15\x00\x15\x0a\x15\x7e\x00", b"\x19\x00\x00",
         b"\x15" + b"\xff" * 12, b"\x1c" * 20, b"\x18\xff\x7f"],
    )  # fmt: skip
    def test_nonsense(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="page"):
            self.sizes(data)


def write_parquet(path: Path, columns: Any, header: bytes) -> None:
    """Write the columns of a trace with any header, past the writer's own care."""
    with pq.ParquetWriter(path, trace.SCHEMA, store_schema=False) as writer:
        writer.write_table(trace.pa.table(columns, schema=trace.SCHEMA))
        writer.add_key_value_metadata({"simvm.trace": header})


class TestHostileHeader:
    """Files that are sound Parquet, whose header lies."""

    @staticmethod
    def lie(tmp_path: Path, change: Callable[[dict[str, Any]], object] | bytes) -> Path:
        sound = imported(tmp_path, HAND.read_bytes())
        table = pq.read_table(sound)
        if isinstance(change, bytes):
            text = change
        else:
            header = json.loads(pq.ParquetFile(sound).metadata.metadata[b"simvm.trace"])
            change(header)
            text = json.dumps(header).encode()
        path = tmp_path / "lie.simvm-trace"
        write_parquet(path, table.to_pydict(), text)
        return path

    def test_the_truth_passes(self, tmp_path: Path) -> None:
        path = self.lie(tmp_path, lambda header: None)
        open_trace(path).verify()

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"format": "other"}, "format"),
            ({"version": 2}, "version 1"),
            ({"version": "1"}, "version"),
            ({"loads": 5}, "the file holds 7"),
            ({"loads": 3, "stores": 3}, "the file holds 4, 2, 0, 1"),
            ({"loads": -1}, "loads"),
            ({"loads": 2**63}, "loads"),
            ({"loads": 10**400}, "loads"),
            ({"loads": 4.5}, "loads"),
            ({"loads": True}, "loads"),
            ({"modifies": 2**62}, "the file holds 7"),
            ({"distinct_4k_pages": 5}, "the file holds 4, 3"),
            ({"distinct_4k_pages": 8}, "must fit"),
            ({"distinct_2m_pages": 4}, "the segments have 3"),
            ({"distinct_1g_pages": 4}, "the segments lie in 3"),
            ({"segments": []}, "segments"),
            ({"program": 7}, "program"),
            ({"surprise": 1}, "surprise"),
        ],
    )
    def test_a_lie_is_found(self, tmp_path: Path, changes: dict[str, Any], word: str) -> None:
        assert word in mistake(self.lie(tmp_path, lambda header: header.update(changes)))

    @pytest.mark.parametrize(
        ("index", "segment", "word"),
        [
            (0, (0x400001, 2 << 20), "aligned"),
            (0, (0x400000, 1 << 20), "aligned"),
            (0, (0x400000, 0), "segments"),
            (0, (0x400000, 1 << 62), "segments"),
            (2, (0x7F0000000000, 1 << 39), "at most 262144"),
            (0, (0x400000, 0x1FFE00000 - 0x400000), "ascending"),
            (2, (0x400000, 2 << 20), "ascending"),
            (2, ((1 << 64) - (2 << 20), 4 << 20), "aligned"),
            (2, (1 << 64, 2 << 20), "segments"),
            (2, (0x7F0000200000, 2 << 20), "every page lies in a segment"),
            (0, (0x000000, 2 << 20), "every page lies in a segment"),
        ],
    )
    def test_segments(
        self, tmp_path: Path, index: int, segment: tuple[int, int], word: str
    ) -> None:
        def change(header: dict[str, Any]) -> None:
            header["segments"][index] = dict(zip(("start", "bytes"), segment, strict=True))

        assert word in mistake(self.lie(tmp_path, change))

    @pytest.mark.parametrize(
        "text",
        [b"", b"[]", b"\xff", b"{", b'{"format": "simvm-trace", "version": 1}', b"[" * 99999],
    )
    def test_no_header(self, tmp_path: Path, text: bytes) -> None:
        assert mistake(self.lie(tmp_path, text))

    def test_every_mistake_is_told(self, tmp_path: Path) -> None:
        path = self.lie(tmp_path, lambda header: header.update(loads=-1, stores="x", source=None))
        with pytest.raises(InvalidInput) as caught:
            read_header(path)
        assert {m.key for m in caught.value.mistakes} == {"loads", "stores", "source"}

    @pytest.mark.parametrize(("column", "value"), [("line", 64), ("kind", 4), ("page", -1)])
    def test_contents_out_of_range(self, tmp_path: Path, column: str, value: int) -> None:
        path = imported(tmp_path, HAND.read_bytes())
        header = pq.ParquetFile(path).metadata.metadata[b"simvm.trace"]
        columns = pq.read_table(path).to_pydict()
        columns[column][2] = value
        write_parquet(path, columns, header)
        said = mistake(path)
        assert "lines are below 64, kinds below 4" in said or "every page lies in" in said

    def test_row_groups_larger_than_a_reader_takes(self, tmp_path: Path, monkeypatch: Any) -> None:
        path = imported(tmp_path, HAND.read_bytes())
        monkeypatch.setattr(trace, "ROW_GROUP_ACCESSES", 6)
        assert "row group 0" in mistake(path)

    def test_a_footer_larger_than_a_reader_takes(self, tmp_path: Path, monkeypatch: Any) -> None:
        path = imported(tmp_path, HAND.read_bytes())
        monkeypatch.setattr(parquet_files, "_MAX_FOOTER_BYTES", 100)
        assert "footer" in mistake(path)


class TestInfo:
    def test_against_brute_force(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(
            trace_writer, "ROW_GROUP_ACCESSES", 333
        )  # windows and gaps cross chunks
        text = text_of(7, 3000)
        info = trace_info(imported(tmp_path, text))

        data = [(address >> 12, kind) for address, kind in plain_parse(text) if kind != "I"]
        total = len(data)
        assert info["accesses"] == total
        assert info["distinct_4k_pages"] == len({p for p, _ in data})
        assert info["distinct_2m_pages"] == len({p >> 9 for p, _ in data})
        assert info["distinct_1g_pages"] == len({p >> 18 for p, _ in data})
        assert info["region_bytes"] == info["distinct_2m_pages"] << 21
        assert info["touched_bytes"] == info["distinct_4k_pages"] << 12
        assert info["write_share"] == sum(kind in "SM" for _, kind in data) / total

        last: dict[int, int] = {}
        gaps: list[int] = []
        for i, (page, _) in enumerate(data):
            if page in last:
                gaps.append(i - last[page])
            last[page] = i
        assert info["first_touches"] == len(last)
        for reuse in info["reuse"]:
            low, high = reuse["from_accesses"], reuse["to_accesses"]
            assert high == 2 * low - 1
            assert reuse["touches"] == sum(low <= gap <= high for gap in gaps)
        assert sum(reuse["touches"] for reuse in info["reuse"]) == len(gaps)

        assert len(info["working_set"]) == 20
        end = 0
        for window in info["working_set"]:
            assert window["from_access"] == end
            end = window["to_access"]
            pages = {p for p, _ in data[window["from_access"] : end]}
            assert window["distinct_4k_pages"] == len(pages)
            assert window["cumulative_4k_pages"] == len({p for p, _ in data[:end]})
        assert end == total

    def test_one_access(self, tmp_path: Path) -> None:
        info = trace_info(imported(tmp_path, " S 123456,1\n"))
        assert (info["accesses"], info["write_share"], info["reuse"]) == (1, 1.0, [])
        assert info["working_set"] == [
            {"from_access": 0, "to_access": 1, "distinct_4k_pages": 1, "cumulative_4k_pages": 1}
        ]

    def test_is_json_and_names_no_path(self, tmp_path: Path) -> None:
        text = json.dumps(trace_info(imported(tmp_path, HAND.read_bytes())))
        assert str(tmp_path) not in text


class TestBuiltinTrace:
    def test_is_as_large_as_promised(self) -> None:
        path = builtin_trace()
        header = read_header(path)
        assert path.stat().st_size <= 8 << 20
        assert header.accesses >= 5_000_000
        assert header.distinct_4k_pages >= 16_000
        assert header.program == "sort"
        assert header.malformed_lines == 0

    def test_is_what_its_header_says(self) -> None:
        found = open_trace(builtin_trace())
        found.verify()
        pages = np.concatenate([np.unique(chunk >> np.uint64(13)) for chunk in found.chunks()])
        assert len(np.unique(pages)) == found.header.distinct_4k_pages
        assert int(pages.max()) < found.region_bytes >> 12


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_live_recording(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    recording = tmp_path / "recording"
    subprocess.run(
        ["valgrind", "--tool=lackey", "--trace-mem=yes", f"--log-file={recording}", program],
        check=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        timeout=60,
    )
    header = import_trace(recording, tmp_path / "true.simvm-trace", instructions=True)
    text = recording.read_text()
    assert header.program == "true"
    assert header.malformed_lines == 0
    assert header.instructions == text.count("\nI  ")
    assert header.loads == text.count("\n L ")
    assert header.stores == text.count("\n S ")
    assert header.modifies == text.count("\n M ")
    open_trace(tmp_path / "true.simvm-trace").verify()
