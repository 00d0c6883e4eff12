"""The stages in order: teacher, distil, export, bench."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.errors import DeviceError
from toolkit.modeldir import ModelDir, Precision
from toolkit.recipe import Recipe, load_builtin
from toolkit.workspace import NOTEBOOK_RECIPE, Job, _follow_pictures, _named_recipe, _with_source, with_control

if TYPE_CHECKING:
    from toolkit.distill.job import Made
    from toolkit.export.export import ExportResult, Wanted


def refuse_several_processes() -> None:
    """DeviceError under torchrun: export and bench have nothing to share out."""
    from toolkit.distill.distributed import launched

    if launched():
        raise DeviceError(
            "toolkit run is one process's work, and torchrun started several",
            "share out training alone: torchrun ... -m toolkit distill; then toolkit export and toolkit bench",
        )


def make_teacher(job: Job) -> "Made":
    from toolkit.distill import provenance, teacher

    provenance.require_fitting(job.recipe, job.dataset)  # before anything is downloaded or decoded
    return teacher.make_teacher(job.recipe, job.model_dir, job.images, job.options)


def distill_student(job: Job, *, control: bool = False) -> "Made":
    """Distil the student; a directory without a teacher gets one first.

    The control is trained too where the recipe says so; where it says nothing, `control` decides, and several seeds
    always want it: side by side with the student where that is faster. More seeds than one go into directories of their
    own below the job's.
    """
    from toolkit import control_process
    from toolkit.distill import student

    if not job.model_dir.weights("teacher").exists():
        console.say(f"{job.model_dir.path} has no teacher yet: making it first")
        _make_teacher_first(job)
    also_control = with_control(job, by_default=control)
    first = job.recipe.distill.seed
    made = None
    for seed in range(first, first + job.seeds):
        recipe = job.recipe.with_overrides([f"distill.seed={seed}"])
        directory = job.model_dir if seed == first else job.model_dir.of_seed(seed)
        if job.seeds > 1:
            console.say(f"seed {seed} ({seed - first + 1} of {job.seeds}), in {directory.path}")
        directory.make()
        # with stored logits only: a live teacher is most of the work, and only the student's
        pair = also_control and bool(recipe.distill.stored_views) and control_process.has_room(job.device)
        pair = pair and not student.has_control(recipe, directory, job.images, job.options)
        of_seed = replace(job, recipe=recipe, model_dir=directory)
        other = partial(control_process.control_beside, of_seed) if pair else nullcontext
        one = student.distill_student(recipe, directory, job.images, job.options, job.model_dir, other)
        made = made or one
        if also_control and not (pair and one.new):
            student.train_control(recipe, directory, job.images, job.options)
    assert made is not None
    return made


def _make_teacher_first(job: Job) -> None:
    """`make_teacher`, and its accuracy as a remark: a command that goes on has another result to end with."""
    if (accuracy := make_teacher(job).info.extra.get("valid_accuracy")) is not None:
        console.say(f"teacher: validation accuracy {accuracy:.4f}")


def export_models(job: Job, smaller: tuple[Precision, ...] = ()) -> "list[ExportResult]":
    """Teacher and student as fp32 ONNX files and in the `smaller` precisions, each proven."""
    from toolkit.export.export import export_model_dir

    return export_model_dir(job.model_dir, _wanted(job, smaller, with_images=True))


def export_weights(
    weights: Path,
    recipe_name: str | None,
    data: str | None,
    out: Path | None,
    overrides: list[str],
    *,
    smaller: tuple[Precision, ...] = (),
    force: bool = False,
) -> "list[ExportResult]":
    """Export one weights file; --data gives a bare one its class names, and images to check its accuracy on.

    A bare state dict without a recipe is taken for the notebook's: what is published beside it has its settings.
    """
    from toolkit.export.export import export_weights_file
    from toolkit.networks.weights import carries_info, read_info

    if recipe_name:
        recipe = _named_recipe(recipe_name)
    elif carries_info(weights):
        recipe = Recipe.from_dict(read_info(weights).recipe, str(weights))
    else:
        recipe = load_builtin(NOTEBOOK_RECIPE)
    directory = ModelDir(out or weights.parent)
    directory.make()
    job = Job(_with_source(recipe, data).with_overrides(overrides), directory, "cpu", force)
    job = _follow_pictures(job) if data else job
    classes = job.dataset.classes if data else None
    return export_weights_file(weights, directory.path, _wanted(job, smaller, with_images=bool(data)), classes)


def write_triton_models(repository: Path, prefix: str, results: "list[ExportResult]", *, force: bool) -> list[Path]:
    """Put every exported file into a Triton model repository, as `<prefix>_<role>[_<precision>]`."""
    from toolkit.export.triton import write_triton_model

    return [
        write_triton_model(repository, f"{prefix}_{result.path.stem}", result.path, force=force) for result in results
    ]


def _wanted(job: Job, smaller: tuple[Precision, ...], *, with_images: bool) -> "Wanted":
    from toolkit.export.export import Wanted

    valid = job.valid_pixels if with_images else None
    train = job.train_pixels if with_images and "int8" in smaller else None
    return Wanted(job.recipe, valid, train, smaller, job.force)


def bench_models(job: Job, provider: str = "auto") -> dict[str, Any]:
    from toolkit.bench.bench import run_bench

    return run_bench(job.model_dir, job.recipe, job.test_pixels, job.dataset, device=job.device, provider=provider)


def run_all(job: Job, provider: str = "auto") -> dict[str, Any]:
    """Teacher, student and its control, ONNX, report: the stages one after another; returns the report."""
    start = time.perf_counter()
    stages: tuple[tuple[str, Callable[[Job], object]], ...] = (
        ("1/4 teacher", _make_teacher_first),
        ("2/4 distill", partial(distill_student, control=True)),
        ("3/4 export", export_models),
    )
    for title, stage in stages:
        console.say(f"── {title} · {console.duration(time.perf_counter() - start)} so far")
        stage(job)
    console.say(f"── 4/4 bench · {console.duration(time.perf_counter() - start)} so far")
    return bench_models(job, provider)
