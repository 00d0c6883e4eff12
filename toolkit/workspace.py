"""What a command works in: its recipe, data, model directory and device."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.errors import RecipeError
from toolkit.machine.container import missing_volume
from toolkit.machine.limits import LITTLE_MEMORY_BYTES, memory_bytes
from toolkit.modeldir import ModelDir
from toolkit.recipe import DEFAULT_RECIPE, Recipe, builtin_names, load_builtin

if TYPE_CHECKING:
    from toolkit.data.pixels import Pixels
    from toolkit.data.sources import Dataset
    from toolkit.distill.job import TrainingData, TrainingOptions

MODELS = Path("models")
"""Where model directories lie, seen from where the command is run."""


@dataclass(frozen=True)
class Workspace:
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
    def training_data(self) -> "TrainingData":
        from toolkit.distill.job import TrainingData

        return TrainingData(self.dataset, self.train_pixels, self.valid_pixels)

    @property
    def options(self) -> "TrainingOptions":
        from toolkit.distill.job import TrainingOptions

        return TrainingOptions(self.device, self.force, self.resume, self.tensorboard)

    def _pixels(self, split: Any) -> "Pixels":
        from toolkit.data.pixels import load_pixels
        from toolkit.data.preprocess import Preprocess
        from toolkit.distill.distributed import leader_first

        data = self.recipe.data
        with leader_first():
            return load_pixels(
                self.dataset, split, Preprocess.from_recipe(data), workers=data.workers, strict=self.strict
            )


def open_for_training(
    recipe_name: str | None,
    data: str | None,
    out: Path | None,
    overrides: list[str],
    *,
    device: str = "auto",
    writes: bool = True,
    **options: Any,
) -> Workspace:
    """A workspace for teacher, distill and run. Its recipe: --recipe, the data's, OUT's, its teacher's, or the default.

    What that and --set leave to the pictures is chosen, said and from then on stated in its recipe. `options` are the
    workspace's: force, strict, resume, tensorboard, seeds. Without `writes` no model directory is made.
    """
    _warn_of_little_memory()
    from toolkit.distill.compilation import require_few_sizes
    from toolkit.distill.distributed import join

    if options.get("tensorboard"):
        from toolkit.distill.metrics import require_tensorboard

        require_tensorboard()
    recipe, own_dir = _training_recipe(recipe_name, data, out)
    recipe = with_source(recipe, data).with_overrides(overrides)
    device = _pick_device(device)  # before a directory is made
    model_dir = ModelDir(out or own_dir or MODELS / Path(recipe.data.source).resolve().name)
    if writes:
        model_dir.make()
        _warn_of_no_volume(model_dir.path)
    join(device)
    workspace = follow_images(Workspace(recipe, model_dir, device, **options))
    require_few_sizes(workspace.recipe)
    return workspace


def open_finished(
    model_dir: Path,
    recipe_name: str | None,
    data: str | None,
    overrides: list[str],
    *,
    device: str = "auto",
    force: bool = False,
) -> Workspace:
    """A workspace for export and bench; the recipe is the one that made its weights, unless --recipe names another."""
    _warn_of_little_memory()
    device = _pick_device(device)
    from toolkit.networks.weights import read_info

    directory = ModelDir(model_dir)
    recipe = (
        named_recipe(recipe_name)
        if recipe_name
        else Recipe.from_dict(read_info(directory.require(directory.weights("student"))).recipe, "student.safetensors")
    )
    directory.make()  # it is there: this proves that it can be written to, before any work
    recipe = with_source(recipe, data).with_overrides(overrides)
    return follow_images(Workspace(recipe, directory, device, force))


def with_control(workspace: Workspace, *, by_default: bool) -> bool:
    """Whether the control is trained too; see distill_student."""
    wanted = workspace.recipe.distill.control
    return (by_default or workspace.seeds > 1) if wanted is None else wanted


def _training_recipe(recipe_name: str | None, data: str | None, out: Path | None) -> tuple[Recipe, Path | None]:
    """The recipe and, where it has one, its own model directory."""
    if recipe_name:
        path = Path(recipe_name)
        own_dir = path.parent if path.name == "recipe.toml" else MODELS / path.stem
        return named_recipe(recipe_name), own_dir
    if data is not None:
        from toolkit.data.sources import builtin_recipe_of

        builtin = builtin_recipe_of(data)
        return (load_builtin(builtin), MODELS / builtin) if builtin else (Recipe(), None)
    if out is not None and ModelDir(out).recipe.is_file():
        return Recipe.from_toml(ModelDir(out).recipe), out
    if out is not None and ModelDir(out).weights("teacher").is_file():
        from toolkit.networks.weights import read_info

        teacher = ModelDir(out).weights("teacher")
        return Recipe.from_dict(read_info(teacher).recipe, str(teacher)), out
    return load_builtin(DEFAULT_RECIPE), MODELS / DEFAULT_RECIPE


def named_recipe(name: str) -> Recipe:
    """A TOML file, or one of the recipes that ship with the toolkit by name."""
    if name in builtin_names():
        return load_builtin(name)
    if not Path(name).is_file():
        raise RecipeError(
            f"--recipe: there is no file {name}",
            f"give a TOML file or one of the built-in recipes: {', '.join(builtin_names())}",
        )
    return Recipe.from_toml(Path(name))


def with_source(recipe: Recipe, data: str | None) -> Recipe:
    if data is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": data})})


def follow_images(workspace: Workspace) -> Workspace:
    """The workspace with all that its recipe leaves to the images chosen, and said; only for that is the data read."""
    from toolkit.data.defaults import follow_pictures, left_to_pictures

    if not left_to_pictures(workspace.recipe):
        return workspace
    recipe, line = follow_pictures(workspace.recipe, workspace.dataset.train)
    if line:
        console.say(line)
    resolved = replace(workspace, recipe=recipe)
    vars(resolved)["dataset"] = workspace.dataset  # nothing that was chosen changes it, and reading takes a while
    return resolved


def _warn_of_little_memory() -> None:
    """Before anything is loaded: where memory runs out, the kernel ends the process, and nobody is told why."""
    size_bytes = memory_bytes()
    if size_bytes < LITTLE_MEMORY_BYTES:
        console.say(
            f"warning: {size_bytes / 2**30:.1f} GiB of memory for this process; if it ends without a word, or with exit"
            " code 137, that was too little: give it 2 GiB, in a container with --memory 2g"
        )


def _warn_of_no_volume(path: Path) -> None:
    """Before hours of work, whose results nobody could reach."""
    if volume := missing_volume(path):
        console.say(
            f"warning: {path} lies in this container and is deleted with it; to keep it, mount a volume:"
            f" docker run -v kd-models:{volume}"
        )


def _pick_device(name: str) -> str:
    import torch

    from toolkit.distill import distributed
    from toolkit.machine.devices import keep_freed_memory, pick_device
    from toolkit.machine.limits import available_cores

    processes = distributed.processes_here()
    torch.set_num_threads(max(1, available_cores() // processes))
    keep_freed_memory()
    if processes > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    return pick_device(name)
