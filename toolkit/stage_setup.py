"""The setup of a stage: its recipe, data, model directory and device, from what a caller chose."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.errors import DataError, RecipeError, WeightsError
from toolkit.machine.container import missing_volume
from toolkit.machine.limits import LITTLE_MEMORY_BYTES, memory_bytes
from toolkit.modeldir import ModelDir, Role
from toolkit.recipe import DEFAULT_RECIPE, NOTEBOOK_RECIPE, Overrides, Recipe, builtin_names, load_builtin
from toolkit.settings import DataRecipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from toolkit.bench.measure.images import BenchImages, TrainingSample
    from toolkit.data.dataset import Split
    from toolkit.data.pixels import Pixels
    from toolkit.data.sources import Dataset
    from toolkit.data.unlabelled import CopyTable, Unlabelled
    from toolkit.distill.job import TrainingData, TrainingOptions
    from toolkit.distill.metrics import EpochMetrics

TRAINING_SAMPLE = 1000
"""Training images of a benchmark: of 1,000, a fraction is known within 0.03."""

MODELS = Path("models")
"""The folder of model directories, below the current directory."""


@dataclass(frozen=True)
class Choice:
    """The choices of a caller; None leaves a choice to the toolkit.

    `recipe` is a recipe, a TOML file or a built-in one by name, `data` a named data set or a folder, `out` a model
    directory.
    """

    recipe: str | Recipe | None = None
    data: str | None = None
    out: Path | None = None
    overrides: Overrides = ()

    def applied_to(self, recipe: Recipe) -> Recipe:
        """`recipe` with the data and the overrides."""
        if self.data is not None:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": self.data})})
        return recipe.with_overrides(self.overrides)


@dataclass(frozen=True)
class StageSetup:
    """All that every stage needs. `device` is a torch device that is proven to work.

    `on_epoch` is called with the figures of every epoch that is trained.
    """

    recipe: Recipe
    model_dir: ModelDir
    device: str
    force: bool = False
    strict: bool = False
    resume: bool = False
    tensorboard: bool = False
    seeds: int = 1
    on_epoch: "Callable[[EpochMetrics], object] | None" = None

    def with_recipe(self, recipe: Recipe) -> "StageSetup":
        """The same with another recipe for the same images: they are not read again."""
        changed = replace(self, recipe=recipe)
        kept = ("dataset", "unlabelled", "_decoded", "_copies")
        vars(changed).update({name: vars(self)[name] for name in kept if name in vars(self)})
        return changed

    @cached_property
    def dataset(self) -> "Dataset":
        from toolkit.data.sources import load_dataset

        dataset = load_dataset(self.recipe.data)
        for remark in dataset.remarks:
            console.say(f"data: {remark}")
        return dataset

    @cached_property
    def bench_images(self) -> "BenchImages":
        from toolkit.bench.measure.images import BenchImages

        for_teacher = self.pixels("test", "teacher") if self._teacher_sees_more_or_less else None
        return BenchImages.choose(self.dataset, self.pixels("test"), self.recipe.bench.images, for_teacher)

    def training_sample(self) -> "TrainingSample":
        """TRAINING_SAMPLE training images, evenly over the split; no others are decoded, unless folds were drawn."""
        from toolkit.bench.measure.images import TrainingSample
        from toolkit.data.dataset import spread

        some = self.dataset.train.subset(spread(len(self.dataset.train), TRAINING_SAMPLE))
        dataset = replace(self.dataset, train=some)
        seen = {role: self.recipe.data_of(role) for role in ("student", "teacher")}
        pixels = self._load_pixels("train", seen["student"], dataset)
        own = self._load_pixels("train", seen["teacher"], dataset) if self._teacher_sees_more_or_less else None
        return TrainingSample(pixels, own, self._answer_out_of_fold(own or pixels))

    def _answer_out_of_fold(self, sample: "Pixels") -> "NDArray[np.float32] | None":
        """Of training images as the teacher sees them; None if it was not trained in folds of them."""
        import numpy as np

        from toolkit.distill.folds import answer_out_of_fold, folds_of
        from toolkit.distill.provenance import has_learned_these
        from toolkit.networks.ensemble import Ensemble
        from toolkit.networks.weights import load_model, read_info

        file = self.model_dir.weights("teacher")
        if not file.is_file() or not (info := read_info(file)).extra.get("folds"):
            return None
        if not has_learned_these(info, self.recipe, self.dataset):
            return None
        whole = self.pixels("train", "teacher")
        folds = folds_of(info, whole)
        assert folds is not None
        fold_of = dict(zip(whole.names, folds.tolist(), strict=True))
        network = load_model(file)[0].network
        assert isinstance(network, Ensemble)
        return answer_out_of_fold(
            network.classifiers, np.array([fold_of[name] for name in sample.names]), sample, self.device
        )

    @cached_property
    def unlabelled(self) -> "Unlabelled | None":
        """The images of data.unlabelled, copies included; none of them is decoded yet."""
        from toolkit.data.unlabelled import find_unlabelled

        unlabelled = find_unlabelled(self.recipe.data, self.dataset)
        for remark in unlabelled.remarks if unlabelled else ():
            console.say(f"unlabelled: {remark}")
        return unlabelled

    @cached_property
    def training_data(self) -> "TrainingData":
        images = self._training_data_of("student")
        if not self._teacher_sees_more_or_less:
            return images
        return replace(images, for_teacher=self._training_data_of("teacher"))

    def _training_data_of(self, role: Role) -> "TrainingData":
        from toolkit.distill.job import TrainingData

        images = TrainingData(self.dataset, self.pixels("train", role), self.pixels("valid", role))
        if self.unlabelled is None:
            return images
        return replace(
            images,
            unlabelled=self._load_unlabelled(self.unlabelled, role),
            unlabelled_set_sha256=self.unlabelled.sha256,
        )

    @property
    def options(self) -> "TrainingOptions":
        from toolkit.distill.job import TrainingOptions

        return TrainingOptions(self.device, self.force, self.resume, self.tensorboard, self.on_epoch)

    @property
    def _teacher_sees_more_or_less(self) -> bool:
        """Whether it sees the same part of each picture with another number of pixels than the student."""
        return self.recipe.data_of("teacher") is not self.recipe.data

    def pixels(self, split: "Split", role: Role = "student") -> "Pixels":
        """A split's decoded images as a role sees them; the same value at every call."""
        data = self.recipe.data_of(role)
        key = split, data.image_size, data.resize
        if key not in self._decoded:
            self._decoded[key] = self._load_pixels(split, data, self.dataset)
        return self._decoded[key]

    @cached_property
    def _decoded(self) -> "dict[tuple[Split, int, int], Pixels]":
        return {}

    @cached_property
    def _copies(self) -> "CopyTable":
        """The copies of labelled images among the unlabelled ones; a line counts them. DataError if nothing is left."""
        from toolkit.data.unlabelled import describe_use, find_copies
        from toolkit.distill.distributed import leader_first

        assert self.unlabelled is not None
        with leader_first():
            table = find_copies(self.dataset, self.unlabelled, self.recipe.data.workers)
        if len(table.left_out) == len(self.unlabelled):
            raise DataError(
                "data.unlabelled: all images are copies of validation and test images", "give folders of other images"
            )
        console.say(describe_use(self.unlabelled, table, self.recipe.distill.unlabelled_ratio))
        return table

    def _load_unlabelled(self, unlabelled: "Unlabelled", role: Role) -> "Pixels":
        from toolkit.data.pixels import load_unlabelled_pixels
        from toolkit.data.preprocess import Preprocess
        from toolkit.distill.distributed import leader_first

        data, kept = self.recipe.data_of(role), self._copies.kept(unlabelled.images)
        with leader_first():
            return load_unlabelled_pixels(
                kept, unlabelled.sha256, Preprocess.from_recipe(data), workers=data.workers, strict=self.strict
            )

    def _load_pixels(self, split: "Split", data: DataRecipe, dataset: "Dataset") -> "Pixels":
        from toolkit.data.pixels import load_pixels
        from toolkit.data.preprocess import Preprocess
        from toolkit.distill.distributed import leader_first

        with leader_first():
            return load_pixels(dataset, split, Preprocess.from_recipe(data), workers=data.workers, strict=self.strict)


def prepare_training(
    recipe_name: str | None,
    data: str | None,
    out: Path | None,
    overrides: list[str],
    *,
    device: str = "auto",
    **options: Any,
) -> StageSetup:
    """`training_setup` for a command, which has its process to itself; it takes the `options`."""
    warn_of_little_memory()
    settle_process()
    choice = Choice(recipe_name, data, out, overrides)
    return training_setup(choice, device, **options)


def prepare_finished(
    model_dir: Path,
    recipe_name: str | None,
    data: str | None,
    overrides: list[str],
    *,
    device: str = "auto",
    force: bool = False,
) -> StageSetup:
    """`finished_setup` for a command, which has its process to itself."""
    warn_of_little_memory()
    settle_process()
    return finished_setup(Choice(recipe_name, data, model_dir, overrides), device, force=force)


def training_setup(choice: Choice, device: str = "auto", *, writes: bool = True, **options: Any) -> StageSetup:
    """A setup for teacher, distill and run. Recipe: the choice's, its data's, OUT's, OUT's teacher's, the default.

    Settings that the recipe and the overrides leave open follow the pictures: a line on stderr names them, and the
    setup's recipe states them. `options` are the setup's: force, strict, resume, tensorboard, seeds, on_epoch.
    Without `writes` no model directory is made.
    """
    from toolkit.distill.compilation import require_few_sizes
    from toolkit.distill.distributed import join
    from toolkit.networks.registry import require_known

    if options.get("tensorboard"):
        from toolkit.distill.metrics import require_tensorboard

        require_tensorboard()
    recipe, own_dir = training_recipe(choice)
    require_known(recipe.student.architecture, recipe.teacher.architecture)
    device = pick_own_device(device)  # before a directory is made
    model_dir = ModelDir(choice.out or own_dir or MODELS / Path(recipe.data.source).resolve().name)
    if writes:
        model_dir.make()
        _warn_of_no_volume(model_dir.path)
    join(device)
    setup = _follow_teacher(_follow_images(StageSetup(_follow_weights(recipe), model_dir, device, **options)))
    require_few_sizes(setup.recipe)
    return setup


def finished_setup(choice: Choice, device: str = "auto", *, force: bool = False) -> StageSetup:
    """A setup for export and bench; the recipe is the one that made its weights, unless the choice has another."""
    assert choice.out is not None
    device = pick_own_device(device)
    directory = ModelDir(choice.out)
    recipe = (
        _named_recipe(choice.recipe) if choice.recipe else _recipe_of(directory.require(directory.weights("student")))
    )
    directory.make()  # it is there: this proves that it can be written to, before any work
    return _follow_images(StageSetup(choice.applied_to(recipe), directory, device, force))


def weights_setup(weights: Path, choice: Choice, *, force: bool = False) -> StageSetup:
    """A setup to export one weights file in; it has images only if the choice has data.

    A bare state dict without a recipe is taken for the notebook's: the weights published beside it have its settings.
    """
    from toolkit.networks.weights import carries_info

    if choice.recipe:
        recipe = _named_recipe(choice.recipe)
    else:
        recipe = _recipe_of(weights) if carries_info(weights) else load_builtin(NOTEBOOK_RECIPE)
    directory = ModelDir(choice.out or weights.parent)
    directory.make()
    setup = StageSetup(choice.applied_to(recipe), directory, "cpu", force)
    return _follow_images(setup) if choice.data else setup


def with_control(setup: StageSetup, *, by_default: bool) -> bool:
    """Whether the control is trained too; see distill_student."""
    wanted = setup.recipe.distill.control
    return (by_default or setup.seeds > 1) if wanted is None else wanted


def training_recipe(choice: Choice) -> tuple[Recipe, Path | None]:
    """The recipe to train by and, if it has one, its own model directory; no image is read."""
    from toolkit.distill.provenance import follow_source

    recipe, own_dir = _find_recipe(choice)
    return follow_source(choice.applied_to(recipe)), own_dir


def _find_recipe(choice: Choice) -> tuple[Recipe, Path | None]:
    out = choice.out
    if isinstance(choice.recipe, Recipe):
        return choice.recipe, None
    if choice.recipe:
        path = Path(choice.recipe)
        own_dir = path.parent if path.name == "recipe.toml" else MODELS / path.stem
        return _named_recipe(choice.recipe), own_dir
    if choice.data is not None:
        from toolkit.data.sources import builtin_recipe_of

        builtin = builtin_recipe_of(choice.data)
        return (load_builtin(builtin), MODELS / builtin) if builtin else (Recipe(), None)
    if out is not None and ModelDir(out).recipe.is_file():
        return Recipe.from_toml(ModelDir(out).recipe), out
    if out is not None and (teacher := ModelDir(out).weights("teacher")).is_file():
        return _recipe_of(teacher), out
    return load_builtin(DEFAULT_RECIPE), MODELS / DEFAULT_RECIPE


def _recipe_of(weights: Path) -> Recipe:
    """The recipe that made a weights file."""
    from toolkit.networks.weights import read_info

    return Recipe.from_dict(read_info(weights).recipe, str(weights))


def _named_recipe(recipe: str | Recipe) -> Recipe:
    """A TOML file, or one of the recipes that ship with the toolkit by name."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in builtin_names():
        return load_builtin(recipe)
    if not Path(recipe).is_file():
        raise RecipeError(
            f"recipe: there is no file {recipe}",
            f"give a TOML file or one of the built-in recipes: {', '.join(builtin_names())}",
        )
    return Recipe.from_toml(Path(recipe))


def _follow_weights(recipe: Recipe) -> Recipe:
    """The recipe with the settings of fine-tuning, where it leaves them open; a line on stderr names them."""
    from toolkit.distill.provenance import follow_fine_tuning

    recipe, line = follow_fine_tuning(recipe)
    if line:
        console.say(line)
    return recipe


def _follow_images(setup: StageSetup) -> StageSetup:
    """The setup with every setting that its recipe leaves to the images; the data is read only if there are any."""
    from toolkit.data.defaults import follow_pictures, left_to_pictures

    if not left_to_pictures(setup.recipe):
        return setup
    recipe, line = follow_pictures(setup.recipe, setup.dataset.train)
    if line:
        console.say(line)
    return setup.with_recipe(recipe)


def _follow_teacher(setup: StageSetup) -> StageSetup:
    """The setup with the size that the teacher's file says, if its recipe leaves that open; nothing is downloaded."""
    from toolkit.distill import provenance

    made = setup.model_dir.weights("teacher")
    try:
        path = made if made.is_file() and not setup.force else provenance.local_weights(setup.recipe)
        recipe = provenance.at_own_size(setup.recipe, path)
    except WeightsError:  # the stage that needs the teacher says so
        return setup
    if recipe is setup.recipe:
        return setup
    size = recipe.teacher.image_size
    says = f"{path} says" if path is not None else "the largest of its files says"
    console.say(f"the teacher sees each picture at {size} px, as {says} (teacher.image_size={size})")
    return setup.with_recipe(recipe)


def warn_of_little_memory() -> None:
    """Warn before anything is loaded: if memory runs out, the kernel ends the process without a reason."""
    size_bytes = memory_bytes()
    if size_bytes < LITTLE_MEMORY_BYTES:
        console.say(
            f"warning: {size_bytes / 2**30:.1f} GiB of memory for this process; if it ends without a message, or with"
            " exit code 137, that was too little: give it 2 GiB, in a container with --memory 2g"
        )


def _warn_of_no_volume(path: Path) -> None:
    """Warn before hours of work if nobody could reach the results."""
    if volume := missing_volume(path):
        console.say(
            f"warning: {path} lies in this container and is deleted with it; to keep it, mount a volume:"
            f" docker run -v kd-models:{volume}"
        )


def settle_process() -> None:
    """Give torch this process's share of the cores, and let the allocator keep what training frees."""
    import torch

    from toolkit.distill import distributed
    from toolkit.machine.devices import keep_freed_memory
    from toolkit.machine.limits import available_cores

    torch.set_num_threads(max(1, available_cores() // distributed.processes_here()))
    keep_freed_memory()


def pick_own_device(name: str) -> str:
    """The device; of several processes on this machine, each gets a GPU of its own."""
    import torch

    from toolkit.distill import distributed
    from toolkit.machine.devices import pick_device

    if distributed.processes_here() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    return pick_device(name)
