"""The stub `simvm/_core.pyi` says what the compiled core has: names, kinds and parameters.

Constructors are compared with the sources, for the compiled core does not show theirs.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from simvm import _core

PACKAGE = Path(__file__).resolve().parents[1] / "simvm"
IMPORTED = {"namedtuple", "np"}

Parameters = dict[str, object]
"""Defaults by name, in order; `inspect.Parameter.empty` where there is none."""


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def stub_nodes(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or a class of the stub declares, by name (a setter over its property)."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


STUB = stub_nodes(ast.parse((PACKAGE / "_core.pyi").read_text(encoding="utf-8")).body)
CLASSES = {name: node for name, node in STUB.items() if isinstance(node, ast.ClassDef)}
EXTENSION_TYPES = sorted(CLASSES.keys() - {"Leaf"})


def decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def stub_kind(node: ast.stmt) -> str:
    if not isinstance(node, ast.FunctionDef):
        return "value"
    names = decorators(node)
    if "classmethod" in names:
        return "class method"
    return "value" if "property" in names or f"{node.name}.setter" in names else "method"


def core_kind(member: object) -> str:
    if isinstance(member, classmethod):
        return "class method"
    return "method" if callable(member) else "value"


def stub_parameters(node: ast.stmt) -> Parameters:
    assert isinstance(node, ast.FunctionDef)
    assert node.args.posonlyargs == node.args.kwonlyargs == []
    names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
    defaults = [ast.literal_eval(value) for value in node.args.defaults]
    missing = [inspect.Parameter.empty] * (len(names) - len(defaults))
    return dict(zip(names, [*missing, *defaults], strict=True))


def core_parameters(function: object) -> Parameters:
    assert callable(function)
    parameters = inspect.signature(function).parameters
    return {name: each.default for name, each in parameters.items() if name != "self"}


def source_parameters(class_: str) -> Parameters:
    """The parameters of `__cinit__`, without their C types."""
    sources = [PACKAGE / "_core.pyx", *sorted(PACKAGE.glob("core/*.pxi"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    _, _, body = text.partition(f"cdef class {class_}:")
    found = re.search(r"def __cinit__\(self, ([^)]*)\)", body)
    assert found is not None
    parameters: Parameters = {}
    for parameter in found[1].split(","):
        declared, _, default = parameter.partition("=")
        name = declared.split()[-1]
        parameters[name] = ast.literal_eval(default) if default else inspect.Parameter.empty
    return parameters


def test_the_stub_and_the_core_have_the_same_names() -> None:
    assert public(list(STUB)) == public(dir(_core)) - IMPORTED


def test_the_stub_tells_constants_functions_and_classes_apart() -> None:
    for name, node in STUB.items():
        found = getattr(_core, name)
        if isinstance(node, ast.ClassDef):
            assert inspect.isclass(found), name
        elif isinstance(node, ast.FunctionDef):
            assert core_parameters(found) == stub_parameters(node), name
        else:
            assert type(found) is int, name


@pytest.mark.parametrize("name", EXTENSION_TYPES)
def test_a_class_of_the_stub_has_the_members_of_its_class(name: str) -> None:
    members = vars(getattr(_core, name))
    declared = stub_nodes(CLASSES[name].body)
    assert public(list(declared)) == public(list(members))
    for member in public(list(declared)):
        assert stub_kind(declared[member]) == core_kind(members[member]), member
        if stub_kind(declared[member]) != "value":
            found = core_parameters(getattr(getattr(_core, name), member))
            assert list(found.items()) == list(stub_parameters(declared[member]).items()), member


@pytest.mark.parametrize("name", EXTENSION_TYPES)
def test_a_class_of_the_stub_is_made_as_its_class_is(name: str) -> None:
    declared = stub_parameters(stub_nodes(CLASSES[name].body)["__init__"])
    assert list(declared.items()) == list(source_parameters(name).items())


def test_a_leaf_has_the_fields_that_the_stub_says_in_order() -> None:
    assert _core.Leaf._fields == tuple(stub_nodes(CLASSES["Leaf"].body))
