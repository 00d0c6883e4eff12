"""The structure of the code: the imports that are allowed, and the size of functions."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import toolkit

PACKAGE = Path(__file__).parents[1] / "toolkit"

FLOORS = (
    "binomial errors names shipped",
    "console plotting files architectures",
    "machine settings",
    "modeldir recipe",
    "sessions data",
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


PUBLIC = {name: f"toolkit.{toolkit._MODULE_OF.get(name, 'errors').partition(':')[0]}" for name in toolkit.__all__}
"""Name that `toolkit` gives → the module that it imports for it."""

BY_NAME = {"import_module", "__import__", "exec_module", "run_module", "run_path"}
"""What imports a module whose name may be computed: nobody can read there what is imported."""

IMPORT_BY_NAME = {
    "toolkit": "its public names are imported when they are first used",
    "toolkit.control_process": "in a new process: the modules that register the user's networks",
    "toolkit.bench.measure.first_use": "in a new process: the modules that register the user's networks",
    "toolkit.networks.of_package": "a network's package, with the user's permission",
    "toolkit.graphs.build": "a part of torch; the statement would hide the name `torch` of the module",
}
"""Modules that may, and what they import so."""


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports_in(tree: ast.Module, module: str) -> Iterator[str]:
    """Every module of the package that `module` imports anywhere, types and imports within functions included.

    A public name of `toolkit` counts as an import of its module.
    """
    ours = {"toolkit"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            origin = _absolute(node, module)
            yield from (_imported(origin, alias.name) for alias in node.names if origin.split(".")[0] == "toolkit")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
            ours |= {alias.asname for alias in node.names if alias.name == "toolkit" and alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            yield _imported("toolkit", node.attr)
        elif isinstance(node, ast.Constant) and node.value in MODULES and module in IMPORT_BY_NAME:
            yield str(node.value)


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """The module that `node` imports from; each dot of a relative import is a folder, from that of `module` on."""
    if not node.level:
        return str(node.module)
    names = module.split(".")
    folders = names[: len(names) - node.level + (MODULES[module].name == "__init__.py")]
    return ".".join([*folders, *([node.module] if node.module else [])])


def _imported(origin: str, name: str) -> str:
    if f"{origin}.{name}" in MODULES:
        return f"{origin}.{name}"
    return PUBLIC.get(name, origin) if origin == "toolkit" else origin


def imports_above(tree: ast.Module, module: str) -> list[str]:
    """What it imports from its own floor or a higher one, its own room excepted."""
    own = room_of(module)
    others = [other for other in imports_in(tree, module) if other != "toolkit" and room_of(other) != own]
    return [other for other in others if floor_of(room_of(other)) >= floor_of(own)]


def names_that_import(tree: ast.Module) -> set[str]:
    """Those of BY_NAME that it uses."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return found & BY_NAME


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in MODULES if module != "toolkit"}
    listed = [room for floor in FLOORS for room in floor.split()]
    assert sorted(listed) == sorted(rooms)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"toolkit"}))
def test_a_room_imports_only_what_stands_below_it(module: str) -> None:
    assert imports_above(tree_of(module), module) == []


@pytest.mark.parametrize(
    ("module", "text", "above"),
    [
        ("toolkit.errors", "from toolkit import console", "toolkit.console"),
        ("toolkit.errors", "from toolkit.console import say", "toolkit.console"),
        ("toolkit.errors", "import toolkit.console", "toolkit.console"),
        ("toolkit.errors", "from . import console", "toolkit.console"),
        ("toolkit.errors", "from .console import say", "toolkit.console"),
        ("toolkit.data.views", "from ..cli import app", "toolkit.cli.app"),
        ("toolkit.data.views", "from ..cli.app import app", "toolkit.cli.app"),
        ("toolkit.data", "from ..cli import app", "toolkit.cli.app"),
        ("toolkit.errors", "from toolkit import open", "toolkit.api.workspace"),
        ("toolkit.errors", "def later():\n    from toolkit import load", "toolkit.api.model"),
        ("toolkit.errors", "import toolkit\ntoolkit.load('m')", "toolkit.api.model"),
        ("toolkit.errors", "import toolkit as ours\nours.register_network", "toolkit.networks.registry"),
        ("toolkit.errors", "import toolkit\ntoolkit.data.views", "toolkit.data"),
        ("toolkit.control_process", "importlib.import_module('toolkit.cli.app')", "toolkit.cli.app"),
    ],
)
def test_no_way_to_write_an_import_gets_around_the_floors(module: str, text: str, above: str) -> None:
    assert imports_above(ast.parse(text), module) == [above]


@pytest.mark.parametrize(
    "text",
    ["from . import views", "from .views import K", "from ..errors import one_line", "from toolkit import Recipe"],
)
def test_imports_within_a_room_and_downwards_are_fine(text: str) -> None:
    tree = ast.parse(text)
    assert list(imports_in(tree, "toolkit.data.pixels"))
    assert imports_above(tree, "toolkit.data.pixels") == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_listed_modules_import_by_name(module: str) -> None:
    assert bool(names_that_import(tree_of(module))) == (module in IMPORT_BY_NAME)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('toolkit.cli.app')",
        "import importlib\nimportlib.import_module('toolkit.' + name)",
        "from importlib import import_module as load",
        "from runpy import run_module",
        "spec.loader.exec_module(module)",
    ],
)
def test_an_import_by_name_is_found(text: str) -> None:
    assert names_that_import(ast.parse(text))


def runtime_imports_in(tree: ast.Module, module: str) -> set[str]:
    """Modules of the package that it imports, at once or later; not those that only type checkers read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return set(imports_in(tree, module)) - {module, "toolkit"}


def functions_of(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(module)):
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


def circles_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that are left if those that wait for no other one are taken away, again and again."""
    graph = dict(graph)
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    return sorted(graph)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: runtime_imports_in(tree_of(module), module) for module in MODULES}
    assert circles_in(graph) == [], "each of these waits for another one of them"


@pytest.mark.parametrize("back", ["from toolkit.data import views", "from . import views", "from .views import K"])
def test_a_circle_is_found(back: str) -> None:
    texts = {"toolkit.data.views": "from toolkit.data.pixels import P", "toolkit.data.pixels": back}
    graph = {module: runtime_imports_in(ast.parse(text), module) for module, text in texts.items()}
    assert circles_in(graph) == sorted(texts)
    typed = {**texts, "toolkit.data.pixels": f"if TYPE_CHECKING:\n    {back}"}
    assert circles_in({module: runtime_imports_in(ast.parse(text), module) for module, text in typed.items()}) == []


def module_list() -> str:
    """Floor by floor, the highest first: each module and the first sentence of its docstring."""
    lines = []
    for floor in reversed(FLOORS):
        for room in floor.split():
            names = sorted(name for name in MODULES if name != "toolkit" and room_of(name) == room)
            for name in names:
                first = (ast.get_docstring(tree_of(name)) or "").split("\n")[0]
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
    first = (ast.get_docstring(tree_of(module)) or "").split("\n")[0]
    assert 10 < len(first) <= 120, "its docstring begins with one line that says it"
