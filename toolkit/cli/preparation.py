"""Commands that write no model: doctor, data and plan; and the plan that a training stage prints at its start."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit import console
from toolkit.cli.options import (
    DataOption,
    DeepOption,
    DeviceOption,
    Flags,
    ForceOption,
    JsonOption,
    MinutesOption,
    OutOption,
    ProviderOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StrictOption,
    TensorboardOption,
    add_seed,
)
from toolkit.cli.printing import command, print_json

if TYPE_CHECKING:
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
    from toolkit.workspace import Workspace


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
    overrides: SetOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a data set: classes, sizes, unreadable files, images that are in two splits."""
    from toolkit.data.check import check_dataset
    from toolkit.data.defaults import follow_pictures
    from toolkit.data.sources import builtin_recipe_of, load_dataset
    from toolkit.errors import DataError
    from toolkit.recipe import Recipe

    recipe = Recipe().with_overrides({"data.source": source}).with_overrides(overrides or [])
    dataset = load_dataset(recipe.data)
    report = check_dataset(dataset)
    if as_json:
        print_json(report.to_json())
    else:
        report.print_table()
        if not builtin_recipe_of(source) and (line := follow_pictures(recipe, dataset.train)[1]):
            console.out.print(line, markup=False)
    if strict and report.unreadable:
        first = report.unreadable[0]
        raise DataError(
            f"{console.count(len(report.unreadable), 'unreadable image')} in {source}, "
            f"the first is {first.name}: {first.reason}",
            "repair or delete them, or leave out --strict to train without them",
        )


def plan(
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: OutOption = None,
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
    as_json: JsonOption = False,
) -> None:
    """Say what toolkit run would do with the same flags, and how long it would take; nothing is made."""
    start = time.perf_counter()
    from toolkit.forecast.command import warn_of_given_teacher
    from toolkit.pipeline import refuse_several_processes, require_runtimes
    from toolkit.runtimes.providers import require_provider
    from toolkit.workspace import open_for_training

    refuse_several_processes()
    require_provider(provider, device)
    flags: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    settings = add_seed(seed, overrides)
    workspace = open_for_training(recipe, data, out, settings, device=device, writes=False, **flags)
    require_runtimes(workspace)
    workspace, planned = _make_plan(workspace, "run", minutes, start, writes=False)
    warn_of_given_teacher(workspace, planned)
    if as_json:
        print_json(planned.to_json())
        return
    planned.print_to(console.out)
    console.out.print(f"next: {command('run', *sys.argv[2:])}", markup=False)


def say_plan(workspace: "Workspace", name: "Command", minutes: float | None, start: float) -> "Workspace":
    """Print the plan on stderr, before the first image is decoded; returns the workspace, fitted into `minutes`.

    Raises ArtifactError if another process trains in the same directory.
    """
    from toolkit.distill.distributed import is_main

    if is_main():
        workspace.model_dir.claim()
    workspace, planned = _make_plan(workspace, name, minutes, start)
    planned.print_to(console.err)
    return workspace


def _make_plan(
    workspace: "Workspace", name: "Command", minutes: float | None, start: float, *, writes: bool = True
) -> "tuple[Workspace, Forecast]":
    if minutes is None:
        from toolkit.forecast.command import forecast_command

        return workspace, forecast_command(workspace, name)
    from toolkit.forecast.minutes import fit_job

    return fit_job(workspace, name, minutes, start, writes=writes)
