"""Errors that a user can cause and fix. Any other exception is a bug and keeps its traceback.

ToolkitError                 exit code 1: one line on stderr, what is wrong and what to do next
├── UsageError               exit code 2: an option's value that is not allowed
├── RecipeError              an unknown key, a wrong type or range, an unreadable TOML file
├── DataError                a missing or empty folder, one class only, a broken image under --strict
├── WeightsError             weights that are truncated, unsafe to read, or do not fit the network or the data
├── ArtifactError            the model directory lacks an input, holds another run's output, or cannot be written
├── DeviceError              a device or execution provider that was asked for cannot run here
├── TrainingError            training cannot go on (a loss that is not finite)
└── GateError                exit code 3: a measured gate was not met (an export that disagrees with its source)

Interrupted                  no error: Ctrl-C (exit code 130) or SIGTERM (143) while a network trained
"""

import difflib
import re
from collections.abc import Iterable

LONGEST_REASON = 200
"""characters of another library's message, or of a value in a file, that fit into one of our lines"""

NEAR = 0.6
"""How alike two names must be (difflib's ratio, 0 to 1) for one to be taken for a misspelling of the other."""


def one_line(error: BaseException | str, *, last: bool = False) -> str:
    """The first sentence of the first line of an error, or of a process's output, without its full stop.

    With `last` it is the last line, where some libraries put the cause. Blank lines do not count, and a line that ends
    in a colon goes on in the next one. An error without a message gives the name of its class, an empty text "".
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    text = lines[-1] if last else lines[0]
    for line in () if last else lines[1:]:
        if not text.endswith(":"):
            break
        text += f" {line}"
    sentence = re.split(r"[.!] (?=[A-Z])", text)[0].rstrip(".!") or text
    return shorten(sentence)


def shorten(text: str) -> str:
    """At most LONGEST_REASON characters of a foreign text, with `…` in place of the rest."""
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 1].rstrip()}…"


def did_you_mean(name: str, known: Iterable[str], *, at_most: int = 1, prefix: str = "") -> str:
    """`did you mean resnet18? `, to stand before the rest of a remedy; "" if none of `known` is near.

    Capitals and punctuation do not count. `prefix` goes before each name that is suggested.
    """
    plain = {other: letters_and_digits(other) for other in known}
    near = difflib.get_close_matches(letters_and_digits(name), dict.fromkeys(plain.values()), at_most, NEAR)
    found = sorted((other for other in plain if plain[other] in near), key=lambda other: near.index(plain[other]))
    return f"did you mean {' or '.join(prefix + other for other in found[:at_most])}? " if found else ""


def letters_and_digits(name: str) -> str:
    """The name without capitals, spaces and marks."""
    return "".join(filter(str.isalnum, name.lower()))


class ToolkitError(Exception):
    """A user's mistake or a fact of their machine, in one line.

    `problem` says what is wrong and where, with what is allowed; `remedy` says what to do next.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return " ".join(f"{self.problem}; {self.remedy}".split())


class UsageError(ToolkitError):
    """An option's value that is not allowed, or an argument that is missing."""

    exit_code = 2


class RecipeError(ToolkitError):
    """A recipe or a --set override that cannot be used."""


class DataError(ToolkitError):
    """A data set that is missing, empty, unreadable or unfit for training."""


class WeightsError(ToolkitError):
    """A weights file that cannot be read safely or does not fit."""


class ArtifactError(ToolkitError):
    """A file of the model directory that is missing, in the way, or cannot be written."""


class DeviceError(ToolkitError):
    """A device or execution provider that was asked for and cannot run."""


class TrainingError(ToolkitError):
    """Training that cannot go on."""


class GateError(ToolkitError):
    """A measured gate that was not met."""

    exit_code = 3


class Interrupted(Exception):  # noqa: N818 - no error: what was asked for
    """Training stopped because of a signal; `where` says at which epoch and step, and what was saved."""

    def __init__(self, where: str, signal_number: int) -> None:
        super().__init__(where, signal_number)  # both, so that it can be pickled
        self.where = where
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        """130 after Ctrl-C, 143 after SIGTERM, as shells have it."""

    def __str__(self) -> str:
        return self.where
