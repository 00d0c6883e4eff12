"""--minutes: a job that fits; what was chosen is kept in the model directory, for --resume and for a second call."""

import hashlib
import json
import shlex
import time
from dataclasses import replace
from pathlib import Path

from toolkit import console
from toolkit.distill import distributed
from toolkit.errors import ArtifactError
from toolkit.files import write_atomically
from toolkit.forecast.command import forecast
from toolkit.forecast.estimate import estimate
from toolkit.forecast.facts import Command, find_facts
from toolkit.forecast.fit import AIM, Fitted, fit
from toolkit.forecast.forecast import Forecast
from toolkit.forecast.speeds import MeasuredSpeeds
from toolkit.recipe import FOLLOW_PICTURES
from toolkit.workspace import Job


def fit_job(job: Job, command: Command, minutes: float, started: float, *, writes: bool = True) -> tuple[Job, Forecast]:
    """The job by a recipe that lets `command` end within `minutes` of `started` (time.perf_counter), and its forecast.

    What is chosen, and what is given up for it, is said; where the same was asked before, that choice holds. Raises
    RecipeError where not even one epoch fits.
    """
    choice = KeptChoice(job, command, minutes)
    if (kept := choice.read()) is not None:
        told = f"as chosen before: {_as_flags(kept)}" if kept else f"the recipe fits into {minutes:g}, as found before"
        console.say(f"minutes: {told} ({job.model_dir.minutes}; --force chooses anew)")
        job = with_settings(job, kept)
        return job, forecast(job, command)
    facts = find_facts(job, command)
    speeds = MeasuredSpeeds(job.dataset, facts, job.device)
    whole = estimate(job.recipe, facts, speeds)
    fitted = fit(job.recipe, facts, speeds, minutes, lambda: distributed.agree(time.perf_counter() - started))
    overrides = [*fitted.overrides, *_followed_settings(fitted)]
    if overrides:
        console.say(
            f"minutes: {minutes:g}, of which {AIM:.0%} are aimed at; the recipe as it is takes"
            f" {console.duration(whole.seconds)}; gave up {'; '.join(fitted.gave_up)}"
        )
        console.say(f"minutes: the same without --minutes: {_as_flags(overrides)}")
    else:
        console.say(f"minutes: the recipe fits into {minutes:g} as it is")
    if writes:
        choice.write(overrides)
    return with_settings(job, overrides), replace(fitted.forecast, measured=speeds.describe())


def _followed_settings(fitted: Fitted) -> list[str]:
    """Settings that would follow the pictures otherwise than they did, where another share or size of them is set."""
    changed = {setting.partition("=")[0] for setting in fitted.overrides}
    if not any(setting.startswith("data.") for setting in changed):
        return []
    return [f"{setting}={fitted.recipe.value_of(setting)}" for setting in FOLLOW_PICTURES if setting not in changed]


def _as_flags(overrides: list[str]) -> str:
    return shlex.join([word for setting in overrides for word in ("--set", setting)])


class KeptChoice:
    """The settings that were chosen for a command, recipe, data set, number of seeds and minutes: minutes.json."""

    def __init__(self, job: Job, command: Command, minutes: float) -> None:
        sections = sorted(type(job.recipe).model_fields)
        given = job.recipe.teacher.weights  # no part of a fingerprint, but it decides whether a teacher is trained here
        what = [command, job.recipe.fingerprint(*sections), given, job.dataset.sha256, job.seeds, minutes]
        self._path: Path = job.model_dir.minutes
        self._key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self._anew = job.force and not job.resume

    def read(self) -> list[str] | None:
        """Settings as --set takes them; None where nothing was chosen yet, or --force chooses again.

        Raises ArtifactError where the file is not what `write` wrote.
        """
        found = None if self._anew else self._all().get(self._key)
        return distributed.agree(found)

    def write(self, overrides: list[str]) -> None:
        if distributed.is_main():
            choices = self._all() | {self._key: overrides}
            with write_atomically(self._path) as temporary:
                temporary.write_text(json.dumps(choices, indent=1) + "\n", encoding="utf-8")
        distributed.barrier()

    def _all(self) -> dict[str, list[str]]:
        if not self._path.is_file():
            return {}
        try:
            choices = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(key): [str(setting) for setting in value] for key, value in choices.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            raise ArtifactError(
                f"{self._path} cannot be read", "delete it, and --minutes chooses again; --resume needs the same choice"
            ) from None


def with_settings(job: Job, overrides: list[str]) -> Job:
    """The job by the recipe with those settings; the data set is read again only where they change it."""
    changed = replace(job, recipe=job.recipe.with_overrides(overrides))
    if changed.recipe.data.share == job.recipe.data.share:
        vars(changed)["dataset"] = job.dataset
    return changed
