"""A workspace: a model directory with a recipe and data, and the stages as methods."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from toolkit import shipped
from toolkit.api.process import apart, at_work, speaking
from toolkit.errors import RecipeError, UsageError
from toolkit.modeldir import ModelDir, Role
from toolkit.networks.trust import allowing
from toolkit.recipe import Recipe, builtin_names, reporting_moved_in
from toolkit.settings import FOOD_11, IMAGENET
from toolkit.stage_setup import (
    Choice,
    finished_setup,
    pick_own_device,
    training_recipe,
    training_setup,
    warn_of_little_memory,
)

if TYPE_CHECKING:
    from toolkit.bench.schema import Report
    from toolkit.distill.job import WeightsFile
    from toolkit.distill.metrics import EpochMetrics
    from toolkit.export.export import ExportResult
    from toolkit.networks.weights import ModelInfo
    from toolkit.stage_setup import StageSetup

OnEpoch = Callable[["EpochMetrics"], object]
"""Called with the figures of every epoch that is trained. Its result is ignored; an exception of it ends the call."""


class Options(TypedDict, total=False):
    """How a workspace works: the keywords of `toolkit.open` besides its first four. None of them is needed."""

    device: str
    """auto, cpu, cuda or cuda:N"""
    force: bool
    """Make everything again, and replace what lies there."""
    resume: bool
    """Go on from where a stage was stopped."""
    strict: bool
    """Refuse unreadable images, which are left out otherwise."""
    seeds: int
    """How many students are trained, each with a control."""
    tensorboard: bool
    """Write TensorBoard's files too."""
    threads: int | None
    """torch's threads on the CPU while a stage works; None, the default, leaves their number."""
    quiet: bool
    """Say nothing on stderr."""
    trust: bool
    """Allow a network named package.module:function to run that package's code."""


def open(
    path: str | Path,
    *,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: str | Path | Recipe | None = None,
    **options: Unpack[Options],
) -> "Workspace":
    """The workspace in the model directory `path`, which need not be there yet; no image is looked at yet.

    `data` is a folder of images or a named data set; `settings` go over the recipe's, nested or with dots:
    {"distill": {"epochs": 3}} or {"distill.epochs": 3}. `recipe` is a TOML file, a built-in recipe's name, or a Recipe;
    absent, it is found as the commands find it. Raises RecipeError, WeightsError, DataError for data that is not
    there, DeviceError, UsageError.
    """
    if not (folder := _to_text(path, "path", "a model directory")):
        raise UsageError(f"path = {path!r} is not a model directory", "give a folder, which need not be there yet")
    choice = Choice(
        recipe=recipe if isinstance(recipe, Recipe) else _to_text(recipe, "recipe", "a Recipe, a name or a TOML file"),
        data=_to_text(data, "data", "a folder or the name of a data set"),
        out=Path(folder),
        overrides=flatten({} if settings is None else settings),
    )
    return Workspace(choice, options)


@dataclass(frozen=True)
class TrainingResult:
    """A weights file; `new` is False if an up-to-date one was kept.

    `epochs` are those that it was trained in, in order; none for a teacher that was imported.
    """

    role: Role
    path: Path
    new: bool
    info: "ModelInfo"
    epochs: "tuple[EpochMetrics, ...]"

    @property
    def valid_accuracy(self) -> float | None:
        """The accuracy of the weights, a fraction of the validation images; None if nobody measured it."""
        return self.info.extra.get("valid_accuracy")


class Workspace:
    """A model directory with a recipe, data and a device; a stage is a method, and does what the command does.

    Every method raises ToolkitError. Ctrl-C and SIGTERM let training save its state first, and then do what they always
    do; Interrupted is raised if a handler of the caller's let the program go on. Outside of a process's main thread
    signals cannot be noted, and an exception from `on_epoch` is the way to stop. One stage works at a time: another
    thread's waits.
    """

    def __init__(self, choice: Choice, options: Options) -> None:
        if unknown := [name for name in options if name not in Options.__annotations__]:
            known = ", ".join(("path", "data", "settings", "recipe", *Options.__annotations__))
            raise TypeError(f"toolkit.open has no argument {unknown[0]!r}; there are {known}")
        threads = options.get("threads")
        for name, value in (("seeds", options.get("seeds", 1)), ("threads", 1 if threads is None else threads)):
            if type(value) is not int or value < 1:
                raise UsageError(f"{name} = {value!r} is not allowed", "give 1 or more, a whole number")
        self._as_given, self._options, self._opened_in = choice, options, Path.cwd()
        self._moved_settings: set[str] | None = None if options.get("quiet") else set()
        self._trusted_networks: set[str] | None = set() if options.get("trust") is True else None
        self._check()

    @property
    def path(self) -> Path:
        """The model directory."""
        assert self._choice.out is not None
        return self._choice.out

    @property
    def recipe(self) -> Recipe:
        """The recipe of teacher and student; settings that follow the pictures are chosen here."""
        with self._at_work():
            return training_setup(self._choice, self._device, writes=False).recipe

    def teacher(self, *, on_epoch: OnEpoch | None = None, save_answers: str | Path | None = None) -> TrainingResult:
        """Train the teacher, fine-tune it or import it, as the recipe says.

        `save_answers` is a file, .npz or .parquet, for its answers to the training and validation images.
        """
        from toolkit.data.answer_file import require_answer_file
        from toolkit.pipeline import make_teacher
        from toolkit.pipeline import save_answers as write_answers

        path = None if save_answers is None else Path(_to_text(save_answers, "save_answers", "a file to write") or "")
        if path is not None:
            require_answer_file(path, "save_answers")
        with self._training(on_epoch) as setup:
            made = make_teacher(setup)
            if path is not None:
                write_answers(setup, path)
            return _describe("teacher", made, self._directory)

    def distill(self, *, on_epoch: OnEpoch | None = None) -> TrainingResult:
        """Distil the student; a directory without a teacher gets one first.

        A control that is trained in a process of its own reports its epochs when both have ended.
        """
        from toolkit.pipeline import distill_student

        with self._training(on_epoch) as setup:
            return _describe("student", distill_student(setup), self._directory)

    def export(self, *smaller: Literal["fp16", "int8"]) -> "list[ExportResult]":
        """Write teacher and student as fp32 ONNX files, and in `smaller` precisions; each is proven."""
        from toolkit.pipeline import export_models

        if unknown := [name for name in smaller if name not in ("fp16", "int8")]:
            raise UsageError(
                f"{unknown[0]!r} is no precision to export", "give fp16, int8 or both; fp32 comes with them"
            )
        with self._at_work():
            return export_models(self._set_up_finished("cpu"), smaller)

    def bench(self, *, provider: str = "auto") -> "Report":
        """Measure size, latency and accuracy on the test split; the report, as in report.json."""
        from toolkit.pipeline import bench_models, require_runtimes
        from toolkit.sessions.providers import require_provider

        with self._at_work():
            require_provider(provider, self._device)
            setup = self._set_up_finished(self._device)
            require_runtimes(setup)
            return bench_models(setup, provider)

    def run(self, *, provider: str = "auto", on_epoch: OnEpoch | None = None) -> "Report":
        """The whole way: teacher, student and its control, ONNX, report; returns the report."""
        from toolkit.pipeline import run_all

        with self._training(on_epoch, provider) as setup:
            return run_all(setup, provider)

    def __repr__(self) -> str:
        return f"<toolkit workspace {self.path}>"

    def _check(self) -> None:
        """Raise what every stage would raise: wrong settings, data, networks and devices. No image is looked at."""
        from toolkit.data.sources import find_folder
        from toolkit.data.unlabelled import find_unlabelled_folder
        from toolkit.networks.registry import require_known

        with reporting_moved_in(self._moved_settings):
            recipe, _ = training_recipe(self._choice)
        if self._choice.data is not None or "data.source" in self._choice.overrides:
            find_folder(recipe.data.source)
        for folder in recipe.data.unlabelled if "data.unlabelled" in self._choice.overrides else ():
            find_unlabelled_folder(folder)
        with speaking(quiet=self._options.get("quiet", False)), allowing(self._trusted_networks):
            require_known(recipe.student.architecture, recipe.teacher.architecture)
        if not isinstance(self._device, str):
            raise UsageError(f"device = {self._device!r} is not allowed", "give auto, cpu, cuda or cuda:N")
        if self._device not in ("auto", "cpu"):
            pick_own_device(self._device)

    @property
    def _choice(self) -> Choice:
        """The caller's; if the current directory is another by now, with absolute paths."""
        same = Path.cwd() == self._opened_in
        return self._as_given if same else _with_absolute_paths(self._as_given, self._opened_in)

    @property
    def _directory(self) -> ModelDir:
        return ModelDir(self.path)

    @property
    def _device(self) -> str:
        return self._options.get("device", "auto")

    @contextlib.contextmanager
    def _training(self, on_epoch: OnEpoch | None, provider: str | None = None) -> "Iterator[StageSetup]":
        """Set up for training, with a `provider` for all stages; no other process trains here meanwhile."""
        from toolkit.pipeline import set_up_run

        names = ("force", "resume", "strict", "seeds", "tensorboard")
        options: dict[str, Any] = {name: value for name, value in self._options.items() if name in names}
        set_up = partial(training_setup, self._choice, self._device, on_epoch=on_epoch and apart(on_epoch), **options)
        with self._at_work():
            setup = set_up() if provider is None else set_up_run(set_up, self._device, provider)
            release = setup.model_dir.claim()
            try:
                yield setup
            finally:
                release()

    def _set_up_finished(self, device: str) -> "StageSetup":
        return finished_setup(self._choice, device, force=self._options.get("force", False))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        process = at_work(quiet=self._options.get("quiet", False), threads=self._options.get("threads"))
        with process, reporting_moved_in(self._moved_settings), allowing(self._trusted_networks):
            warn_of_little_memory()
            yield


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` → plain value, of settings that are nested, have dots, or both. Raises RecipeError."""
    if not isinstance(settings, Mapping):
        raise RecipeError(f"settings is a {type(settings).__name__}, not a dict", 'write {"distill.epochs": 3}')
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(name, str):
            raise RecipeError(f"settings: {name!r} is no name of a setting", 'write {"distill.epochs": 3}')
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": _to_plain(one) for key, one in value.items()}
        elif "." not in name:
            raise RecipeError(
                f"settings: {name!r} is not section.key, and not a section with its settings",
                f'write {{"section.{name}": ...}} or {{"section": {{"{name}": ...}}}}',
            )
        else:
            flat[name] = _to_plain(value)
    return flat


def _to_plain(value: Any) -> Any:
    """As a recipe file would hold it: a path is text, a number of numpy's a number."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [_to_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _to_text(value: object, name: str, allowed: str) -> str | None:
    """A path or a name; UsageError if it is something else."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike) and isinstance(text := os.fspath(value), str):
        return text
    remedy = "; settings= takes a dict" if isinstance(value, Mapping) else ""
    raise UsageError(f"{name} is a {type(value).__name__}, not {allowed}", f"give one of these{remedy}")


def _with_absolute_paths(choice: Choice, folder: Path) -> Choice:
    """`choice`, whose relative paths were meant from `folder`; names stay names."""
    from toolkit.data.sources import NAMED

    names = {*NAMED, *builtin_names(), *shipped.weights_files(), IMAGENET, FOOD_11}

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(one) for one in value]
        is_path = isinstance(value, str) and value and value not in names and (folder / value).exists()
        return str(folder / value) if is_path else value

    assert choice.out is not None
    assert isinstance(choice.overrides, Mapping)  # `flatten` made them
    overrides = dict(choice.overrides)
    of_paths = ("data.source", "data.unlabelled", "teacher.weights")
    overrides |= {name: place(overrides[name]) for name in of_paths if name in overrides}
    return Choice(place(choice.recipe), place(choice.data), folder / choice.out, overrides)


def _describe(role: Role, made: "WeightsFile", model_dir: ModelDir) -> TrainingResult:
    from toolkit.distill.metrics import read_metrics

    is_trained = "epochs" in made.info.extra and model_dir.metrics.is_file()
    epochs = read_metrics(model_dir.metrics) if is_trained else []
    return TrainingResult(role, made.path, made.new, made.info, tuple(one for one in epochs if one.role == role))
