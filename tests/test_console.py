"""What people see is what there is: codes of pictograms, markup and characters that nobody sees."""

from pathlib import Path

import pytest

from toolkit import console
from toolkit.console import printable
from toolkit.data.contents import DataReport

CODES = [":cat:", ":smile:", ":on:", ":100:", "a :v: b", "[red]c", "d[/red]", "a{s}", "back\\"]


@pytest.mark.parametrize("text", CODES)
@pytest.mark.parametrize("stream", ["out", "err"])
def test_codes_in_a_name_stay_as_they_are(text: str, stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(console, stream).print(text, markup=False)
    written = capsys.readouterr()
    assert (written.out or written.err) == f"{text}\n"


@pytest.mark.parametrize("text", CODES)
def test_codes_in_a_class_name_stay_in_the_table(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    empty = dict.fromkeys(("notes", "unreadable", "leaks", "near_copies", "two_labels", "findings"), ())
    report = DataReport(
        name=text, sha256="", classes=(text, "b"), layout="", counts={"train": [1, 1]}, sizes={}, repeats={}, **empty
    )
    report.print_table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{text}: 2 images")
    assert any(text in line for line in lines[1:])


def test_no_other_console_reads_codes() -> None:
    """Every console of the project is made in console.py, or with emoji=False."""
    root = Path(console.__file__).parent
    for path in root.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "= Console(" in line:
                assert "emoji=False" in line, path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("a\u200bb", "a\\u200bb"),
        ("\ufeffa", "\\ufeffa"),
        ("a\u00adb", "a\\xadb"),
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("\udcff", "\\xff"),
    ],
)
def test_characters_that_nobody_sees_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["日本", "café", "می‌خواهم", "👨‍👩‍👧", "क्‍ष", "שלום", "مرحبا"])
def test_what_languages_need_stays(text: str) -> None:
    assert printable(text) == text
