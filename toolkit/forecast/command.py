"""The plan of a command, stage by stage, with the time of each."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
from toolkit.workspace import Workspace


def forecast_command(workspace: Workspace, command: "Command") -> "Forecast":
    """The plan of `command` in the workspace, stage by stage, from a few steps that are measured now."""
    from toolkit.forecast.estimate import estimate
    from toolkit.forecast.facts import find_facts
    from toolkit.forecast.speeds import MeasuredSpeeds

    facts = find_facts(workspace, command)
    speeds = MeasuredSpeeds(workspace.dataset, facts, workspace.device)
    result = estimate(workspace.recipe, facts, speeds)
    return replace(result, measured=speeds.describe())


def warn_of_given_teacher(workspace: Workspace, planned: "Forecast") -> None:
    """If the plan imports a teacher, print the import's warnings about its size and about the images it has seen."""
    from toolkit.distill import provenance
    from toolkit.forecast.estimate import GIVEN

    is_imported = any(stage.note == GIVEN for stage in planned.stages)
    if is_imported and (source := provenance.find_weights(workspace.recipe)):
        provenance.warn_of_differences(source, workspace.recipe, workspace.dataset)
