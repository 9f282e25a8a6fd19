"""The one-way imports between the parts of simvm, the length of its modules, its own words only.

Imports are read from the syntax tree, those inside functions too; an import of `a.b` loads `a` and
`a.b`. Imports for type checkers alone do not count. Where a rule says that a part does not reach
another, that holds through any number of modules in between.
"""

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simvm"
LONGEST = 600
PLOTTING = {"altair", "vl_convert", "matplotlib", "plotly", "bokeh"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {*FILES, "simvm._core"}


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = iter(node.orelse)
    for child in children:
        yield from import_nodes(child)


def with_parents(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b` and `a`, without the root of the package itself, whose names are lazy."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        parent = ".".join(parts[:length])
        if parent != "simvm":
            yield parent


@cache
def named_imports(module: str) -> frozenset[str]:
    """The modules that `module` names in its imports, of simvm and others."""
    if module not in FILES:
        return frozenset()
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in import_nodes(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        else:
            ancestors = package.split(".")
            base = ".".join(ancestors[: len(ancestors) - node.level + 1]) if node.level else ""
            origin = ".".join(name for name in (base, node.module) if name)
            inner = {f"{origin}.{alias.name}" for alias in node.names} & MODULES
            found.update(inner or {origin})
    return frozenset(found - {"simvm", module})


def imports_of(module: str) -> set[str]:
    """The modules that `module` names, with their parents, which are imported before them."""
    return {parent for name in named_imports(module) for parent in with_parents(name)}


def reached_from(module: str) -> set[str]:
    """All that importing `module` may import in turn."""
    reached: set[str] = set()
    pending = [*with_parents(module)]
    while pending:
        current = pending.pop()
        if current not in reached:
            reached.add(current)
            pending.extend(imports_of(current))
    return reached


def part(name: str) -> set[str]:
    """The modules of `simvm.<name>`: a module, or a package with all in it."""
    whole = f"simvm.{name}"
    return {module for module in FILES if module == whole or module.startswith(f"{whole}.")}


def importers_of(targets: Iterable[str]) -> set[str]:
    wanted = set(targets)
    return {module for module in FILES if imports_of(module) & wanted}


def test_the_core_imports_nothing_of_simvm_but_its_own_headers() -> None:
    sources = [*PACKAGE.glob("_core.px*"), *PACKAGE.glob("core/*.px*")]
    assert sources
    for path in sources:
        for line in path.read_text(encoding="utf-8").splitlines():
            imported = re.match(r"\s*(?:c?import|from)\s+(simvm[\w.]*)", line)
            if imported:
                assert "cimport" in line, f"{path.name}: {line}"
                assert re.match(r"simvm\.(core|_core)\b", imported[1]), f"{path.name}: {line}"


@pytest.mark.parametrize("name", ["scenario", "hardware", "errors", "units"])
def test_inputs_are_read_without_simpy_and_without_the_core(name: str) -> None:
    modules = part(name)
    assert modules
    for module in modules:
        assert not reached_from(module) & {"simpy", "simvm._core", "simvm.model"}, module


def test_only_the_model_imports_simpy() -> None:
    importers = importers_of({"simpy"})
    assert importers
    assert importers <= part("model")


def test_reports_and_comparisons_never_reach_the_model() -> None:
    readers = part("report") | part("study.compare")
    assert readers
    for module in readers:
        assert not reached_from(module) & {"simpy", "simvm._core", "simvm.model"}, module


def test_nothing_imports_the_command_line() -> None:
    assert part("cli")
    assert importers_of(part("cli")) - part("cli") <= {"simvm.__main__"}


def test_only_reports_import_a_plotting_library() -> None:
    importers = importers_of(PLOTTING)
    assert importers
    assert importers <= part("report")


def test_imports_go_one_way() -> None:
    graph = {module: named_imports(module) for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


def repository_files() -> list[Path]:
    """The files of the project: what git tracks or would, else what a source tree holds."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if (ROOT / ".git").exists() and listing.returncode == 0:
        return [ROOT / name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]
    left_out = {".venv", ".hypothesis", ".pytest_cache", "build", "runs", "_build", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not left_out.intersection(path.relative_to(ROOT).parts)
    ]


def test_modules_are_short_enough_to_read() -> None:
    kinds = {".py", ".pyx", ".pxd", ".pxi", ".pyi", ".h"}
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in repository_files()
        if path.suffix in kinds
    }
    assert "simvm/__init__.py" in lengths
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_modules_say_what_they_are() -> None:
    silent = [
        module
        for module, path in FILES.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_project_names_no_machine_and_no_package_index() -> None:
    # Written in pieces, so that this file does not hold them.
    words = ["/" + "work/", "/" + "root/", "/" + "home/", "pypi" + ".org", "python" + "hosted"]
    pattern = re.compile("|".join(map(re.escape, words)))
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a recorded trace
        found += [f"{path.relative_to(ROOT)}: {word}" for word in pattern.findall(text)]
    assert found == []
