"""A job: which recipe, data and model directory a command works with, and the stages in order."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.cgroups import LITTLE_MEMORY_BYTES, memory_bytes
from toolkit.errors import DeviceError, RecipeError
from toolkit.modeldir import ModelDir, Precision, missing_volume
from toolkit.recipe import DEFAULT_RECIPE, Recipe, builtin_names, load_builtin

if TYPE_CHECKING:
    from toolkit.data.pixels import Pixels
    from toolkit.data.sources import Dataset
    from toolkit.distill.stage import Images, Made, Options
    from toolkit.export.export import ExportResult, Wanted
    from toolkit.forecast.facts import Command
    from toolkit.forecast.forecast import Forecast

MODELS = Path("models")
"""Where model directories lie, seen from where the command is run."""

NOTEBOOK_RECIPE = "food11"
BUILTIN_RECIPE_OF_SET = {"fashion-mnist": "fashion-mnist", "food-11": NOTEBOOK_RECIPE}


@dataclass(frozen=True)
class Job:
    """What every stage needs. `device` is a torch device that is proven to work."""

    recipe: Recipe
    model_dir: ModelDir
    device: str
    force: bool = False
    strict: bool = False
    resume: bool = False
    tensorboard: bool = False
    seeds: int = 1

    @cached_property
    def dataset(self) -> "Dataset":
        from toolkit.data.sources import load_dataset

        dataset = load_dataset(self.recipe.data)
        for note in dataset.notes:
            console.say(f"data: {note}")
        return dataset

    @cached_property
    def train_pixels(self) -> "Pixels":
        return self._pixels("train")

    @cached_property
    def valid_pixels(self) -> "Pixels":
        return self._pixels("valid")

    @cached_property
    def test_pixels(self) -> "Pixels":
        return self._pixels("test")

    @cached_property
    def images(self) -> "Images":
        from toolkit.distill.stage import Images

        return Images(self.dataset, self.train_pixels, self.valid_pixels)

    @property
    def options(self) -> "Options":
        from toolkit.distill.stage import Options

        return Options(self.device, self.force, self.resume, self.tensorboard)

    def _pixels(self, split: Any) -> "Pixels":
        from toolkit.data.pixels import load_pixels
        from toolkit.data.preprocess import Preprocess
        from toolkit.distill.distributed import leader_first

        data = self.recipe.data
        with leader_first():
            return load_pixels(
                self.dataset, split, Preprocess.from_recipe(data), workers=data.workers, strict=self.strict
            )


def open_training_job(
    recipe_name: str | None,
    data: str | None,
    out: Path | None,
    overrides: list[str],
    *,
    device: str = "auto",
    writes: bool = True,
    **options: Any,
) -> Job:
    """A job for teacher, distill and run; its recipe: --recipe, the data's own, OUT's, its teacher's, the default.

    What that and --set leave to the pictures is chosen, said and from then on stated in the job's recipe. `options` are
    the job's: force, strict, resume, tensorboard, seeds. Without `writes` no model directory is
    made.
    """
    _warn_of_little_memory()
    from toolkit.distill.compilation import require_few_sizes
    from toolkit.distill.distributed import join

    if options.get("tensorboard"):
        from toolkit.distill.metrics import require_tensorboard

        require_tensorboard()
    recipe, own_dir = _training_recipe(recipe_name, data, out)
    recipe = _with_source(recipe, data).with_overrides(overrides)
    device = _pick_device(device)  # before a directory is made
    model_dir = ModelDir(out or own_dir or MODELS / Path(recipe.data.source).resolve().name)
    if writes:
        model_dir.make()
        _warn_of_no_volume(model_dir.path)
    join(device)
    job = _follow_pictures(Job(recipe, model_dir, device, **options))
    require_few_sizes(job.recipe)
    return job


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


def refuse_several_processes() -> None:
    """DeviceError under torchrun: export and bench have nothing to share out."""
    from toolkit.distill.distributed import launched

    if launched():
        raise DeviceError(
            "toolkit run is one process's work, and torchrun started several",
            "share out training alone: torchrun ... -m toolkit distill; then toolkit export and toolkit bench",
        )


def require_runtimes(job: Job) -> None:
    """DeviceError where a runtime of the benchmark is not installed: before hours of training, and not after them."""
    if "openvino" in job.recipe.bench.runtimes:
        from toolkit.predictor import import_openvino

        import_openvino()


def open_finished_job(
    model_dir: Path,
    recipe_name: str | None,
    data: str | None,
    overrides: list[str],
    *,
    device: str = "auto",
    force: bool = False,
) -> Job:
    """A job for export and bench: the recipe is the one its weights were made with, unless --recipe says otherwise."""
    _warn_of_little_memory()
    device = _pick_device(device)
    from toolkit.networks.weights import read_info

    directory = ModelDir(model_dir)
    recipe = (
        _named_recipe(recipe_name)
        if recipe_name
        else Recipe.from_dict(read_info(directory.require(directory.weights("student"))).recipe, "student.safetensors")
    )
    directory.make()  # it is there: this proves that it can be written to, before any work
    recipe = _with_source(recipe, data).with_overrides(overrides)
    return _follow_pictures(Job(recipe, directory, device, force))


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
    from toolkit import beside
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
        pair = also_control and bool(recipe.distill.stored_views) and beside.has_room(job.device)
        pair = pair and not student.has_control(recipe, directory, job.images, job.options)
        of_seed = replace(job, recipe=recipe, model_dir=directory)
        other = partial(beside.control_beside, of_seed) if pair else nullcontext
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


def with_control(job: Job, *, by_default: bool) -> bool:
    """Whether the control is trained too; see distill_student."""
    wanted = job.recipe.distill.control
    return (by_default or job.seeds > 1) if wanted is None else wanted


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
    from toolkit.bench.report import run_bench

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


def _training_recipe(recipe_name: str | None, data: str | None, out: Path | None) -> tuple[Recipe, Path | None]:
    """The recipe and, where it has one, its own model directory."""
    if recipe_name:
        path = Path(recipe_name)
        own_dir = path.parent if path.name == "recipe.toml" else MODELS / path.stem
        return _named_recipe(recipe_name), own_dir
    if data is not None:
        builtin = BUILTIN_RECIPE_OF_SET.get(data)
        return (load_builtin(builtin), MODELS / builtin) if builtin else (Recipe(), None)
    if out is not None and ModelDir(out).recipe.is_file():
        return Recipe.from_toml(ModelDir(out).recipe), out
    if out is not None and ModelDir(out).weights("teacher").is_file():
        from toolkit.networks.weights import read_info

        teacher = ModelDir(out).weights("teacher")
        return Recipe.from_dict(read_info(teacher).recipe, str(teacher)), out
    return load_builtin(DEFAULT_RECIPE), MODELS / DEFAULT_RECIPE


def _named_recipe(name: str) -> Recipe:
    """A TOML file, or one of the recipes that ship with the toolkit by name."""
    if name in builtin_names():
        return load_builtin(name)
    if not Path(name).is_file():
        raise RecipeError(
            f"--recipe: there is no file {name}",
            f"give a TOML file or one of the built-in recipes: {', '.join(builtin_names())}",
        )
    return Recipe.from_toml(Path(name))


def _with_source(recipe: Recipe, data: str | None) -> Recipe:
    if data is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": data})})


def _follow_pictures(job: Job) -> Job:
    """The same job, with what its recipe leaves to the pictures chosen and said; its data set is read only for that."""
    from toolkit.data.defaults import follow_pictures, left_to_pictures

    if not left_to_pictures(job.recipe):
        return job
    recipe, line = follow_pictures(job.recipe, job.dataset.train)
    if line:
        console.say(line)
    resolved = replace(job, recipe=recipe)
    vars(resolved)["dataset"] = job.dataset  # nothing that was chosen changes it, and reading takes a while
    return resolved


def _warn_of_little_memory() -> None:
    """Before anything is loaded: where memory runs out, the kernel ends the process, and nobody is told why."""
    size_bytes = memory_bytes()
    if size_bytes < LITTLE_MEMORY_BYTES:
        console.say(
            f"careful: {size_bytes / 2**30:.1f} GiB of memory for this process; if it ends without a word, or with exit"
            " code 137, that was too little: give it 2 GiB, in a container with --memory 2g"
        )


def _warn_of_no_volume(path: Path) -> None:
    """Before hours of work, whose results nobody could reach."""
    if volume := missing_volume(path):
        console.say(
            f"careful: {path} lies in this container and is deleted with it; to keep it, mount a volume:"
            f" docker run -v kd-models:{volume}"
        )


def _pick_device(name: str) -> str:
    import torch

    from toolkit.distill import distributed
    from toolkit.environment import available_cores, keep_freed_memory, pick_device

    processes = distributed.processes_here()
    torch.set_num_threads(max(1, available_cores() // processes))
    keep_freed_memory()
    if processes > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    return pick_device(name)
