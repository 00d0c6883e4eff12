"""The stages as commands: run, teacher, distill, export and bench."""

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit import console
from toolkit.cli import results
from toolkit.cli.options import (
    DEFAULT_MODEL_DIR,
    AnswersOption,
    BaselineOption,
    DataOption,
    DeviceOption,
    ExportOutOption,
    Flags,
    ForceOption,
    Fp16Option,
    HiddenClientsOption,
    HiddenCompareOption,
    HiddenPrecisionOption,
    HiddenRoleOption,
    HiddenSecondsOption,
    Int8DropOption,
    Int8Option,
    JsonOption,
    MaxDropOption,
    MaxSlowdownOption,
    MinutesOption,
    ModelDirArgument,
    OnnxOption,
    OutOption,
    ProviderOption,
    RecipeOption,
    ResumeOption,
    RuntimesOption,
    SaveAnswersOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StrictOption,
    TensorboardOption,
    TritonOption,
    TrustOption,
    UnlabelledOption,
    WeightsOption,
    add_answers,
    add_seed,
    add_unlabelled,
    add_weights,
)
from toolkit.cli.preparation import say_plan
from toolkit.cli.printing import (
    after_report,
    command,
    print_end,
    print_files,
    print_json,
    print_weights,
    times_of,
    training_flags,
)
from toolkit.errors import UsageError
from toolkit.modeldir import FilePrecision, ModelDir

if TYPE_CHECKING:
    from toolkit.export.export import ExportResult


def run(
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
    """Do all stages: teacher, student and its control, ONNX files, report."""
    start = time.perf_counter()
    from toolkit.bench.bench import written_files
    from toolkit.bench.report.table import print_table
    from toolkit.pipeline import run_all, set_up_run
    from toolkit.stage_setup import prepare_training

    flags: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    settings = add_answers(answers, add_seed(seed, add_unlabelled(unlabelled, overrides)))
    set_up = partial(prepare_training, recipe, data, out, settings, device=device, **flags)
    setup = say_plan(set_up_run(set_up, device, provider), "run", minutes, start)
    directory = setup.model_dir
    networks = [
        *(directory.weights(role) for role in ("teacher", "student")),
        *(directory.onnx(role) for role in ("teacher", "student")),
    ]
    before = times_of(networks)
    report = run_all(setup, provider)
    if as_json:
        print_json(report.to_json())
        return
    print_table(report)
    after = times_of(networks)  # some teachers have no ONNX file
    print_files([*after, *written_files(directory)], [path for path in after if before.get(path) == after[path]])
    print_end(start, after_report(report, directory.path))


def teacher(
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: OutOption = None,
    weights: WeightsOption = None,
    answers: AnswersOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = None,
    overrides: SetOption = None,
    minutes: MinutesOption = None,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    force: ForceOption = False,
    strict: StrictOption = False,
    trust: TrustOption = False,
    save_answers: SaveAnswersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the teacher, fine-tune it from ImageNet, or import one with --weights or --answers."""
    if weights and answers is not None:
        raise UsageError("--weights and --answers exclude each other", "give one of them")
    start = time.perf_counter()
    from toolkit.data.answer_file import require_answer_file
    from toolkit.pipeline import find_teacher, make_teacher
    from toolkit.pipeline import save_answers as write_answers
    from toolkit.stage_setup import prepare_training

    if save_answers is not None:
        require_answer_file(save_answers, "--save-answers")
    flags: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard}
    carried_on = add_seed(seed, overrides)
    own = add_weights(weights, add_answers(answers, []))
    setup = prepare_training(recipe, data, out, [*own, *carried_on], device=device, **flags)
    if save_answers is not None and not (own or force) and setup.model_dir.weights("teacher").is_file():
        made = find_teacher(setup)
    else:
        setup = say_plan(setup, "teacher", minutes, start)
        made = make_teacher(setup)
    if save_answers is not None:
        write_answers(setup, save_answers)
    if recipe is not None or any(override.startswith("teacher.") for override in carried_on):
        carried_on = [*own, *carried_on]  # or else the settings, or the recipe, would be of another teacher
    next_flags = training_flags(recipe, data, carried_on, setup.model_dir.path)
    print_weights("teacher", made, start, command("distill", *next_flags), as_json, save_answers)


def distill(
    recipe: RecipeOption = None,
    data: DataOption = None,
    unlabelled: UnlabelledOption = None,
    out: OutOption = None,
    answers: AnswersOption = None,
    device: DeviceOption = "auto",
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
    """Distil the student from the teacher; a directory without a teacher gets one first."""
    start = time.perf_counter()
    from toolkit.pipeline import distill_student
    from toolkit.stage_setup import prepare_training

    flags: Flags = {"force": force, "strict": strict, "resume": resume, "tensorboard": tensorboard, "seeds": seeds}
    settings = add_answers(answers, add_seed(seed, add_unlabelled(unlabelled, overrides)))
    setup = prepare_training(recipe, data, out, settings, device=device, **flags)
    setup = say_plan(setup, "distill", minutes, start)
    made = distill_student(setup)
    print_weights("student", made, start, command("export", setup.model_dir.path), as_json)


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A directory that distill wrote, or one weights file.")
    ] = DEFAULT_MODEL_DIR,
    onnx: OnnxOption = False,  # the only format, so the flag changes nothing
    fp16: Fp16Option = False,
    int8: Int8Option = False,
    max_drop: Int8DropOption = None,
    triton: TritonOption = None,
    recipe: RecipeOption = None,
    data: DataOption = None,
    out: ExportOutOption = None,
    overrides: SetOption = None,
    force: ForceOption = False,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write teacher and student as ONNX files, and prove that these answer as the networks do."""
    if max_drop is not None and not int8:
        raise UsageError("--max-drop is the accuracy that int8 may lose, and no int8 file is written", "add --int8")
    if out is not None and not model.is_file():
        raise UsageError("--out is for a weights file; a directory is exported in place", "leave out --out")
    start = time.perf_counter()
    from toolkit.pipeline import export_models, export_weights, write_triton_models
    from toolkit.stage_setup import Choice, prepare_finished, weights_setup

    if triton is not None:
        ModelDir(triton).make()  # proves, before any work, that it can be written to
    settings = [*(overrides or []), *([f"export.max_drop={max_drop}"] if max_drop is not None else [])]
    smaller: tuple[FilePrecision, ...] = (*(("fp16",) if fp16 else ()), *(("int8",) if int8 else ()))
    if model.is_file():
        setup = weights_setup(model, Choice(recipe, data, out, settings), force=force)
        exported = export_weights(setup, model, smaller, with_images=data is not None)
        next_command = command("predict", exported[0].path, "IMAGE")
    else:
        setup = prepare_finished(model, recipe, data, settings, device="cpu", force=force)
        exported = export_models(setup, smaller)
        next_command = command("bench", model)
    name = exported[0].path.resolve().parent.name
    folders = write_triton_models(triton, name, exported, force=force) if triton is not None else []
    _print_exported(exported, folders, as_json)
    if not as_json:
        print_end(start, next_command)


def _print_exported(exported: "list[ExportResult]", folders: list[Path], as_json: bool) -> None:
    if as_json:
        places = [{"triton": str(folder)} for folder in folders] or [{}] * len(exported)
        print_json([result.to_json() | place for result, place in zip(exported, places, strict=True)])
        return
    for result in exported:
        console.out.print(result.summary(), markup=False)
    for folder in folders:
        console.out.print(f"wrote {folder}: config.pbtxt, labels.txt, 1/model.onnx", markup=False)


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
    compare: HiddenCompareOption = None,
    clients: HiddenClientsOption = None,
    seconds: HiddenSecondsOption = None,
    role: HiddenRoleOption = None,
    precision: HiddenPrecisionOption = None,
    overrides: SetOption = None,
    trust: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure size, latency and accuracy of teacher and student on the test split.

    --compare DIR is short for toolkit compare, and --clients N for toolkit load-test.
    """
    if sum(choice is not None for choice in (baseline, compare, clients)) > 1:
        raise UsageError("--baseline, --compare and --clients exclude each other", "give one of them")
    of_load = {"seconds": seconds, "role": role, "precision": precision}
    _require_clients(clients, of_load)
    if compare is not None:
        results.compare(model, compare, as_json)
        return
    from toolkit.sessions.providers import follow_device, require_provider

    require_provider(provider, device)
    if clients is not None:
        load: Flags = {name: value for name, value in of_load.items() if value is not None}
        results.load_test(model, clients, provider=follow_device(provider, device), as_json=as_json, **load)
        return
    from toolkit.cli import bench
    from toolkit.recipe import Recipe

    names = json.dumps([name.strip() for name in runtimes.split(",")]) if runtimes else None
    given = {"runtimes": names, "max_slowdown": max_slowdown, "max_drop": max_drop}
    settings = [f"bench.{key}={value}" for key, value in given.items() if value is not None]
    Recipe().with_overrides(settings)  # an error in them comes first, before the model is read
    bench.measure(model, recipe, data, device, provider, [*(overrides or []), *settings], baseline, as_json)


def _require_clients(clients: int | None, of_load: Flags) -> None:
    """UsageError for options of the load test without --clients: a benchmark would ignore them."""
    given = [f"--{'model' if name == 'role' else name}" for name, value in of_load.items() if value is not None]
    if given and clients is None:
        verb = "is an option" if len(given) == 1 else "are options"
        raise UsageError(f"{', '.join(given)} {verb} of the load test", "use toolkit load-test, or add --clients N")
