"""The `toolkit` command: parse, call one stage, print. No heavy import at module level, so that --help is quick."""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from toolkit import __version__, console
from toolkit.cli.options import (
    BaselineOption,
    ClientsOption,
    CompareOption,
    DataOption,
    DeepOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    MaxDropOption,
    MaxSlowdownOption,
    MinutesOption,
    ModelDirArgument,
    OutOption,
    PrecisionOption,
    ProviderOption,
    RecipeOption,
    ResumeOption,
    RoleOption,
    RuntimesOption,
    SecondsOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StrictOption,
    TensorboardOption,
)
from toolkit.cli.printing import (
    command,
    print_end,
    print_json,
    print_weights,
    print_written,
    resume_command,
    training_flags,
)
from toolkit.errors import Interrupted, ToolkitError, TrainingError, UsageError
from toolkit.modeldir import FilePrecision, ModelDir

if TYPE_CHECKING:
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast
    from toolkit.workspace import Workspace


class _Commands(TyperGroup):
    """The commands; a value that one of them does not take is told in one line, as every other error."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except typer.BadParameter as error:
            told = error.format_message().rstrip(".")
            told = told.replace(": Value error, ", ": ").replace(": Input should", ": it should")
            remedy = f"see what it takes: toolkit {context.invoked_subcommand} --help"
            raise UsageError(told[0].lower() + told[1:], remedy) from None


app = typer.Typer(
    name="toolkit",
    cls=_Commands,
    help="Distil an image classifier into a small one, export it to ONNX with proof, benchmark it, show it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="The whole way on the built-in data: toolkit run. "
    "Exit codes: 0 done, 1 an error you can mend, 2 wrong usage, 3 a gate not met.",
)

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM."""

RESUMABLE = ("teacher", "distill", "run")
"""Commands that --resume goes on with."""

OTHERS_WAIT_S = 30.0
"""s that an error of one of several processes is kept back, as it may be the main one's too, or the stop of all."""

Flags = dict[str, Any]
"""What open_for_training passes on to the workspace."""

DEFAULT_MODEL_DIR = Path("models/fashion-mnist")


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    if version:
        console.out.print(f"kd-toolkit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        _require_temporary_folder()


@app.command()
def doctor(deep: DeepOption = False, as_json: JsonOption = False) -> None:
    """What this machine can really do, what is wrong and how to mend it."""
    from toolkit.doctor.examine import examine

    report = examine(deep=deep)
    if as_json:
        print_json(report.to_json())
    else:
        report.print_table()
    if report.has_problem:
        raise typer.Exit(1)


@app.command()
def data(
    source: Annotated[str, typer.Argument(metavar="NAME_OR_DIR", help="A named data set or a directory of images.")],
    overrides: SetOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count and check a data set: classes, sizes, unreadable files, images that stand in two splits."""
    from toolkit.data.check import check_dataset
    from toolkit.data.defaults import follow_pictures
    from toolkit.data.sources import load_dataset
    from toolkit.errors import DataError
    from toolkit.recipe import Recipe
    from toolkit.workspace import BUILTIN_RECIPE_OF_SET

    recipe = Recipe().with_overrides([f"data.source={json.dumps(source)}", *(overrides or [])])
    dataset = load_dataset(recipe.data)
    report = check_dataset(dataset)
    if as_json:
        print_json(report.to_json())
    else:
        report.print_table()
        if source not in BUILTIN_RECIPE_OF_SET and (line := follow_pictures(recipe, dataset.train)[1]):
            console.out.print(line, markup=False)
    if strict and report.unreadable:
        first = report.unreadable[0]
        raise DataError(
            f"{len(report.unreadable)} unreadable images in {source}, the first is {first.name}: {first.reason}",
            "mend or delete them, or leave out --strict to train without them",
        )


@app.command()
def teacher(
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: OutOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FILE_OR_NAME",
            help="Import a file or what ships (fashion-mnist), or fine-tune `imagenet`.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = None,
    overrides: SetOption = None,
    minutes: MinutesOption = None,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    force: ForceOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the teacher, fine-tune it from ImageNet, or import one with --weights."""
    start = time.perf_counter()
    from toolkit.pipeline import make_teacher
    from toolkit.workspace import open_for_training

    extra = [f"teacher.weights={json.dumps(weights)}"] if weights is not None else []
    options = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard}
    workspace = open_for_training(recipe, data, out, _overrides(seed, overrides, extra), device=device, **options)
    workspace = _say_plan(workspace, "teacher", minutes, start)
    made = make_teacher(workspace)
    same = training_flags(recipe, data, _overrides(seed, overrides), workspace.model_dir.path)
    print_weights("teacher", made, start, command("distill", *same), as_json)


@app.command()
def distill(
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: OutOption = None,
    device: DeviceOption = "auto",
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
    """Distil the student from the teacher; a directory without a teacher gets one first."""
    from toolkit.pipeline import distill_student
    from toolkit.workspace import open_for_training

    start = time.perf_counter()
    options: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    workspace = open_for_training(recipe, data, out, _overrides(seed, overrides), device=device, **options)
    workspace = _say_plan(workspace, "distill", minutes, start)
    made = distill_student(workspace)
    print_weights("student", made, start, command("export", "--onnx", workspace.model_dir.path), as_json)


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(metavar="[MODEL_DIR]", help="A directory that distill wrote, or one weights file.")
    ] = DEFAULT_MODEL_DIR,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write ONNX files in fp32.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also in half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also in int8, calibrated on training images.")] = False,
    max_drop: MaxDropOption = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", metavar="DIR", help="Also fill a Triton model repository.")
    ] = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: OutOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write teacher and student as ONNX files and prove that they answer as the networks do."""
    if not onnx:
        raise typer.BadParameter("say which format to write: --onnx (and --fp16, --int8 with it)", param_hint="--onnx")
    if max_drop is not None and not int8:
        raise typer.BadParameter("is the accuracy that int8 may lose: give it with --int8", param_hint="--max-drop")
    from toolkit.pipeline import export_models, export_weights, write_triton_models
    from toolkit.workspace import Choice, open_finished, open_weights_file

    if triton is not None:
        ModelDir(triton).make()  # proves, before any work, that it can be written to
    start = time.perf_counter()
    settings = [*(overrides or []), *([f"export.max_drop={max_drop}"] if max_drop is not None else [])]
    smaller: tuple[FilePrecision, ...] = (*(("fp16",) if fp16 else ()), *(("int8",) if int8 else ()))
    if model.is_file():
        workspace = open_weights_file(model, Choice(recipe, data, out, settings), force=force)
        results = export_weights(workspace, model, smaller, with_images=data is not None)
        next_command = command("predict", results[0].path, "IMAGE")
    else:
        if out is not None:
            raise typer.BadParameter("is for a weights file; a directory is exported in place", param_hint="--out")
        workspace = open_finished(model, recipe, data, settings, device="cpu", force=force)
        results = export_models(workspace, smaller)
        next_command = command("bench", model)
    name = results[0].path.resolve().parent.name
    folders = write_triton_models(triton, name, results, force=force) if triton is not None else []
    if as_json:
        places = [{"triton": str(folder)} for folder in folders] or [{}] * len(results)
        print_json([result.to_json() | place for result, place in zip(results, places, strict=True)])
        return
    for result in results:
        console.out.print(result.summary(), markup=False)
    for folder in folders:
        console.out.print(f"wrote {folder}: config.pbtxt, labels.txt, 1/model.onnx", markup=False)
    print_end(start, next_command)


@app.command()
def bench(
    model: ModelDirArgument = DEFAULT_MODEL_DIR,
    recipe: RecipeOption = None,
    data: DataOption = None,
    device: DeviceOption = "auto",
    provider: ProviderOption = "auto",
    runtimes: RuntimesOption = None,
    baseline: BaselineOption = None,
    max_slowdown: MaxSlowdownOption = None,
    max_drop: MaxDropOption = None,
    compare: CompareOption = None,
    clients: ClientsOption = None,
    seconds: SecondsOption = 10.0,
    role: RoleOption = "student",
    precision: PrecisionOption = "fp32",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure size, latency and accuracy of teacher and student on the test split.

    With --compare, put two reports side by side; with --clients, put one ONNX file under load. Neither measures anew.
    """
    if sum(choice is not None for choice in (baseline, compare, clients)) > 1:
        raise typer.BadParameter("goes alone: give one of --baseline, --compare, --clients", param_hint="--compare")
    from toolkit.cli import bench

    if compare is not None:
        bench.compare(model, compare, as_json)
        return
    _require_provider(provider, device)
    if clients is not None:
        from toolkit.runtimes.providers import follow_device

        bench.put_under_load(model, follow_device(provider, device), clients, seconds, role, precision, as_json)
    else:
        from toolkit.recipe import Recipe

        names = json.dumps([name.strip() for name in runtimes.split(",")]) if runtimes else None
        given = {"runtimes": names, "max_slowdown": max_slowdown, "max_drop": max_drop}
        settings = [f"bench.{key}={value}" for key, value in given.items() if value is not None]
        Recipe().with_overrides(settings)  # what is wrong in them is told before the model is looked for
        bench.measure(model, recipe, data, device, provider, [*(overrides or []), *settings], baseline, as_json)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a model directory (its student).")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many classes to print.")] = 5,
    provider: ProviderOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Classify images with the ONNX file alone (torch is not needed)."""
    _require_provider(provider)
    from toolkit.predict import predict_files, print_predictions

    print_predictions(predict_files(model, images, k=k, provider=provider), as_json=as_json)


@app.command()
def demo(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[MODEL_DIR]...", help="Directories with exported ONNX files.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", envvar="KD_TOOLKIT_HOST", help="Address to listen on; 0.0.0.0 for every one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, envvar="KD_TOOLKIT_PORT")] = 7860,
    max_upload: Annotated[
        int,
        typer.Option(
            "--max-upload",
            min=1,
            max=1000,
            metavar="MB",
            envvar="KD_TOOLKIT_MAX_UPLOAD",
            help="Largest file that is taken.",
        ),
    ] = 10,
    provider: ProviderOption = "auto",
) -> None:
    """Serve a page: upload a picture, see teacher and student answer side by side.

    Where KD_TOOLKIT_USER and KD_TOOLKIT_PASSWORD are set, visitors sign in with them. /healthz says ok to everyone.
    """
    _require_provider(provider)
    from toolkit.demo.server import serve

    model_dirs = [ModelDir(path) for path in models or [DEFAULT_MODEL_DIR]]
    serve(model_dirs, host=host, port=port, provider=provider, max_upload_mb=max_upload)


@app.command()
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
    """What `toolkit run` would do with the same flags, and how long it would take; nothing is made."""
    from toolkit.forecast.command import warn_of_given_teacher
    from toolkit.pipeline import refuse_several_processes, require_runtimes
    from toolkit.workspace import open_for_training

    start = time.perf_counter()
    refuse_several_processes()
    _require_provider(provider, device)
    options: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    settings = _overrides(seed, overrides)
    workspace = open_for_training(recipe, data, out, settings, device=device, writes=False, **options)
    require_runtimes(workspace)
    workspace, planned = _make_plan(workspace, "run", minutes, start, writes=False)
    warn_of_given_teacher(workspace, planned)
    if as_json:
        print_json(planned.to_json())
        return
    planned.print_to(console.out)
    console.out.print(f"next: {command('run', *sys.argv[2:])}", markup=False)


@app.command()
def run(
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
    """The whole way: teacher, student and its control, ONNX, report."""
    start = time.perf_counter()
    from toolkit.bench.bench import written_files
    from toolkit.bench.report.table import print_table
    from toolkit.pipeline import refuse_several_processes, require_runtimes, run_all
    from toolkit.workspace import open_for_training

    refuse_several_processes()
    _require_provider(provider, device)
    options: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    workspace = open_for_training(recipe, data, out, _overrides(seed, overrides), device=device, **options)
    require_runtimes(workspace)
    workspace = _say_plan(workspace, "run", minutes, start)
    report = run_all(workspace, provider)
    if as_json:
        print_json(report)
        return
    print_table(report)
    directory = workspace.model_dir
    print_written(
        [
            *(directory.weights(role) for role in ("teacher", "student")),
            *(directory.onnx(role) for role in ("teacher", "student")),
            *written_files(directory),
        ]
    )
    print_end(start, command("demo", directory.path))


def main() -> None:
    """Entry point: a ToolkitError is one line on stderr and its exit code; a bug keeps its traceback."""
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks for all
        console.out.quiet = console.err.quiet = True
    signal.signal(signal.SIGTERM, _end)
    try:
        _run_command()
    except Interrupted as stop:
        console.say(f"stopped in {stop.where}; go on with: {resume_command()}")
        _part()
        sys.exit(stop.exit_code)
    except SystemExit as ending:
        if ending.code in (INTERRUPTED, TERMINATED):
            resumable = sys.argv[1:2] and sys.argv[1] in RESUMABLE
            console.say(f"stopped; go on with: {resume_command()}" if resumable else "stopped")
        elif not ending.code:
            _part()
        raise


def _run_command() -> None:
    try:
        try:
            app()
        except RuntimeError as error:
            _tell_lost_peer(error)
            raise
    except ToolkitError as error:
        if console.err.quiet:  # where the main process says the same, torchrun ends this one meanwhile
            time.sleep(OTHERS_WAIT_S)
            console.err.quiet = False
        console.say(f"error: {error}")
        sys.exit(error.exit_code)


def _tell_lost_peer(error: RuntimeError) -> None:
    """TrainingError where another process has ended, unless all are being stopped and this one hears of it now."""
    distributed = _distributed()
    if distributed is None or not distributed.is_peer_lost(error):
        return
    if not console.err.quiet:  # one that is quiet waits before it tells any error
        time.sleep(OTHERS_WAIT_S)
    raise TrainingError(
        f"another of the {distributed.world_size()} processes has ended ({str(error).splitlines()[0]})",
        f"see what it said, then go on with: {resume_command()}",
    ) from None


def _part() -> None:
    if distributed := _distributed():
        distributed.part()


def _distributed() -> ModuleType | None:
    """toolkit.distill.distributed where this is one of several processes and has loaded it; it takes torch with it."""
    return sys.modules.get("toolkit.distill.distributed") if "RANK" in os.environ else None


def _require_provider(provider: str, device: str = "auto") -> None:
    """Before anything is looked for or made; training takes hours, and onnxruntime's turn comes after it."""
    from toolkit.runtimes.providers import require_provider

    require_provider(provider, device)


def _require_temporary_folder() -> None:
    """Half of what is imported later fails without one, and with a traceback."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise ToolkitError(
            "no folder for temporary files can be written, neither $TMPDIR nor /tmp",
            "set TMPDIR to one you may write to; in a read-only container: docker run --read-only --tmpfs /tmp",
        ) from None


def _end(signal_number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that nothing half-written stays; training has a way of its own."""
    raise SystemExit(TERMINATED)


def _say_plan(workspace: "Workspace", name: "Command", minutes: float | None, start: float) -> "Workspace":
    """Before the first image is decoded: what is about to happen, on stderr; the workspace, fitted into `minutes`.

    Raises ArtifactError where another process trains in the same directory.
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


def _overrides(seed: int | None, overrides: list[str] | None, extra: list[str] | None = None) -> list[str]:
    return [*(extra or []), *([f"distill.seed={seed}"] if seed is not None else []), *(overrides or [])]
