"""--minutes: a recipe that fits. The model directory keeps the choice, for --resume and for a second call."""

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
from toolkit.forecast.command import forecast_command
from toolkit.forecast.estimate import estimate
from toolkit.forecast.facts import Command, find_facts
from toolkit.forecast.fit import AIM, RecipeChoice, fit
from toolkit.forecast.forecast import Forecast
from toolkit.forecast.speeds import MeasuredSpeeds
from toolkit.recipe import FOLLOW_PICTURES
from toolkit.stage_setup import StageSetup


def fit_setup(
    setup: StageSetup, command: Command, minutes: float, started: float, *, writes: bool = True
) -> tuple[StageSetup, Forecast]:
    """The setup with a recipe by which `command` ends within `minutes` of `started`, and its forecast.

    `started` is a time of time.perf_counter.

    It prints what it chooses and what it gives up. If the same was asked before, the earlier choice holds. Raises
    RecipeError if not even one epoch fits.
    """
    choice = KeptChoice(setup, command, minutes)
    if (kept := choice.read()) is not None:
        message = f"as chosen before: {_as_flags(kept)}" if kept else f"the recipe fits into {minutes:g}, as before"
        console.say(f"minutes: {message} ({setup.model_dir.minutes}; --force chooses again)")
        setup = with_settings(setup, kept)
        return setup, forecast_command(setup, command)
    facts = find_facts(setup, command)
    speeds = MeasuredSpeeds(setup.dataset, facts, setup.device)
    whole = estimate(setup.recipe, facts, speeds)
    fitted = fit(setup.recipe, facts, speeds, minutes, lambda: distributed.agree(time.perf_counter() - started))
    overrides = [*fitted.overrides, *_followed_settings(fitted)]
    if overrides:
        console.say(
            f"minutes: {minutes:g}, of which the plan fills {AIM:.0%}; the unchanged recipe takes"
            f" {console.duration(whole.seconds)}; gave up {'; '.join(fitted.gave_up)}"
        )
        console.say(f"minutes: the same without --minutes: {_as_flags(overrides)}")
    else:
        console.say(f"minutes: the unchanged recipe fits into {minutes:g}")
    if writes:
        choice.write(overrides)
    return with_settings(setup, overrides), replace(fitted.forecast, measured=speeds.describe())


def _followed_settings(fitted: RecipeChoice) -> list[str]:
    """Settings that would follow the pictures in another way, because another share or size of them is set."""
    changed = {setting.partition("=")[0] for setting in fitted.overrides}
    if not any(setting.startswith("data.") for setting in changed):
        return []
    return [f"{setting}={fitted.recipe.value_of(setting)}" for setting in FOLLOW_PICTURES if setting not in changed]


def _as_flags(overrides: list[str]) -> str:
    return shlex.join([word for setting in overrides for word in ("--set", setting)])


class KeptChoice:
    """The settings that were chosen for a command, recipe, data set, number of seeds and minutes: minutes.json."""

    def __init__(self, setup: StageSetup, command: Command, minutes: float) -> None:
        sections = sorted(type(setup.recipe).model_fields)
        given = (
            setup.recipe.teacher.weights
        )  # no part of a fingerprint, but it decides whether a teacher is trained here
        what = [
            command,
            setup.recipe.fingerprint(*sections),
            given,
            setup.dataset.sha256,
            setup.seeds,
            minutes,
            *([setup.unlabelled.sha256] if setup.unlabelled else []),
        ]
        self._path: Path = setup.model_dir.minutes
        self._key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        self._chooses_again = setup.force and not setup.resume

    def read(self) -> list[str] | None:
        """Settings as --set takes them; None if nothing was chosen yet, or if --force chooses again.

        Raises ArtifactError if the file is not one that `write` wrote.
        """
        found = None if self._chooses_again else self._all().get(self._key)
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
                f"{self._path} cannot be read",
                "delete it, then --minutes chooses again; --resume needs the same choice",
            ) from None


def with_settings(setup: StageSetup, overrides: list[str]) -> StageSetup:
    """The setup with those settings in its recipe; the data set is read again only if they change it."""
    changed = replace(setup, recipe=setup.recipe.with_overrides(overrides))
    if changed.recipe.data.share == setup.recipe.data.share:
        vars(changed).update(dataset=setup.dataset, unlabelled=setup.unlabelled)
    return changed
