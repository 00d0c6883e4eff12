"""What a notebook or a script uses: a workspace with the stages as methods, and a model that answers.

Everything here is the command line's, without its effects on the process. What a stage sets (torch's threads and random
numbers, signals, how much is said) is back as it was when the call ends. N images, S px their side, C classes.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from toolkit import console
from toolkit.data.arrays import to_image
from toolkit.data.preprocess import UNREADABLE, Preprocess, why_unreadable
from toolkit.errors import ArtifactError, DataError, Interrupted, RecipeError, UsageError
from toolkit.modeldir import ModelDir, Role
from toolkit.predict import Prediction, ask, find_model, read_pixels
from toolkit.recipe import Recipe
from toolkit.runtimes.base import ImageBatch, Logits, Predictor
from toolkit.workspace import Choice, finished_workspace, training_recipe, training_workspace, warn_of_little_memory

if TYPE_CHECKING:
    from toolkit import workspace
    from toolkit.bench.schema import Report
    from toolkit.distill.job import WeightsFile
    from toolkit.distill.metrics import EpochMetrics
    from toolkit.export.export import ExportResult
    from toolkit.networks.weights import ModelInfo

OnEpoch = Callable[["EpochMetrics"], object]
"""Called with the figures of every epoch that is trained; what it returns is ignored, what it raises ends the call."""
Picture = str | Path | Image.Image | np.ndarray
"""A file; an image of any mode; uint8 (H, W, 3) or grey (H, W)."""


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
    """torch's on the CPU while a stage works; None, the default, leaves their number."""
    quiet: bool
    """Say nothing on stderr."""


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
    absent, it is found as the commands find it. Raises RecipeError, WeightsError, UsageError.
    """
    choice = Choice(
        recipe=str(recipe) if isinstance(recipe, Path) else recipe,
        data=None if data is None else str(data),
        out=Path(path),
        overrides=flatten(settings or {}),
    )
    opened = Workspace(choice, options)
    training_recipe(choice)  # what is wrong in it is said here
    return opened


def load(path: str | Path, *, provider: str = "auto") -> "Model":
    """A network that is ready to answer: an .onnx file, a model directory (its student.onnx), or a .safetensors file.

    Only a .safetensors file needs torch. `provider` is auto, cpu, cuda or cuda:N. Raises ArtifactError, WeightsError,
    DeviceError.
    """
    path = Path(path)
    return Model(_open_weights(path, provider) if path.suffix == ".safetensors" else _open_onnx(path, provider))


@dataclass(frozen=True)
class TrainingResult:
    """A weights file; `new` is False where an up-to-date one was kept.

    `epochs` are those that it was trained in, in order; none for a teacher that was imported.
    """

    role: Role
    path: Path
    new: bool
    info: "ModelInfo"
    epochs: "tuple[EpochMetrics, ...]"

    @property
    def valid_accuracy(self) -> float | None:
        """Of the weights, a fraction of the validation images; None where nobody measured it."""
        return self.info.extra.get("valid_accuracy")


class Workspace:
    """A model directory with a recipe, data and a device; a stage is a method, and does what the command does.

    Every method raises ToolkitError. Ctrl-C and SIGTERM let training save its state first, and then do what they always
    do; outside of a process's main thread nothing can be noted, and an exception from `on_epoch` is the way to stop.
    """

    def __init__(self, choice: Choice, options: Options) -> None:
        if unknown := [name for name in options if name not in Options.__annotations__]:
            known = ", ".join(("path", "data", "settings", "recipe", *Options.__annotations__))
            raise TypeError(f"toolkit.open has no argument {unknown[0]!r}; there are {known}")
        for name, value in (("seeds", options.get("seeds", 1)), ("threads", options.get("threads") or 1)):
            if value < 1:
                raise UsageError(f"{name} = {value} is not allowed", "give 1 or more")
        assert choice.out is not None
        self._choice, self._options, self._directory = choice, options, ModelDir(choice.out)

    @property
    def path(self) -> Path:
        """The model directory."""
        return self._directory.path

    @property
    def recipe(self) -> Recipe:
        """By which teacher and student are trained; what follows the pictures is chosen here."""
        with self._at_work():
            return training_workspace(self._choice, self._device, writes=False).recipe

    def teacher(self, *, on_epoch: OnEpoch | None = None) -> TrainingResult:
        """Train the teacher, fine-tune it or import it, as the recipe says."""
        from toolkit.pipeline import make_teacher

        with self._training(on_epoch) as opened:
            return _describe("teacher", make_teacher(opened), self._directory)

    def distill(self, *, on_epoch: OnEpoch | None = None) -> TrainingResult:
        """Distil the student; a directory without a teacher gets one first.

        A control that is trained in a process of its own reports its epochs when both have ended.
        """
        from toolkit.pipeline import distill_student

        with self._training(on_epoch) as opened:
            return _describe("student", distill_student(opened), self._directory)

    def export(self, *smaller: Literal["fp16", "int8"]) -> "list[ExportResult]":
        """Write teacher and student as fp32 ONNX files, and in `smaller` precisions; each is proven."""
        from toolkit.pipeline import export_models

        if unknown := [name for name in smaller if name not in ("fp16", "int8")]:
            raise UsageError(
                f"{unknown[0]!r} is no precision to export", "give fp16, int8 or both; fp32 comes with them"
            )
        with self._at_work():
            return export_models(self._open_finished("cpu"), smaller)

    def bench(self, *, provider: str = "auto") -> "Report":
        """Measure size, latency and accuracy on the test split; the report, as in report.json."""
        from toolkit.pipeline import bench_models, require_runtimes
        from toolkit.runtimes.providers import require_provider

        with self._at_work():
            require_provider(provider, self._device)
            opened = self._open_finished(self._device)
            require_runtimes(opened)
            return bench_models(opened, provider)

    def run(self, *, provider: str = "auto", on_epoch: OnEpoch | None = None) -> "Report":
        """The whole way: teacher, student and its control, ONNX, report; returns the report."""
        from toolkit.pipeline import refuse_several_processes, require_runtimes, run_all
        from toolkit.runtimes.providers import require_provider

        refuse_several_processes()
        require_provider(provider, self._device)
        with self._training(on_epoch) as opened:
            require_runtimes(opened)
            return run_all(opened, provider)

    def __repr__(self) -> str:
        return f"<toolkit workspace {self.path}>"

    @property
    def _device(self) -> str:
        return self._options.get("device", "auto")

    @contextlib.contextmanager
    def _training(self, on_epoch: OnEpoch | None) -> "Iterator[workspace.Workspace]":
        """Opened for training; no other process trains here meanwhile."""
        names = ("force", "resume", "strict", "seeds", "tensorboard")
        options: dict[str, Any] = {name: value for name, value in self._options.items() if name in names}
        with self._at_work():
            opened = training_workspace(self._choice, self._device, on_epoch=on_epoch, **options)
            release = opened.model_dir.claim()
            try:
                yield opened
            finally:
                release()

    def _open_finished(self, device: str) -> "workspace.Workspace":
        return finished_workspace(self._choice, device, force=self._options.get("force", False))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """The process as a stage needs it, and afterwards as it was."""
        quiet, threads = self._options.get("quiet", False), self._options.get("threads")
        with _speaking(quiet=quiet), _leaving_torch(threads), _passing_signals_on():
            warn_of_little_memory()
            yield


class Model:
    """A network that answers, with its class names and its preprocessing; `toolkit.load` makes one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        return self._predictor.classes

    @property
    def preprocess(self) -> Preprocess:
        """A function of a PIL image: what the network sees of it, uint8 (S, S, 3)."""
        return self._predictor.preprocess

    @property
    def provider(self) -> str:
        """What it runs on."""
        return self._predictor.provider

    @overload
    def predict(self, images: Picture, k: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[Picture], k: int = 5) -> list[Prediction]: ...
    def predict(self, images: Picture | Sequence[Picture], k: int = 5) -> Prediction | list[Prediction]:
        """The `k` most probable classes of one picture, or of each in a list; DataError for one that cannot be read."""
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return ask(self._predictor, self._see(images, "the image"), k)
        return [ask(self._predictor, self._see(image, f"image {i}"), k) for i, image in enumerate(images)]

    def logits(self, images: ImageBatch) -> Logits:
        """Of images that `preprocess` made: uint8 (N, S, S, 3) → float32 (N, C); ValueError for others."""
        return self._predictor.logits(images)

    def __repr__(self) -> str:
        return f"<toolkit model of {len(self.classes)} classes, {self._predictor.runtime} on {self.provider}>"

    def _see(self, image: Picture, where: str) -> np.ndarray:
        """uint8 (S, S, 3)"""
        if isinstance(image, str | Path):
            return read_pixels(Path(image), self.preprocess)
        try:
            return self.preprocess(to_image(image, where))
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read: {why_unreadable(error)}", "give another one") from None


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` → plain value, of settings that are nested, have dots, or both. Raises RecipeError."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": _to_plain(one) for key, one in value.items()}
        elif "." not in name:
            raise RecipeError(
                f"settings: {name!r} is neither section.key nor a section with its settings",
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


def _describe(role: Role, made: "WeightsFile", model_dir: ModelDir) -> TrainingResult:
    from toolkit.distill.metrics import read_metrics

    is_trained = "epochs" in made.info.extra and model_dir.metrics.is_file()
    epochs = read_metrics(model_dir.metrics) if is_trained else []
    return TrainingResult(role, made.path, made.new, made.info, tuple(one for one in epochs if one.role == role))


def _open_onnx(path: Path, provider: str) -> Predictor:
    from toolkit.runtimes.onnxruntime import OnnxPredictor

    return OnnxPredictor(find_model(path), provider)


def _open_weights(path: Path, provider: str) -> Predictor:
    from toolkit.machine.devices import pick_device
    from toolkit.runtimes.pytorch import TorchPredictor

    if not path.is_file():
        raise ArtifactError(f"there is no file {path}", "check the path; toolkit distill makes such a file")
    with _leaving_torch(None):
        return TorchPredictor(path, pick_device(provider))


@contextlib.contextmanager
def _speaking(*, quiet: bool) -> Iterator[None]:
    before = console.err.quiet
    console.err.quiet = quiet or before
    try:
        yield
    finally:
        console.err.quiet = before


@contextlib.contextmanager
def _leaving_torch(threads: int | None) -> Iterator[None]:
    """torch with so many threads, and afterwards with as many and with the random numbers as before."""
    import torch

    before = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(gpus):
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Where training obeyed a signal and has saved, let the signal do what it would have done: KeyboardInterrupt..."""
    try:
        yield
    except Interrupted as stop:
        console.say(f"stopped in {stop.where}; go on with resume=True")
        signal.raise_signal(stop.signal_number)
        raise  # where whoever handles the signal lets the program go on
