"""The model directory: the names of all artifacts in it.

Every stage reads and writes one directory. This is the only module that knows the names in it.
"""

import atexit
import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from toolkit.errors import ArtifactError
from toolkit.files import unwritable
from toolkit.machine.container import missing_volume

Role = Literal["teacher", "student", "control"]
FilePrecision = Literal["fp32", "fp16", "int8"]
FILE_PRECISIONS: tuple[FilePrecision, ...] = get_args(FilePrecision)

BENCH_PLOTS = ("accuracy_latency", "reliability", "confusion_difference")
"""Names of the pictures that the benchmark draws."""


MADE_BY = {
    ".safetensors": "toolkit distill",
    ".onnx": "toolkit export --onnx",
    ".json": "toolkit bench",
    ".zip": "toolkit bench",
}
"""Suffix of an artifact → the command that makes it."""


@dataclass(frozen=True)
class ModelDir:
    """A directory `models/<name>/` and the names of the files that stages write there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def weights(self, role: Role) -> Path:
        return self.path / f"{role}.safetensors"

    def onnx(self, role: Role, precision: FilePrecision = "fp32") -> Path:
        return self.path / (f"{role}.onnx" if precision == "fp32" else f"{role}.{precision}.onnx")

    def onnx_files(self, role: Role) -> dict[FilePrecision, Path]:
        """The ONNX files of `role` that are there, by precision."""
        files = {precision: self.onnx(role, precision) for precision in FILE_PRECISIONS}
        return {precision: path for precision, path in files.items() if path.is_file()}

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoint(self, role: Role) -> Path:
        """The state that an interrupted stage goes on from; the control's is apart, as both may be trained at once."""
        return self.path / ("checkpoint-control.pt" if role == "control" else "checkpoint.pt")

    @property
    def classes(self) -> Path:
        """The names of an imported teacher's outputs in the order in which they seem to stand, for teacher.classes."""
        return self.path / "classes.txt"

    @property
    def minutes(self) -> Path:
        """The settings that --minutes chose."""
        return self.path / "minutes.json"

    def of_seed(self, seed: int) -> "ModelDir":
        """The directory of one more student and control, trained from another seed with this directory's teacher."""
        return ModelDir(self.path / "seeds" / str(seed))

    def of_fold(self, fold: int) -> "ModelDir":
        """The directory of one of several teachers, each trained without one part of the training images."""
        return ModelDir(self.path / "folds" / str(fold))

    def seeds(self) -> list[int]:
        """Seeds that have a directory (`of_seed`), ascending."""
        return sorted(int(path.name) for path in self.path.glob("seeds/*") if path.name.isdigit())

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_markdown(self) -> Path:
        return self.path / "report.md"

    @property
    def card(self) -> Path:
        """The model card that bench writes."""
        return self.path / "README.md"

    @property
    def examples(self) -> Path:
        """Test images for the demo."""
        return self.path / "examples.zip"

    def plot(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def make(self) -> None:
        """Make the directory if it is not there and prove that it can be written to, before hours of work."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise unwritable(self.path, error) from None

    def claim(self) -> Callable[[], None]:
        """Keep every other training process out of the directory until this one ends, or calls the returned function.

        Raises ArtifactError if another one is training there already. Does nothing if the system has no such lock.
        """
        lock = (self.path / ".lock").absolute()
        release = contextlib.ExitStack()
        with contextlib.suppress(ImportError, OSError):  # no fcntl; a file system without locks; somebody else's file
            import fcntl

            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # open as long as the lock lasts
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise ArtifactError(
                    f"another toolkit process is training in {self.path}",
                    "wait until it has ended, or choose another directory",
                ) from None
            release.callback(os.close, handle)
            release.callback(lock.unlink, missing_ok=True)
            release.callback(atexit.unregister, release.close)
            atexit.register(release.close)
        return release.close

    def require(self, artifact: Path) -> Path:
        """`artifact` if it is there; else an ArtifactError naming the command that makes it."""
        if not self.path.is_dir():
            remedy = f"make one with: toolkit run --out {shlex.quote(str(self.path))}"
            if volume := missing_volume(self.path):
                remedy = f"mount the volume that has it: docker run -v kd-models:{volume}"
            raise ArtifactError(f"there is no model directory {self.path}", remedy)
        if not artifact.is_file():
            smaller = artifact.suffixes[-2] if artifact.suffix == ".onnx" and len(artifact.suffixes) > 1 else ""
            command = MADE_BY.get(artifact.suffix, "toolkit run") + smaller.replace(".", " --")
            flag = "--out " if command == "toolkit distill" else ""
            raise ArtifactError(
                f"{self.path} has no {artifact.name}", f"make it with: {command} {flag}{shlex.quote(str(self.path))}"
            )
        return artifact
