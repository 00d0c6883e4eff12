"""Readers of strangers' files take any bytes. Hypothesis changes valid files; inputs that once broke a reader stay."""

from pathlib import Path
from typing import Any

import pytest
from fuzz.targets import LONGEST_MESSAGE, TARGETS, Target, change_json, check_message
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from toolkit.errors import DataError

CASES = sorted((Path(__file__).parent / "cases").glob("*/*"))
EXAMPLES = 150

PLACE = st.floats(0, 1)
EDITS = st.lists(
    st.tuples(st.sampled_from(("replace", "insert", "cut", "end")), PLACE, st.binary(max_size=8)), max_size=4
)


def edit(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """`content` with bytes replaced, inserted or cut out at places from 0 (its start) to 1, or with an early end."""
    for kind, place, new in edits:
        start = round(place * len(content))
        after = {"replace": start + len(new), "insert": start, "cut": start + 1 + len(new), "end": len(content)}[kind]
        content = content[:start] + (new if kind in ("replace", "insert") else b"") + content[after:]
    return content


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_takes_its_valid_files(name, capsys):
    target = TARGETS[name]
    taken = {content[0] % len(target.forms) for content in target.seeds() if target.run(content)}
    assert taken == set(range(len(target.forms))), "each form needs a valid file to begin with"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_answers_or_refuses_whatever_it_is_given(name, capsys):
    target = TARGETS[name]

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(target.seeds()), EDITS)
    def run(content: bytes, edits: Any) -> None:
        target.run(content[:1] + edit(content[1:], edits))

    run()


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_input_that_broke_a_reader_once_is_answered_or_refused(case, capsys):
    TARGETS[case.parent.name].run(case.read_bytes())


def fail_with(error: Exception) -> Any:
    def read(path: Path) -> None:
        raise error

    return read


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * (LONGEST_MESSAGE + 1)])
def test_a_bad_message_is_a_fault(text):
    with pytest.raises(AssertionError, match="message"):
        check_message(text)


def test_a_traceback_is_a_fault_and_a_refusal_is_none():
    assert not Target(fail_with(DataError("it is empty", "give another")), (bytes,), list).run(b"\0abc")
    with pytest.raises(ZeroDivisionError):
        Target(fail_with(ZeroDivisionError()), (bytes,), list).run(b"\0abc")


def test_parts_of_json_are_replaced_and_taken_out():
    value = {"a": 1, "b": [2, {"c": 3}]}
    changed = [change_json(value, bytes((where, what))) for where in range(4) for what in range(64)]
    assert value == {"a": 1, "b": [2, {"c": 3}]}
    assert {"b": [2, {"c": 3}]} in changed
    assert {"a": 1, "b": [2, {}]} in changed
    assert any(part["b"] == [2, {"c": ""}] for part in changed if isinstance(part.get("b"), list))
    assert change_json(value, b"") == value
