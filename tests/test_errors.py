import pytest

from toolkit.errors import LONGEST_REASON, did_you_mean, one_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no room", "no room"),
        ("no room.", "no room"),
        ("\n \n  no   room\t left \nsecond line", "no room left"),
        ("no room left. Free some, then go on", "no room left"),
        ("Wrong image height! Expected 28 but got 32!", "Wrong image height"),
        ("32 vs. 28 in model.safetensors", "32 vs. 28 in model.safetensors"),
        ("cut off:", "cut off:"),
        ("...", "..."),
        ("", "RuntimeError"),
        ("\n \n", "RuntimeError"),
    ],
)
def test_an_errors_message_is_one_line(message: str, expected: str) -> None:
    assert one_line(RuntimeError(message)) == expected


def test_a_line_that_ends_in_a_colon_goes_on_in_the_next() -> None:
    assert one_line(RuntimeError("it raised:\n\nNoCompiler: no g++\nhint")) == "it raised: NoCompiler: no g++"


def test_a_very_long_message_is_cut() -> None:
    found = one_line(ValueError("x" * 10_000))
    assert len(found) == LONGEST_REASON
    assert found.endswith("x…")
    assert one_line(ValueError("x" * LONGEST_REASON)) == "x" * LONGEST_REASON


def test_the_last_line_is_there_for_libraries_that_put_the_cause_last() -> None:
    assert (
        one_line(RuntimeError("Check failed:\nsrc/x.cpp:3\n  Unsupported type.\n\n"), last=True) == "Unsupported type"
    )
    assert one_line(RuntimeError(""), last=True) == "RuntimeError"


def test_the_output_of_a_process_may_be_empty() -> None:
    assert one_line("Traceback\n  File\nImportError: no torch\n", last=True) == "ImportError: no torch"
    assert one_line(" \n", last=True) == ""


def test_a_name_that_is_near_is_suggested() -> None:
    known = ["fashion-mnist", "cifar10", "cifar100", "food101"]
    assert did_you_mean("FashionMNIST", known) == "did you mean fashion-mnist? "
    assert did_you_mean("ciphar10", known) == "did you mean cifar10? "
    assert did_you_mean("cifar1", known, at_most=2) == "did you mean cifar10 or cifar100? "
    assert did_you_mean("temprature", ["temperature"], prefix="distill.") == "did you mean distill.temperature? "


def test_nothing_is_suggested_if_nothing_is_near() -> None:
    assert did_you_mean("imagenet", ["cifar10"]) == ""
    assert did_you_mean("", ["cifar10"]) == ""
    assert did_you_mean("x", []) == ""


def test_names_that_differ_in_punctuation_alone_are_distinguished() -> None:
    assert did_you_mean("food_11", ["food-11", "food11"], at_most=2) == "did you mean food-11 or food11? "
