"""The structure of the code: the imports that are allowed, and the size of functions."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "toolkit"

FLOORS = (
    "errors names shipped",
    "console plotting files architectures",
    "machine settings",
    "modeldir recipe",
    "data",
    "networks",
    "graphs",
    "runtimes",
    "predict distill export bench",
    "demo stage_setup",
    "control_process",
    "pipeline",
    "api forecast doctor",
    "cli",
    "__main__",
)
"""Folders and root modules, the lowest first: each imports only from floors below its own."""


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms.split())


def room_of(module: str) -> str:
    """`toolkit.data.views` → `data`"""
    return module.split(".")[1]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("toolkit", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[str]:
    """Every module of the package that it imports anywhere, types and imports within functions included."""
    return _imports_in(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def _imports_in(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in MODULES if module != "toolkit"}
    listed = [room for floor in FLOORS for room in floor.split()]
    assert sorted(listed) == sorted(rooms)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_what_stands_below_it(module: str) -> None:
    if module == "toolkit":
        return
    above = [
        other
        for other in imports_of(module)
        if other != "toolkit"
        and room_of(other) != room_of(module)
        and floor_of(room_of(other)) >= floor_of(room_of(module))
    ]
    assert above == []


def runtime_imports_of(module: str) -> set[str]:
    """Modules of the package that it imports, at once or later; not those that only type checkers read."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return set(_imports_in(tree)) - {module, "toolkit"}


def functions_of(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From `def` to its last line; decorators do not count."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names, *args and **kwargs among them, without self and cls."""
    given = function.args
    others = (one for one in (given.vararg, given.kwarg) if one is not None)
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *others)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def test_every_function_is_under_60_lines() -> None:
    long = {
        f"{module}.{function.name}": lines_of(function)
        for module in MODULES
        for function in functions_of(module)
        if lines_of(function) >= 60
    }
    assert long == {}


def test_no_function_has_more_than_six_parameters() -> None:
    """The command line's have one for each option."""
    wide = {
        f"{module}.{function.name}": parameters_of(function)
        for module in MODULES
        for function in functions_of(module)
        if room_of(f"{module}.") != "cli" and len(parameters_of(function)) > 6
    }
    assert wide == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: runtime_imports_of(module) for module in MODULES}
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert sorted(graph) == [], "each of these waits for another one of them"


def module_list() -> str:
    """Floor by floor, the highest first: each module and the first sentence of its docstring."""
    lines = []
    for floor in reversed(FLOORS):
        for room in floor.split():
            names = sorted(name for name in MODULES if name != "toolkit" and room_of(name) == room)
            for name in names:
                first = (ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or "").split("\n")[0]
                path = MODULES[name].relative_to(PACKAGE).as_posix()
                lines.append(f"| `{path.removesuffix('__init__.py')}` | {first} |")
        lines.append("| | |")
    return "\n".join(["", "| module | what is in it |", "|---|---|", *lines[:-1], "", ""])


def test_the_document_lists_every_module() -> None:
    document = PACKAGE.parent / "docs" / "architecture.md"
    text = document.read_text(encoding="utf-8")
    start = text.index("-->", text.index("<!-- modules:")) + len("-->\n")
    end = text.index("<!-- end of modules -->")
    if os.environ.get("KD_TOOLKIT_WRITE_DOCS"):
        document.write_text(text[:start] + module_list() + text[end:], encoding="utf-8")
    else:
        assert text[start:end] == module_list(), "run this test again with KD_TOOLKIT_WRITE_DOCS=1"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_is_in_it(module: str) -> None:
    first = (ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert 10 < len(first) <= 120, "its docstring begins with one line that says it"
