"""From what a model refuses to a mistake that a reader can mend.

A validation error carries a place and a type; here it becomes key, value, rule and
fix, in the words of the file that was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from simvm.errors import did_you_mean
from simvm.scenario.base import chosen_by
from simvm.scenario.models import Scenario
from simvm.scenario.paths import keys_of, models_in

Place = tuple[str, ...]

_EXAMPLES: Final = {
    "schema": "schema = 1",
    "scenario": "[scenario]",
    "host": "[host]",
    "guest": "[guest.web]",
    "name": 'name = "web"',
    "cpu": 'cpu = "sapphire_rapids"',
    "cores": "cores = 32",
    "memory": 'memory = "8GiB"',
    "region": 'region = "heap"',
    "exponent": "exponent = 0.99",
    "stride": 'stride = "4KiB"',
    "hot_fraction": "hot_fraction = 0.1",
    "hot_share": "hot_share = 0.9",
    "drift": "drift = 10",
    "file": 'file = "builtin"',
    "page_size": 'page_size = "2MiB"',
    "size": 'size = "32GiB"',
}

_NOT_MODELLED: Final = {
    ("host", "node"): ("not modelled: the host is one node", "remove [[host.node]]"),
}
"""Keys that belong to the vocabulary and are refused by name."""


def place_of(error: ErrorDetails, tree: Mapping[str, Any]) -> Place:
    """Where an error stands: keys of the file, phases by name."""
    parts: list[str] = []
    at: Any = tree
    for part in error["loc"]:
        if isinstance(part, int):
            item = at[part] if isinstance(at, list) and part < len(at) else None
            name = item.get("name") if isinstance(item, Mapping) else None
            parts.append(name if isinstance(name, str) else str(part))
            at = item
        elif part == "[key]":
            continue
        else:
            parts.append(str(part))
            at = at.get(part) if isinstance(at, Mapping) else None
    return tuple(parts)


def explain(error: ErrorDetails, tree: Mapping[str, Any]) -> tuple[str, str]:
    """The rule that is broken, and the fix."""
    kind, context = error["type"], error.get("ctx", {})
    key = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "mistake":
        return str(context["rule"]), str(context["fix"])
    if kind == "missing":
        return "is required", f"add {_EXAMPLES.get(key, key)}"
    if kind == "extra_forbidden":
        return _unknown(error, tree)
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "must be a table", f"write [{key}] or {key} = {{ ... }}"
    if kind in ("tuple_type", "list_type"):
        return "must be a list of tables", f"write [[{'.'.join(map(str, error['loc']))}]]"
    if kind == "too_short":
        return "must not be empty", f"add {_EXAMPLES.get(key, key)}"
    return error["msg"], "correct the value"


def _unknown(error: ErrorDetails, tree: Mapping[str, Any]) -> tuple[str, str]:
    loc = tuple(str(part) for part in error["loc"])
    if loc in _NOT_MODELLED:
        return _NOT_MODELLED[loc]
    known = keys_of(_models_at(error["loc"][:-1], tree))
    return "no such key here", did_you_mean(loc[-1], sorted(known))


def _models_at(loc: tuple[int | str, ...], tree: Any) -> list[type[BaseModel]]:
    """The models that the table at `loc` may be, by the words that stand in it."""
    models: list[type[BaseModel]] = [Scenario]
    named = False
    for part in loc:
        tree = tree[part]
        if named:  # the name of a class, the number of a phase
            named = False
            continue
        models = models_in(keys_of(models).get(str(part)))
        named = part in ("guest", "workload")
    return [model for model in models if chosen_by(tree, model)] or models


def shown(value: Any) -> str:
    """A value as the file writes it, shortened."""
    if isinstance(value, str):
        text = '"' + value[:100].replace("\n", "\\n") + '"'
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int):
        text = str(value) if abs(value) < 1 << 200 else "a huge number"
    elif value is None:
        return ""
    elif isinstance(value, Mapping):
        text = "{ " + ", ".join(str(key)[:20] for key in list(value)[:6]) + " }"
    elif isinstance(value, list | tuple):
        text = f"a list of {len(value)}"
    else:
        text = str(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 80 else text[:77] + "..."
