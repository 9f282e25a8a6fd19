"""From a TOML file to scenarios: settings and variants applied, every mistake reported.

Later wins: file, ``--set``, variant. The tables of the file are changed first and
validated once, so a value that came from a setting obeys the same rules, and each
value knows where it came from. Paths of files are relative to the file that names
them; those of a setting to the current folder.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from simvm.errors import InvalidInput, Mistake, did_you_mean
from simvm.hardware.load import is_path
from simvm.scenario import dump
from simvm.scenario.check import findings
from simvm.scenario.fields import FROM_TEXT
from simvm.scenario.mistakes import Place, explain, place_of, shown
from simvm.scenario.models import (
    BUILTIN_TRACE,
    MAX_CLASSES,
    MAX_PHASES,
    MAX_VARIANTS,
    Scenario,
    with_names,
)
from simvm.scenario.paths import PathError, assign, check_summary_path, parse, parse_setting

BASE: Final = "base"

MAX_FILE_BYTES: Final = 4 << 20
_MAX_DOTS: Final = 64
_MAX_DEPTH: Final = 16
_MAX_MISTAKES: Final = 200
_MAX_PARTS: Final = 50_000

# What stands in for a value with a mistake, so that the rules between the others can be checked.
_STAND_INS: Final[dict[str, Any]] = {
    "schema": 1,
    "name": "x",
    "cpu": "sapphire_rapids",
    "cores": 1,
    "memory": "8GiB",
    "memory_max": "8GiB",
    "pattern": {"kind": "uniform"},
    "usage": {"kind": "diurnal", "low": "4KiB", "high": "4KiB"},
}


@dataclass
class _Draft:
    """Raw tables on their way to a scenario, and where each value came from."""

    file: str
    tree: dict[str, Any]
    origins: dict[Place, str] = field(default_factory=dict)
    written: dict[Place, str] = field(default_factory=dict)
    """Paths of files as they were written, before they were made absolute."""
    variant: str | None = None
    text: bool = True
    """Whether the tables are a file's, where a quantity needs its unit."""
    mistakes: list[Mistake] = field(default_factory=list)

    def refuse(self, place: Place, value: str, rule: str, fix: str) -> None:
        """Note a mistake, in the words of what brought the value."""
        origin = self.origin(place)
        if origin == "--set":
            where, key = "--set", ".".join(place)
        elif origin.startswith("variant "):
            where, key = self.file, f'variant.{self.variant}."{".".join(place)}"'
        else:
            where, key = self.file, ".".join(f'"{p}"' if "." in p else p for p in place)
            if self.variant:
                key += f" (variant {self.variant})"
        self.mistakes.append(Mistake(where, key, value, rule, fix))

    def origin(self, place: Place) -> str:
        """What gave the value at `place`: the file, a setting, a variant, or a default."""
        for length in range(len(place), 1, -1):
            if place[:length] in self.origins:
                return self.origins[place[:length]]
        return "file" if _lookup(self.tree, place) is not None else "default"


# --- reading ----------------------------------------------------------------------------


def read_tables(path: Path | str) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises
    ------
    InvalidInput
        It cannot be read, is too large, or is no TOML.
    """
    path = Path(path)

    def refuse(rule: str, fix: str, value: str = "") -> InvalidInput:
        return InvalidInput([Mistake(str(path), "", value, rule, fix)])

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        near = _near_files(path)
        fix = f"did you mean {near}?" if near else "correct the path"
        raise refuse(f"cannot be read: {reason}", fix) from None
    if len(data) > MAX_FILE_BYTES:
        raise refuse("a scenario has 4 MiB at most", "name a scenario")
    # The time that tomllib takes grows with the square of the length of a dotted key.
    if any(line.count(b".") > _MAX_DOTS for line in data.splitlines()):
        raise refuse(f"a line has more than {_MAX_DOTS} dots", "shorten the line")
    try:
        tree = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise refuse(f"must be UTF-8 text ({error.reason})", "name a TOML file") from None
    except RecursionError:
        raise refuse("tables and lists are nested too deeply", "flatten them") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise refuse(f"must be TOML: {reason}", _syntax_fix(reason)) from None
    if _depth(tree) > _MAX_DEPTH:
        raise refuse("tables and lists are nested too deeply", "flatten them")
    for key, most, found in _sizes(tree):
        if found > most:
            raise refuse(f"there are {most} of {key} at most", "divide the scenario", str(found))
    return tree


def _sizes(tree: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """What there may be too many of: its name, the most, and how many there are."""
    guests, changes = tree.get("guest"), tree.get("variant")
    runs, phases_in_all = 1, 0
    if isinstance(changes, Mapping):
        runs += len(changes)
        yield "variant", MAX_VARIANTS, len(changes)
    if isinstance(guests, Mapping):
        yield "guest", MAX_CLASSES, len(guests)
        for name, guest in guests.items():
            phases = guest.get("workload") if isinstance(guest, Mapping) else None
            if isinstance(phases, list):
                yield f"guest.{name[:64]}.workload", MAX_PHASES, len(phases)
                phases_in_all += len(phases)
        yield "classes and phases in all variants", _MAX_PARTS, (
            runs * (len(guests) + phases_in_all)
        )


def _near_files(path: Path) -> str | None:
    try:
        names = [item.name for item in path.parent.iterdir() if item.suffix == ".toml"]
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return str(path.with_name(near[0])) if near else None


def _syntax_fix(reason: str) -> str:
    if "Invalid value" in reason:
        return "put texts, sizes and times in double quotes"
    if "Cannot overwrite" in reason or "declare" in reason:
        return "keep one of the two"
    return "correct the syntax"


def _depth(tree: Any) -> int:
    depth, level = 0, [tree]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        below: list[Any] = []
        for item in level:
            inside = item.values() if isinstance(item, dict) else item
            below += [value for value in inside if isinstance(value, dict | list)]
        level = below
    return depth


def _lookup(tree: Any, place: Iterable[str]) -> Any:
    """The raw value at `place`, phases by name; None if there is none."""
    at = tree
    for part in place:
        if isinstance(at, list):
            named = [item for item in at if isinstance(item, Mapping) and item.get("name") == part]
            if not named and part.isdecimal() and len(part) < 10 and int(part) < len(at):
                named = [at[int(part)]]
            at = named[0] if named else None
        elif isinstance(at, Mapping):
            at = at.get(part)
        else:
            return None
    return at


# --- drafting ---------------------------------------------------------------------------


def _draft(path: Path, tree: Mapping[str, Any], sets: Sequence[str], variant: str | None) -> _Draft:
    """The tables of the base, or of one variant, with settings applied."""
    draft = _Draft(str(path), copy.deepcopy(dict(tree)), variant=variant)
    given = draft.tree
    guests = given.get("guest")
    for name, guest in guests.items() if isinstance(guests, Mapping) else ():
        if isinstance(guest, dict) and isinstance(guest.get("workload"), list):
            named = with_names(guest["workload"])
            for before, after in zip(guest["workload"], named, strict=True):
                if before is not after:
                    draft.origins["guest", str(name), "workload", str(after["name"]), "name"] = (
                        "default"
                    )
            guest["workload"] = named
    for text in sets:
        try:
            place, value = parse_setting(text)
            assign(given, place, value)
            draft.origins[place] = "--set"
        except PathError as error:
            draft.mistakes.append(Mistake("--set", text[:80], "", error.rule, error.fix))
    if variant is not None:
        _apply(draft, given.get("variant"), variant)
    _resolve_files(draft, path.parent)
    return draft


def _apply(draft: _Draft, variants: Any, name: str) -> None:
    changes = variants.get(name) if isinstance(variants, Mapping) else None
    for text, value in changes.items() if isinstance(changes, Mapping) else ():
        try:
            place = parse(text)
            assign(draft.tree, place, copy.deepcopy(value))
            draft.origins[place] = f"variant {name}"
        except PathError as error:
            key = f'variant.{name}."{text[:80]}"'
            draft.mistakes.append(Mistake(draft.file, key, shown(value), error.rule, error.fix))


def _resolve_files(draft: _Draft, folder: Path) -> None:
    """Make the paths of a CPU's file, of traces and of usage files absolute."""
    places: list[tuple[Place, dict[str, Any], str]] = []
    host = draft.tree.get("host")
    if isinstance(host, dict) and isinstance(host.get("cpu"), str) and is_path(host["cpu"]):
        places.append((("host", "cpu"), host, "cpu"))
    guests = draft.tree.get("guest")
    for name, guest in guests.items() if isinstance(guests, Mapping) else ():
        phases = guest.get("workload") if isinstance(guest, Mapping) else None
        for phase in phases if isinstance(phases, list) else ():
            for key, table in _tables_with_file(phase):
                at = ("guest", str(name), "workload", str(phase.get("name")), key, "file")
                places.append((at, table, "file"))
    for place, table, key in places:
        draft.written[place] = table[key]
        start = Path() if draft.origin(place) == "--set" else folder
        try:
            table[key] = str((start / table[key]).resolve())
        except (OSError, ValueError):
            draft.refuse(place, shown(table[key]), "must be the path of a file", "correct the path")
            table[key] = BUILTIN_TRACE if key == "file" else _STAND_INS["cpu"]


def _tables_with_file(phase: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of a phase that name a file, with their keys."""
    for key, kinds in (("pattern", ("trace",)), ("usage", ("recorded", None))):
        table = phase.get(key) if isinstance(phase, Mapping) else None
        if isinstance(table, dict) and table.get("kind") in kinds:
            file = table.get("file")
            if isinstance(file, str) and (key, file) != ("pattern", BUILTIN_TRACE):
                yield key, table


# --- validating -------------------------------------------------------------------------


def _validate(draft: _Draft) -> Scenario | None:
    """The scenario, with every mistake noted in the draft; None if there were any."""
    tree = dict(draft.tree)
    if draft.variant is not None:
        tree.pop("variant", None)
        tree.pop("expect", None)
    faulty: set[Place] = set()
    scenario: Scenario | None = None
    for attempt in range(4):
        try:
            scenario = Scenario.model_validate(tree, context={FROM_TEXT: draft.text})
            break
        except ValidationError as error:
            details = error.errors(include_url=False)[:_MAX_MISTAKES]
        given, tree = tree, copy.deepcopy(tree)
        for detail in details:
            place = place_of(detail, given)
            if place[:2] == ("expect", BASE) and BASE not in draft.tree["expect"]:
                place = ("expect", *place[2:])
            faulty.add(place)
            if attempt == 0 and not _echo(place, draft.tree, details):
                rule, fix = explain(detail, given)
                value = draft.written.get(place, _lookup(draft.tree, place))
                draft.refuse(place, shown(value), rule, fix)
            _stand_in(tree, place)
    if scenario is None:
        return None
    _check_tables(draft, scenario)
    for finding in findings(scenario):
        place = tuple(finding.key.split("."))
        used = [place, *(tuple(use.split(".")) for use in finding.uses)]
        if any(_overlap(use, bad) for use in used for bad in faulty):
            continue
        value = draft.written.get(place, _lookup(draft.tree, place))
        draft.refuse(place, shown(value), finding.rule, finding.fix)
    return scenario if not draft.mistakes else None


def _echo(place: Place, tree: Mapping[str, Any], details: Sequence[Any]) -> bool:
    """Whether the place was filled from another that has the mistake."""
    if place[-1:] != ("memory_max",) or _lookup(tree, place) is not None:
        return False
    return any(place_of(detail, tree) == (*place[:-1], "memory") for detail in details)


def _overlap(a: Place, b: Place) -> bool:
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]


def _stand_in(tree: dict[str, Any], place: Place) -> None:
    """Replace what has a mistake by something valid, or take it out."""
    if not place:
        return
    if place == ("host",) or place == ("scenario",):
        tree[place[0]] = {}
        return
    if place[0] == "guest" and len(place) < 3:
        tree["guest"] = {"x": {"memory": "8GiB"}}
        return
    if place[0] == "expect":
        tree.pop("expect", None)
        return
    if place[0] == "guest" and len(place) in (3, 4, 5) and place[2] == "workload":
        required = place[-1] in ("name", "region", "workload") or len(place) < 5
        guest = _lookup(tree, place[:2])
        if required and isinstance(guest, dict):
            guest["workload"] = []
            return
    for key in ("pattern", "usage"):
        if key in place:
            place = place[: place.index(key) + 1]
    parent = _lookup(tree, place[:-1])
    if isinstance(parent, dict):
        parent.pop(place[-1], None)
        if place[-1] in _STAND_INS:
            parent[place[-1]] = _STAND_INS[place[-1]]
        elif place[-1] in ("page_size", "size") and place[-2] == "hugetlb":
            _stand_in(tree, place[:-1])


def _check_tables(draft: _Draft, scenario: Scenario) -> None:
    """The paths of ``[variant]`` and ``[expect]``; only the base has these tables."""
    if draft.variant is not None:
        return
    if BASE in scenario.variants:
        rule, fix = '"base" is the scenario without a variant', "choose another name"
        draft.mistakes.append(Mistake(draft.file, f"variant.{BASE}", "", rule, fix))
    written = draft.tree.get("expect", {})
    for variant, expected in scenario.expect.items():
        key = f"expect.{variant}" if variant in written else "expect"
        if variant not in (BASE, *scenario.variants):
            rule, fix = "no such variant", did_you_mean(variant, [BASE, *scenario.variants])
            if variant in ("guest", "host"):
                fix = f'put the path in quotes, such as "{variant}.slowdown"'
            draft.mistakes.append(Mistake(draft.file, key, "", rule, fix))
            continue
        for path, condition in expected.items():
            try:
                check_summary_path(parse(path), draft.tree)
            except PathError as error:
                where = f'{key}."{path[:80]}"'
                draft.mistakes.append(
                    Mistake(draft.file, where, shown(condition), error.rule, error.fix)
                )


# --- what callers use -------------------------------------------------------------------


def _all(path: Path, sets: Sequence[str]) -> tuple[dict[str, Scenario], list[Mistake]]:
    """The base and every variant, and every mistake of them, each once."""
    tree = read_tables(path)
    base = _draft(path, tree, sets, None)
    first = _validate(base)
    mistakes = list(base.mistakes)
    found = {BASE: first} if first is not None else {}
    # A variant that shares a mistake of the base need not repeat it.
    said = {(mistake.key, mistake.rule) for mistake in mistakes}
    names = tree.get("variant")
    for name in names if isinstance(names, Mapping) else ():
        draft = _draft(path, tree, sets, str(name))
        scenario = _validate(draft)
        for mistake in draft.mistakes:
            plain = mistake.key.removesuffix(f" (variant {name})")
            if (plain, mistake.rule) not in said and (mistake.key, mistake.rule) not in said:
                said.add((mistake.key, mistake.rule))
                mistakes.append(mistake)
        if scenario is not None:
            expected = first.expect.get(str(name), {}) if first is not None else {}
            found[str(name)] = scenario.model_copy(
                update={"variants": {}, "expect": {BASE: expected} if expected else {}}
            )
    return found, mistakes


def check(path: Path | str, sets: Sequence[str] = ()) -> list[Mistake]:
    """Every mistake of a file, its base and its variants; none if all is well."""
    try:
        return _all(Path(path), sets)[1]
    except InvalidInput as error:
        return list(error.mistakes)


def load(path: Path | str, sets: Sequence[str] = ()) -> Scenario:
    """The base scenario of a file with its variants, when all of them are valid.

    Parameters
    ----------
    sets
        Settings ``PATH=VALUE`` that replace what the file says.

    Raises
    ------
    InvalidInput
        The file, a setting or a variant has mistakes.
    """
    found, mistakes = _all(Path(path), sets)
    if mistakes:
        raise InvalidInput(mistakes)
    return found[BASE]


def variants(path: Path | str, sets: Sequence[str] = ()) -> dict[str, Scenario]:
    """The base and every variant of a file, resolved, in the order of the file.

    Raises
    ------
    InvalidInput
        As :func:`load`.
    """
    found, mistakes = _all(Path(path), sets)
    if mistakes:
        raise InvalidInput(mistakes)
    found[BASE] = _alone(found[BASE])
    return found


def resolve(path: Path | str, sets: Sequence[str] = (), variant: str | None = None) -> Scenario:
    """One scenario of a file, without the others: the base, or a variant.

    Raises
    ------
    InvalidInput
        As :func:`load`, or there is no such variant.
    """
    found = variants(path, sets)
    name = variant if variant is not None else BASE
    if name not in found:
        raise InvalidInput([_no_variant(str(path), name, found)])
    return found[name]


def show(
    path: Path | str, sets: Sequence[str] = (), variant: str | None = None
) -> list[tuple[str, str, str]]:
    """Every value of a resolved scenario: its path, its text, and where it came from.

    The origin is "file", "--set", "variant NAME", "default", "CPU", or "cost set".

    Raises
    ------
    InvalidInput
        As :func:`resolve`.
    """
    path = Path(path)
    scenario = resolve(path, sets, variant)
    name = None if variant in (None, BASE) else variant
    draft = _draft(path, read_tables(path), sets, name)
    rows = []
    defaults = dump.defaults(scenario)
    for place, text in _with_defaults(scenario, defaults):
        origin = draft.origin(place)
        if place in draft.written:
            text = shown(draft.written[place])
        if place[-1] == "memory_max" and origin == "default":
            origin = "memory"
        if place in defaults:
            _, origin = defaults[place]
        rows.append((".".join(place), text, origin))
    return rows


def _with_defaults(
    scenario: Scenario, defaults: Mapping[Place, tuple[str, str]]
) -> Iterator[tuple[Place, str]]:
    """All values, with what the scenario leaves to other sets after the others of its table."""
    pending = {place: text for place, (text, _) in defaults.items()}
    previous: Place = ()
    for place, text in dump.values(scenario):
        if place[:-1] != previous[:-1]:
            for other in [other for other in pending if other[:-1] == previous[:-1]]:
                yield other, pending.pop(other)
        yield place, text
        previous = place
    yield from pending.items()


def with_values(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """A copy of `scenario` with other values, by path: ``{"guest.web.count": 8}``.

    Raises
    ------
    InvalidInput
        A path leads nowhere, or the result has mistakes.
    """
    tree = dump.tables(scenario)
    draft = _Draft("", tree, text=False)
    for text, value in changes.items():
        try:
            assign(tree, parse(text), copy.deepcopy(value))
        except PathError as error:
            draft.mistakes.append(Mistake("", text[:80], shown(value), error.rule, error.fix))
    changed = _validate(draft)
    if changed is None:
        raise InvalidInput(draft.mistakes)
    return changed


def _alone(scenario: Scenario) -> Scenario:
    """The base without its variants, and with its own expectations only."""
    expected = scenario.expect.get(BASE, {})
    return scenario.model_copy(
        update={"variants": {}, "expect": {BASE: expected} if expected else {}}
    )


def _no_variant(file: str, name: str, found: Mapping[str, Scenario]) -> Mistake:
    return Mistake(file, "--variant", shown(name), "no such variant", did_you_mean(name, found))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file."""
    return Scenario.model_json_schema(by_alias=True)
