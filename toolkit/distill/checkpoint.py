"""The resume state of a training stage: one file, tensors and plain values only, whole or not at all."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import ArtifactError, one_line
from toolkit.files import write_atomically

State = dict[str, Any]
Settings = dict[str, Any]
"""stage, recipe_sha256, dataset_sha256 and whatever else decides the result: only the same settings may go on."""


class Checkpoint:
    """`checkpoint.pt` of one stage with its settings."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings

    def open(self, *, resume: bool, force: bool) -> State | None:
        """The state to go on from, None to begin anew.

        Raises ArtifactError where another run's state lies here, where this one's does and neither --resume nor --force
        was given, or where it cannot be read.
        """
        if not self.path.exists():
            return None
        if force and not resume:
            self.discard()
            return None
        begin_anew = "or begin anew with --force (in Python: resume=True, force=True)"
        state = self._read()
        theirs: Settings = state["settings"]
        stage = theirs.get("stage")
        if stage != self.settings["stage"]:
            command = "teacher" if stage == "teacher" else "distill"
            raise ArtifactError(
                f"{self.path} is of an interrupted {stage} stage, not of {self.settings['stage']}",
                f"go on with toolkit {command} --resume, {begin_anew}",
            )
        differing = [key for key, value in self.settings.items() if theirs.get(key) != value]
        if differing:
            raise ArtifactError(
                f"{self.path} was made with another {' and '.join(key.removesuffix('_sha256') for key in differing)}",
                f"give the settings it was made with, {begin_anew}",
            )
        if not resume:
            raise ArtifactError(
                f"an interrupted run lies in {self.path.parent} ({stage}, epoch {state['epoch'] + 1})",
                f"go on with --resume, {begin_anew}",
            )
        return state

    def save(self, state: State) -> None:
        """Write the state, whole or not at all. Raises ArtifactError where it cannot be written."""
        content = io.BytesIO()  # torch's own writer does not tell a full disk from a bug
        torch.save(state | {"settings": self.settings}, content)
        with write_atomically(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def discard(self) -> None:
        """Delete the state, and what a kill in the midst of writing one left beside it."""
        self.path.unlink(missing_ok=True)
        for unfinished in self.path.parent.glob(f".{self.path.name}.*"):
            unfinished.unlink(missing_ok=True)

    def is_own(self) -> bool:
        """Whether a state of this very stage and settings lies here."""
        try:
            return bool(self._read()["settings"] == self.settings)
        except ArtifactError:
            return False

    def epochs_done(self) -> int:
        """Whole epochs that a state of this very stage and settings has behind it; 0 where there is none."""
        return int(self._read()["epoch"]) if self.is_own() else 0

    def discard_own(self) -> None:
        """Delete a state of this very stage and settings: its result is there already."""
        if self.is_own():
            self.discard()

    def _read(self) -> State:
        """The file's content, which has `settings`; ArtifactError where it is damaged or something else."""
        try:
            # bytes first: a file that is being read must not be damaged by one that is written meanwhile
            state = torch.load(io.BytesIO(self.path.read_bytes()), map_location="cpu", weights_only=True)
            if not (isinstance(state, dict) and isinstance(state.get("settings"), dict)):
                raise ValueError("it is no checkpoint")
        except (OSError, EOFError, ValueError, TypeError, LookupError, RuntimeError, pickle.UnpicklingError) as error:
            raise ArtifactError(
                f"{self.path} cannot be read ({one_line(error)})", "delete it, or begin anew with --force"
            ) from None
        return state
