"""What a command is about to do, stage by stage, and how long each takes."""

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
from toolkit.workspace import Job


def forecast(job: Job, command: "Command") -> "Forecast":
    """What `command` is about to do with the job, stage by stage, from a few steps that are measured now."""
    from toolkit.forecast.estimate import estimate
    from toolkit.forecast.facts import find_facts
    from toolkit.forecast.speeds import MeasuredSpeeds

    facts = find_facts(job, command)
    speeds = MeasuredSpeeds(job.dataset, facts, job.device)
    result = estimate(job.recipe, facts, speeds)
    return replace(result, measured=speeds.describe())


def warn_of_given_teacher(job: Job, planned: "Forecast") -> None:
    """Where the plan imports one: what the import will say of its size and of the images it has seen."""
    from toolkit.distill import provenance
    from toolkit.forecast.estimate import GIVEN

    is_imported = any(stage.note == GIVEN for stage in planned.stages)
    if is_imported and (source := provenance.find_weights(job.recipe)):
        provenance.warn_of_differences(source, job.recipe, job.dataset)
