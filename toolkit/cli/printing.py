"""The output at the end of a command: files, duration and the exact next command; or JSON alone."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.networks import trust

if TYPE_CHECKING:
    from toolkit.bench.schema import Report

WITH_TRUST = ("plan", "teacher", "distill", "run", "export", "bench")
"""Commands that build networks."""


def command(*words: str | Path) -> str:
    """A `toolkit` command line, quoted for a shell; with --trust if this command needed it, and that one takes it."""
    flags = ["--trust"] if words[0] in WITH_TRUST and trust.announced() and "--trust" not in words else []
    return shlex.join(["toolkit", *map(str, words), *flags])


def training_flags(recipe: str | None, data: str | None, overrides: list[str], out: Path) -> list[str | Path]:
    """The flags that give another training stage the same recipe, data and directory."""
    flags: list[str | Path] = []
    for flag, values in (("--recipe", [recipe]), ("--data", [data]), ("--set", overrides), ("--out", [out])):
        flags += [part for value in values if value is not None for part in (flag, value)]
    return flags


def after_report(report: "Report", directory: Path) -> str:
    """The command that comes after a report: the demo, which shows teacher and student, if there is a teacher."""
    return command("predict", directory, "IMAGE") if report.no_teacher else command("demo", directory)


def print_weights(
    role: str, made: Any, start: float, next_command: str, as_json: bool, answers: Path | None = None
) -> None:
    """Say what a training stage wrote or kept: `made` is a distill.job.WeightsFile, `answers` a file of its answers."""
    figures = {k: v for k, v in made.info.extra.items() if v is not None}
    if as_json:
        saved = {} if answers is None else {"answers": str(answers)}
        print_json({"role": role, "path": str(made.path), "new": made.new, **saved, **figures})
        return
    if (accuracy := figures.get("valid_accuracy")) is not None:
        console.out.print(f"{role}: validation accuracy {accuracy:.4f}", markup=False)
    print_files([made.path, *([answers] if answers else [])], [] if made.new else [made.path])
    print_end(start, next_command)


def print_files(paths: list[Path], kept: Sequence[Path] = ()) -> None:
    """A line each, which says whether the file was written or is an earlier one, up to date."""
    for path in paths:
        verb = "kept" if path in kept else "wrote"
        console.out.print(f"{verb} {path} ({console.size(path.stat().st_size)})", markup=False)


def times_of(paths: list[Path]) -> dict[Path, int]:
    """When each of those that are there was written, in ns."""
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def print_end(start: float, next_command: str) -> None:
    console.out.print(f"took {console.duration(time.perf_counter() - start)}; next: {next_command}", markup=False)


def print_json(value: Any) -> None:
    if console.out.quiet:
        return
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
