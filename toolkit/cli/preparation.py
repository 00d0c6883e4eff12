"""Commands that write no model: doctor, data and plan; and the plan that a training stage prints at its start."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit import console
from toolkit.cli.options import (
    AnswersOption,
    DataOption,
    DeepOption,
    DeviceOption,
    Flags,
    ForceOption,
    JsonOption,
    MinutesOption,
    NoFindingsOption,
    OutOption,
    ProviderOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StrictOption,
    TensorboardOption,
    TrustOption,
    UnlabelledOption,
    add_answers,
    add_seed,
    add_unlabelled,
)
from toolkit.cli.printing import command, print_json

if TYPE_CHECKING:
    from toolkit.data.findings import Finding
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
    from toolkit.stage_setup import StageSetup


def doctor(deep: DeepOption = False, as_json: JsonOption = False) -> None:
    """Check this machine: what it can really do, what is wrong and how to fix it."""
    from toolkit.doctor.examine import examine

    report = examine(deep=deep)
    if as_json:
        print_json(report.to_json())
    else:
        report.print_table()
    if report.has_problem:
        raise typer.Exit(1)


def data(
    source: Annotated[str, typer.Argument(metavar="NAME_OR_DIR", help="A named data set or a directory of images.")],
    unlabelled: UnlabelledOption = None,
    overrides: SetOption = None,
    strict: NoFindingsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a data set: classes, sizes, what was passed over or read in a special way, what looks wrong."""
    from toolkit.data.check import check_dataset
    from toolkit.data.defaults import follow_pictures
    from toolkit.data.sources import builtin_recipe_of, load_dataset
    from toolkit.data.unlabelled import find_unlabelled
    from toolkit.recipe import Recipe

    recipe = Recipe().with_overrides({"data.source": source}).with_overrides(add_unlabelled(unlabelled, overrides))
    dataset = load_dataset(recipe.data)
    report = check_dataset(dataset, unlabelled=find_unlabelled(recipe.data, dataset))
    if as_json:
        print_json(report.to_json())
    else:
        report.print_table()
        if not builtin_recipe_of(source) and (line := follow_pictures(recipe, dataset.train)[1]):
            console.out.print(line, markup=False)
    if strict:
        _refuse_findings(source, report.findings)


def _refuse_findings(source: str, findings: "Sequence[Finding]") -> None:
    """Raise DataError if there are findings; it counts them and names the worst one."""
    from toolkit.data.findings import GROUPS
    from toolkit.errors import DataError

    if not findings:
        return
    otherwise = {"passed over": "take those files out", "read in a special way": "save those pictures as plain RGB"}
    worst = max(findings, key=lambda finding: GROUPS.index(finding.group))
    kinds = f" ({', '.join(finding.kind for finding in findings)}), among them" if len(findings) > 1 else ""
    raise DataError(
        f"{console.count(len(findings), 'finding')} in {source}{kinds}: {worst.sentence}",
        f"{worst.remedy or otherwise.get(worst.group, 'mend it')}, or leave out --strict to accept them",
    )


def plan(
    recipe: RecipeOption = None,
    data: DataOption = None,
    unlabelled: UnlabelledOption = None,
    out: OutOption = None,
    answers: AnswersOption = None,
    device: DeviceOption = "auto",
    provider: ProviderOption = "auto",
    seed: SeedOption = None,
    seeds: SeedsOption = 1,
    overrides: SetOption = None,
    minutes: MinutesOption = None,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    force: ForceOption = False,
    strict: StrictOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what toolkit run would do with the same flags, and how long it would take; nothing is made."""
    start = time.perf_counter()
    from toolkit.forecast.command import warn_of_given_teacher
    from toolkit.pipeline import set_up_run
    from toolkit.stage_setup import prepare_training

    flags: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    settings = add_answers(answers, add_seed(seed, add_unlabelled(unlabelled, overrides)))
    set_up = partial(prepare_training, recipe, data, out, settings, device=device, writes=False, **flags)
    setup, planned = _make_plan(set_up_run(set_up, device, provider), "run", minutes, start, writes=False)
    warn_of_given_teacher(setup, planned)
    if as_json:
        print_json(planned.to_json())
        return
    planned.print_to(console.out)
    console.out.print(f"next: {command('run', *sys.argv[2:])}", markup=False)


def say_plan(setup: "StageSetup", name: "Command", minutes: float | None, start: float) -> "StageSetup":
    """Print the plan on stderr, before the first image is decoded; returns the setup, fitted into `minutes`.

    Raises ArtifactError if another process trains in the same directory.
    """
    from toolkit.distill.distributed import is_main

    if is_main():
        setup.model_dir.claim()
    setup, planned = _make_plan(setup, name, minutes, start)
    planned.print_to(console.err)
    return setup


def _make_plan(
    setup: "StageSetup", name: "Command", minutes: float | None, start: float, *, writes: bool = True
) -> "tuple[StageSetup, Forecast]":
    if minutes is None:
        from toolkit.forecast.command import forecast_command

        return setup, forecast_command(setup, name)
    from toolkit.forecast.minutes import fit_setup

    return fit_setup(setup, name, minutes, start, writes=writes)
