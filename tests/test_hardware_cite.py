"""What `hardware cite` prints: BibTeX that parses, and every figure with its source or range."""

import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from simvm import hardware
from simvm.hardware.cite import COSTS
from simvm.hardware.figures import CHOICE, spelled

SETS = (*hardware.names(), COSTS)


class Reader:
    """A strict reader of BibTeX: what it does not expect is an error."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.at)
        assert found, f"no {pattern} at {self.text[self.at : self.at + 60]!r}"
        self.at = found.end()
        return found[0]

    def entries(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Type, key and fields of each entry; between them no at sign."""
        while True:
            self.take(r"[^@]*")
            if self.at == len(self.text):
                return
            kind = self.take(r"@[a-z]+\{")[1:-1]
            key = self.take(r"[A-Za-z][A-Za-z0-9_:.+-]*,\n")[:-2]
            fields: dict[str, str] = {}
            while not self.text.startswith("}\n", self.at):
                name = self.take(r"  [A-Za-z]+ = \{")[2:-4]
                assert name not in fields
                fields[name] = self.value()
                self.take(r",\n")
            self.take(r"\}\n")
            yield kind, key, fields

    def value(self) -> str:
        """Up to the brace that closes, as BibTeX counts them: a backslash hides none."""
        depth, start = 1, self.at
        while depth:
            letter = self.text[self.at]
            assert letter != "\n"
            depth += (letter == "{") - (letter == "}")
            self.at += 1
        return self.text[start : self.at - 1]


def parsed(*names: str) -> dict[str, tuple[str, dict[str, str]]]:
    entries = list(Reader(hardware.to_bibtex(hardware.cite(names))).entries())
    keys = [key for _kind, key, _fields in entries]
    assert len({key.lower() for key in keys}) == len(keys)  # BibTeX does not tell case
    return {key: (kind, fields) for kind, key, fields in entries}


def stated(text: str) -> dict[str, str]:
    """The comments: by figure, what is said of it."""
    lines = [line for line in text.splitlines() if line.startswith("% ")]
    found = [re.fullmatch(r"% (\w+\.[\w.+#]+)(?: = |: )(.+)", line) for line in lines]
    return {each[1]: each[2] for each in found if each}


def numbers(table: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure of a file, straight from its TOML: its place and its table."""
    for key, value in table.items():
        if key == "source" and not at:
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                label = str(item.get("level") or "+".join(item["orders"]))
                yield from numbers(item, (*at, key, label))
        elif isinstance(value, dict) and "tag" in value:
            yield ".".join((*at, key)), value
        elif isinstance(value, dict):
            yield from numbers(value, (*at, key))


def test_every_figure_of_every_set_is_cited_or_a_range() -> None:
    text = hardware.to_bibtex(hardware.cite())
    found, entries = stated(text), parsed()
    for name in SETS:
        parameters = (
            hardware.load_costs().parameters if name == COSTS
            else hardware.load_cpu(name).parameters
        )  # fmt: skip
        for parameter in parameters.values():
            said = found.pop(f"{name}.{parameter.name}")
            if parameter.tag == "range":
                assert said.startswith(f"a range, {parameter.lo} to {parameter.hi} ")
                assert f"(nominal {parameter.value})" in said
            elif parameter.tag == "assumed":
                assert f": assumed: {parameter.why}" in said
            else:
                cited = re.search(r"\\cite\{([^}]+)\}", said)
                assert cited
                assert cited[1] in entries
                assert cited[1] == parameter.cites
            if parameter.tag != "range":
                unit = "" if parameter.unit == CHOICE else f" {parameter.unit}"
                assert re.match(rf"{spelled(parameter.value)}{re.escape(unit)}(:| \()", said)
    assert found == {}


@pytest.mark.parametrize("name", SETS)
def test_no_figure_of_the_file_is_left_out(name: str) -> None:
    data = files("simvm.hardware").joinpath("data", f"{name}.toml").read_bytes()
    found = stated(hardware.to_bibtex(hardware.cite([name])))
    figures = dict(numbers(tomllib.loads(data.decode())))
    assert len(figures) >= 15
    for place, table in figures.items():
        said = found[f"{name}.{place.removeprefix('costs.')}"]
        if table["tag"] in ("range", "assumed"):
            assert table["why"] in said
        else:
            assert f"\\cite{{{table['source']}}}" in said
        for key in ("v", "lo", "hi"):
            if key in table and table[key] != "full":
                assert re.search(rf"\b{spelled(table[key])}\b", said), (place, said)


def test_each_source_is_one_entry_with_its_text() -> None:
    entries = parsed()
    cited = set(re.findall(r"\\cite\{([^}]+)\}", hardware.to_bibtex(hardware.cite())))
    assert set(entries) == cited
    for kind, fields in entries.values():
        assert kind in ("misc", "manual", "inproceedings")
        assert fields["title"].startswith("{")
        assert fields["note"]
    notes = [fields["note"] for _kind, fields in entries.values()]
    assert len(set(notes)) == len(notes)
    assert entries["arora"][1]["author"] == "A. Arora"


def test_keys_do_not_depend_on_what_is_cited_beside() -> None:
    everything = parsed()
    for name in SETS:
        for key, entry in parsed(name).items():
            assert everything[key] == entry
    assert set(parsed("zen2", "zen2")) == set(parsed("zen2"))


OWN = """
inherits = "zen4"
part = "mine @ home"
frequency = { v = 3_000_000, unit = "kHz", tag = "text", source = "zen4_tlb", why = "a\\nb @ c" }
[source.zen4_tlb]
type = "Misc"
title = "100 % {of} a_b & \\\\c # $ ~ ^"
url = "https://example.org/a_b%20{c}"
year = 2024
text = "open { brace"
"""


def test_a_file_of_ones_own_is_cited_with_its_own_fields(tmp_path: Path) -> None:
    path = tmp_path / "my cpu.toml"
    path.write_text(OWN)
    entries = parsed("zen4", str(path))
    kind, fields = entries["zen4_tlb-my-cpu"]  # the key is that of another source already
    assert kind == "misc"
    assert fields["title"] == (
        r"{100 \% \textbraceleft{}of\textbraceright{} a\_b \& \textbackslash{}c \# \$"
        r" \textasciitilde{} \textasciicircum{}}"
    )
    assert fields["url"] == "https://example.org/a_b%20%7Bc%7D"
    assert fields["year"] == "2024"
    assert fields["note"] == r"open \textbraceleft{} brace"
    assert entries["zen4_tlb"] == parsed("zen4")["zen4_tlb"]
    text = hardware.to_bibtex(hardware.cite(["zen4", str(path)]))
    own = [line for line in text.splitlines() if line.startswith("% my cpu.frequency")]
    assert own == [
        r"% my cpu.frequency = 3000000 kHz: \cite{zen4_tlb-my-cpu}, text: a b at c"
    ]
    assert parsed(str(path))["zen4_tlb"][1]["year"] == "2024"


def test_as_plain_data() -> None:
    data = hardware.to_json(hardware.cite(["skylake_sp", "costs"]))
    figures = {(each["set"], each["name"]): each for each in data["figures"]}
    assert figures["skylake_sp", "l2_penalty"]["source"] == "skylake_sp_tlb"
    assert figures["skylake_sp", "nested_tlb.entries"]["source"] is None
    assert figures["costs", "zap_4k"]["lo"] == 50
    sources = {each["key"]: each for each in data["sources"]}
    assert sources["hyperalloc"]["year"] == "2025"
    assert sources["intel_sdm"]["type"] == "manual"
