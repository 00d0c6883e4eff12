"""Fuzz one reader with atheris, coverage-guided, for as many minutes as you like: make fuzz TARGET=picture MINUTES=20.

An input that breaks the reader is written to tests/fuzz/cases/TARGET/, where the tests run it from then on. The last
line on stdout says how many inputs were tried.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
from hashlib import sha256
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "bench")]

import torch  # noqa: E402, F401 - first, so that it is not instrumented with the rest: that takes minutes

OUTPUT = os.dup(1)
for stream in (1, 2):  # what the readers print, and atheris' list of modules
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
with atheris.instrument_imports(include=["toolkit", "PIL"]):
    from fuzz.targets import TARGETS


class Fuzzing:
    """One run: counts, and the faults found so far, each at its first input."""

    def __init__(self, name: str, minutes: float) -> None:
        self.name = name
        self.target = TARGETS[name]
        self.end = time.monotonic() + 60 * minutes
        self.cases = TESTS / "fuzz" / "cases" / name
        self.tried = self.taken = 0
        self.faults: set[str] = set()

    def run(self, data: bytes) -> None:
        if time.monotonic() > self.end:
            say(f"{self.name}: {self.tried:,} inputs, {self.taken:,} taken, {len(self.faults)} faults")
            os._exit(1 if self.faults else 0)  # libFuzzer has no other end that leaves no file behind
        self.tried += 1
        try:
            self.taken += self.target.run(data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._keep(f"{type(error).__name__} {Path(place.filename).name}:{place.lineno}", error, data)

    def _keep(self, fault: str, error: Exception, data: bytes) -> None:
        if fault in self.faults:
            return
        self.faults.add(fault)
        self.cases.mkdir(parents=True, exist_ok=True)
        (self.cases / sha256(data).hexdigest()[:12]).write_bytes(data)
        say(f"{self.name}: {fault}: {error}")


def say(line: str) -> None:
    os.write(OUTPUT, f"{line}\n".encode(errors="replace"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    fuzzing = Fuzzing(options.target, options.minutes)
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(fuzzing.target.seeds()):
            (Path(corpus) / str(number)).write_bytes(content)
        limits = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=6144", f"-artifact_prefix={fuzzing.cases}-"]
        atheris.Setup([sys.argv[0], *limits, corpus], fuzzing.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
