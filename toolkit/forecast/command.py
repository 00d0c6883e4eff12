"""The plan of a command, stage by stage, with the time of each."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
from toolkit.stage_setup import StageSetup


def forecast_command(setup: StageSetup, command: "Command") -> "Forecast":
    """The plan of `command` in the setup, stage by stage, from a few steps that are measured now."""
    from toolkit.forecast.estimate import estimate
    from toolkit.forecast.facts import find_facts
    from toolkit.forecast.speeds import MeasuredSpeeds

    facts = find_facts(setup, command)
    speeds = MeasuredSpeeds(setup.dataset, facts, setup.device)
    result = estimate(setup.recipe, facts, speeds)
    return replace(result, measured=speeds.describe())


def warn_of_given_teacher(setup: StageSetup, planned: "Forecast") -> None:
    """If the plan imports a teacher, print the import's warnings about its size and about the images it has seen."""
    from toolkit.distill import provenance
    from toolkit.forecast.estimate import GIVEN

    is_imported = any(stage.note == GIVEN for stage in planned.stages)
    if is_imported and (source := provenance.find_weights(setup.recipe)):
        provenance.warn_of_differences(source, setup.recipe, setup.dataset)
