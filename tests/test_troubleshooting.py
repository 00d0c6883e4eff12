"""docs/troubleshooting.md lists every error line of the code, and each of them is expected by a test."""

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
BEGIN = "<!-- messages: written by tests/test_troubleshooting.py with KD_TOOLKIT_WRITE_DOCS=1 -->\n"
END = "<!-- end of messages -->"

HEADINGS = {
    "DataError": "Images and data sets",
    "RecipeError": "Recipes and settings",
    "WeightsError": "Weights",
    "ArtifactError": "Files of a model directory",
    "DeviceError": "Devices and runtimes",
    "TrainingError": "Training",
    "GateError": "Gates that were not met (exit code 3)",
    "UsageError": "Usage (exit code 2)",
}
"""Class of an error → its part of the page."""
SAME_AS = {"PictureError": "DataError"}

WORDS = {
    "PATH": r"(self\.)?path|root|folder|directory|file|where|model|archive|.*\.(parent|path|folder|root)"
    r"|\w*(path|root|folder|dir) / .*",
    "N": r"len\(.*\)|.*:,|.*count|number|total|num_classes|.*_px|shape.*",
    "NAME": r".*name!?r?|.*!r",
}
"""What stands for an expression of the code."""

SHORTEST = 8
"""Characters of a message's fixed part that are enough to know it by."""
QUOTED = 14
"""Characters of it that a test must quote."""


def stand_in(expression: str) -> str:
    return next((word for word, pattern in WORDS.items() if re.fullmatch(pattern, expression)), "…")


def _texts(node: ast.expr, names: dict[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """Every text that an expression may be, with a stand-in for each part that is known only at run time."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return _join([_texts(part, names, depth) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        mark = "!r" if node.conversion == ord("r") else ""
        form = ast.unparse(node.format_spec).strip("f'\"") if node.format_spec else ""
        return [stand_in(ast.unparse(node.value) + mark + (f":{form}" if form else ""))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _join([_texts(node.left, names, depth), _texts(node.right, names, depth)])
    if isinstance(node, ast.IfExp):
        return _texts(node.body, names, depth) + _texts(node.orelse, names, depth)
    if isinstance(node, ast.Name) and depth < 3 and node.id in names:
        return [text for value in names[node.id] for text in _texts(value, names, depth + 1)]
    return [stand_in(ast.unparse(node))]


def _join(parts: list[list[str]]) -> list[str]:
    """One text for each choice of a part, the longest first; never more than a few."""
    texts = [""]
    for choices in parts:
        texts = [text + choice for text in texts for choice in choices][:4]
    return texts


def _assigned(tree: ast.AST) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for name, text in pairs:
                if isinstance(name, ast.Name) and isinstance(
                    text, ast.Constant | ast.JoinedStr | ast.IfExp | ast.BinOp
                ):
                    found.setdefault(name.id, []).append(text)
    return found


@cache
def messages() -> dict[str, list[tuple[str, str]]]:
    """Class of an error → its (problem, remedy), in the order of the code."""
    found: dict[str, dict[tuple[str, str], None]] = {name: {} for name in HEADINGS}
    for path in sorted((ROOT / "toolkit").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {name: values for name, values in _assigned(tree).items() if name.isupper()}
        for scope in ast.walk(tree):
            if isinstance(scope, ast.FunctionDef):
                for error, problem, remedy in _raised_in(scope, top | _assigned(scope)):
                    found[error][problem, remedy] = None
    return {error: list(lines) for error, lines in found.items()}


def _raised_in(scope: ast.FunctionDef, names: dict[str, list[ast.expr]]) -> Iterator[tuple[str, str, str]]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2:
            error = SAME_AS.get(node.func.id, node.func.id)
            if error in HEADINGS:
                remedy = max(_texts(node.args[1], names), key=len)
                for problem in _texts(node.args[0], names):
                    if fixed_parts(problem):
                        yield error, problem, remedy


def fixed_parts(message: str) -> list[str]:
    """The parts of a message that are always the same, and long enough to know the message by."""
    parts = (part.strip() for part in re.split(r"…|\b(?:PATH|NAME|N)\b", message))
    return [part for part in parts if len(part) >= SHORTEST]


def lists() -> str:
    text = ""
    for error, heading in HEADINGS.items():
        text += f"\n## {heading}\n\n"
        text += "".join(f"- {_plain(problem)}; *{_plain(remedy)}*\n" for problem, remedy in messages()[error])
    return text + "\n"


def _plain(text: str) -> str:
    return re.sub(r"(?:… ?)+…", "…", " ".join(text.split())).replace("<", "&lt;").replace("*", r"\*")


def test_the_page_lists_every_message() -> None:
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    if os.environ.get("KD_TOOLKIT_WRITE_DOCS"):
        PAGE.write_text(text[:start] + lists() + text[end:], encoding="utf-8")
    else:
        assert text[start:end] == lists(), "run this test again with KD_TOOLKIT_WRITE_DOCS=1"


@cache
def words_of_tests() -> str:
    """All tests in one text, with lines that were broken joined, and without what regular expressions escape."""
    files = (path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*[rf]*"', "", text).replace("\\", "")


def is_expected(problem: str) -> bool:
    """Whether some test quotes a good part of the message."""
    return any(
        part[i : i + QUOTED] in words_of_tests()
        for part in fixed_parts(problem)
        for i in range(max(1, len(part) - QUOTED + 1))
    )


@pytest.mark.parametrize("error", HEADINGS)
def test_each_message_is_expected_by_a_test(error: str) -> None:
    assert [problem for problem, _ in messages()[error] if not is_expected(problem)] == []


def test_a_message_that_no_test_expects_would_be_found() -> None:
    scope = ast.parse('def read(path):\n    raise DataError(f"{path} is quite unheard of", "go away")').body[0]
    assert isinstance(scope, ast.FunctionDef)
    [(error, problem, remedy)] = _raised_in(scope, {})
    assert (error, problem, remedy) == ("DataError", "PATH is quite unheard of", "go away")
    assert not is_expected("PATH is entirely " + "unheard of")
    assert is_expected("PATH is quite unheard of"[:9] + "has class folders and images beside them")
