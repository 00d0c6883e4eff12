"""The stages in order: teacher, distil, export, bench."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import console
from toolkit.errors import DeviceError
from toolkit.modeldir import FilePrecision, Role
from toolkit.stage_setup import StageSetup, with_control

if TYPE_CHECKING:
    from toolkit.bench.schema import Report
    from toolkit.distill.job import WeightsFile
    from toolkit.export.export import ExportOptions, ExportResult


def set_up_run(set_up: Callable[[], StageSetup], device: str, provider: str) -> StageSetup:
    """The setup that `set_up` makes, for `run_all`. The needs of its last stages are checked before hours of training.

    Raises DeviceError under torchrun, and if a provider or a runtime of the benchmark is not there.
    """
    from toolkit.sessions.providers import require_provider

    _refuse_several_processes()
    require_provider(provider, device)
    setup = set_up()
    require_runtimes(setup)
    return setup


def _refuse_several_processes() -> None:
    """DeviceError under torchrun: export and bench have nothing to share out."""
    from toolkit.distill.distributed import launched

    if launched():
        raise DeviceError(
            "toolkit run works in one process, and torchrun started several",
            "use torchrun for training alone: torchrun ... -m toolkit distill; then toolkit export and toolkit bench",
        )


def require_runtimes(setup: StageSetup) -> None:
    """DeviceError if a runtime of the benchmark is not installed."""
    from toolkit.runtimes.opening import RUNTIMES

    for name in setup.recipe.bench.runtimes:
        RUNTIMES[name].require()


def make_teacher(setup: StageSetup) -> "WeightsFile":
    from toolkit.distill import provenance, teacher

    provenance.require_fitting(setup.recipe, setup.dataset)  # before anything is downloaded or decoded
    _try_networks(setup, with_teacher=not provenance.is_given(setup.recipe))
    return teacher.make_teacher(setup.recipe, setup.model_dir, setup.training_data, setup.options)


def find_teacher(setup: StageSetup) -> "WeightsFile":
    """The teacher of the directory as it is, or one that is made now; ArtifactError if it is another network."""
    from toolkit.distill.job import WeightsFile
    from toolkit.networks.weights import read_info

    path = setup.model_dir.weights("teacher")
    if not path.is_file():
        return make_teacher(setup)
    _find_teacher(setup)
    return WeightsFile(path, new=False, info=read_info(path))


def save_answers(setup: StageSetup, path: Path) -> None:
    """Write a file of the answers of the directory's teacher to the training and validation images."""
    from toolkit.distill import answering

    count = answering.save_answers(path, setup.model_dir.weights("teacher"), setup.training_data, setup.device)
    console.say(f"teacher: {count:,} answers in {path}")


def distill_student(setup: StageSetup, *, control: bool = False) -> "WeightsFile":
    """Distil the student; a directory without a teacher gets one first. The teacher there must be the recipe's network.

    The control is trained too if the recipe says so. If the recipe leaves it open, `control` decides, and several seeds
    always have one. Both train side by side if that is faster. Further seeds go into directories of their own below the
    setup's.
    """
    from toolkit import control_process
    from toolkit.distill import student

    _find_teacher(setup)
    also_control = with_control(setup, by_default=control)
    first = setup.recipe.training.seed
    made = None
    for seed in range(first, first + setup.seeds):
        recipe = setup.recipe.with_overrides([f"training.seed={seed}"])
        directory = setup.model_dir if seed == first else setup.model_dir.of_seed(seed)
        if setup.seeds > 1:
            console.say(f"seed {seed} ({seed - first + 1} of {setup.seeds}), in {directory.path}")
        directory.make()
        # with stored logits only: a live teacher is most of the work, and only the student's
        pair = (
            also_control
            and bool(recipe.distill.stored_views)
            and control_process.has_room(setup.device, setup.recipe.student.architecture)
        )
        pair = pair and not student.has_control(recipe, directory, setup.training_data, setup.options)
        of_seed = replace(setup, recipe=recipe, model_dir=directory)
        other = partial(control_process.control_beside, of_seed) if pair else nullcontext
        one = student.distill_student(recipe, directory, setup.training_data, setup.options, setup.model_dir, other)
        made = made or one
        if also_control and not (pair and one.new):
            student.train_control(recipe, directory, setup.training_data, setup.options)
    assert made is not None
    return made


def _find_teacher(setup: StageSetup) -> None:
    """Make a teacher if there is none; ArtifactError for one of another network, or of folds of other images."""
    from toolkit.distill import provenance, teacher

    path = setup.model_dir.weights("teacher")
    if path.exists():
        _try_networks(setup, with_teacher=False)
        teacher.require_same_network(path, setup.recipe)
        provenance.require_known_folds(path, setup.recipe, setup.dataset)
        teacher.report_changed_training(path, setup.recipe)
    else:
        console.say(f"{setup.model_dir.path} has no teacher yet: making one first")
        _make_teacher_first(setup)


def _try_networks(setup: StageSetup, *, with_teacher: bool) -> None:
    """Prove, before hours of work, that the networks can be trained: they are tried with one or two images.

    Raises RecipeError.
    """
    from toolkit.distill.trainable import require_trainable
    from toolkit.networks.registry import NetworkSpec
    from toolkit.networks.weights import teacher_spec

    recipe, num_classes = setup.recipe, len(setup.dataset.classes)
    specs: dict[Role, NetworkSpec] = {"teacher": teacher_spec(recipe, None)} if with_teacher else {}
    for role, spec in (specs | {"student": NetworkSpec.of(recipe.student)}).items():
        require_trainable(spec.build(num_classes, recipe.data_of(role).image_size), recipe, role)


def _make_teacher_first(setup: StageSetup) -> None:
    """`make_teacher`, and its accuracy as a remark: a command that goes on has another result to end with."""
    if (accuracy := make_teacher(setup).info.extra.get("valid_accuracy")) is not None:
        console.say(f"teacher: validation accuracy {accuracy:.4f}")


def export_models(setup: StageSetup, smaller: tuple[FilePrecision, ...] = ()) -> "list[ExportResult]":
    """Teacher and student as fp32 ONNX files and in the `smaller` precisions, each proven."""
    from toolkit.export.export import export_model_dir

    roles: tuple[Role, ...] = ("teacher", "student")
    return export_model_dir(
        setup.model_dir, {role: _export_options(setup, role, smaller, with_images=True) for role in roles}
    )


def export_weights(
    setup: StageSetup, weights: Path, smaller: tuple[FilePrecision, ...] = (), *, with_images: bool
) -> "list[ExportResult]":
    """Export one weights file into the setup's directory; `weights_setup` makes such a setup.

    If the setup's data belongs to these weights (`with_images`), it gives a bare file its class names, and images
    to check its accuracy on.
    """
    from toolkit.export.export import export_weights_file
    from toolkit.networks.weights import carries_info, read_info

    classes = setup.dataset.classes if with_images else None
    role = read_info(weights).role if carries_info(weights) else "student"
    options = _export_options(setup, role, smaller, with_images=with_images)
    return export_weights_file(weights, setup.model_dir.path, options, classes)


def write_triton_models(repository: Path, prefix: str, results: "list[ExportResult]", *, force: bool) -> list[Path]:
    """Put every exported file into a Triton model repository, as `<prefix>_<role>[_<precision>]`."""
    from toolkit.export.triton import write_triton_model

    return [
        write_triton_model(repository, f"{prefix}_{result.path.stem}", result.path, force=force) for result in results
    ]


def _export_options(
    setup: StageSetup, role: Role, smaller: tuple[FilePrecision, ...], *, with_images: bool
) -> "ExportOptions":
    from toolkit.export.export import ExportOptions

    valid = setup.pixels("valid", role) if with_images else None
    train = setup.pixels("train", role) if with_images and "int8" in smaller else None
    return ExportOptions(setup.recipe, valid, train, smaller, setup.force)


def bench_models(setup: StageSetup, provider: str = "auto", baseline: "Report | None" = None) -> "Report":
    """Write the report and return it; with a `baseline`, it compares the rows with the baseline's."""
    from toolkit.bench.bench import run_bench

    return run_bench(
        setup.model_dir,
        setup.recipe,
        replace(setup.bench_images, training=setup.training_sample()),
        device=setup.device,
        provider=provider,
        baseline=baseline,
    )


def run_all(setup: StageSetup, provider: str = "auto") -> "Report":
    """Teacher, student and its control, ONNX, report: the stages one after another; returns the report."""
    start = time.perf_counter()
    stages: tuple[tuple[str, Callable[[StageSetup], object]], ...] = (
        ("1/4 teacher", _make_teacher_first),
        ("2/4 distill", partial(distill_student, control=True)),
        ("3/4 export", export_models),
    )
    for title, stage in stages:
        console.say(f"── {title} · {console.duration(time.perf_counter() - start)} so far")
        stage(setup)
    console.say(f"── 4/4 bench · {console.duration(time.perf_counter() - start)} so far")
    return bench_models(setup, provider)
