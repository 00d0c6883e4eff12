"""The recipe: every setting of every stage, with its unit, range and default, declared once.

A recipe is read from TOML (one table a section) and changed on the command line with `--set section.key=value`.
Without a file, the defaults below hold; they are meant for folders of photographs. The recipes that ship with the
toolkit (`fashion-mnist`, the default, and `food11`, the notebook's settings) are `recipe.toml` files under `models/`.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import RecipeError

DEFAULT_RECIPE = "fashion-mnist"
"""The recipe that is used where neither --recipe, --data nor a model directory says otherwise."""

NOT_IN_FINGERPRINT = {"data.source", "data.workers", "teacher.weights"}
"""Where things lie and how fast they are read; what lies there is compared by its own SHA-256."""

Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]
Spread = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "cosine", "one-cycle"]


class Section(BaseModel):
    """A table of the recipe: frozen, no coercion between types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataRecipe(Section):
    """`[data]`: which images, and what a network sees of them."""

    source: str = Field("fashion-mnist", min_length=1, description="a named data set, or a directory of images")
    image_size: int = Field(160, ge=8, le=2048, description="px; side of the square a network sees")
    resize: int = Field(176, ge=0, le=4096, description="px; the shorter side is resized to this, 0 keeps it")
    mean: Channels = Field((0.485, 0.456, 0.406), description="subtracted from RGB in 0..1 by the student")
    std: Spread = Field((0.229, 0.224, 0.225), description="RGB is divided by this after the mean is subtracted")
    crop_padding: int = Field(0, ge=0, le=512, description="px; added on every side before the random training crop")
    padding_mode: Literal["symmetric", "constant"] = Field("symmetric", description="mirror the border, or fill with 0")
    flip: bool = Field(True, description="mirror half of the training views left to right")
    rotation_degrees: float = Field(0.0, ge=0, le=180, description="degrees; views turn by up to this, either way")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="of the training images, held out where a data set has no validation split"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=0.5, description="of all images, held out where a directory has no splits at all"
    )
    split_seed: int = Field(0, ge=0, description="seeds those two splits")
    workers: int = Field(0, ge=0, le=256, description="threads that decode, 0: the cores it may use")


class TeacherRecipe(Section):
    """`[teacher]`: the network that teaches, trained here, fine-tuned or imported."""

    architecture: str = Field("resnet18", description="a torchvision classifier, or `depthwise`")
    weights: str = Field("", description="empty: from scratch; imagenet, food-11 or a file")
    mean: Channels | None = Field(None, description="the teacher's own; absent: its weights', else [data]'s")
    std: Spread | None = Field(None, description="see mean")
    epochs: int = Field(30, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=65_536, description="images a step")
    optimizer: Optimizer = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=10, description="peak of the schedule")
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Schedule = "one-cycle"
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class StudentRecipe(Section):
    """`[student]`: the small network that ships."""

    architecture: str = Field("depthwise", description="`depthwise`, the notebook's, or a torchvision one")
    base: int = Field(16, ge=1, le=512, description="channels of the first block; depthwise only")
    width_mult: float = Field(1.0, gt=0, le=8, description="scales all blocks but the first and last; depthwise")


class DistillRecipe(Section):
    """`[distill]`: how the student learns from the teacher."""

    method: Literal["kd"] = Field("kd", description="kd: temperature-softened logits (Hinton et al. 2015)")
    temperature: float = Field(4.0, gt=0, le=100, description="softens both distributions")
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the teacher's term; 0 is plain cross-entropy")
    epochs: int = Field(60, ge=1, le=10_000)
    batch_size: int = Field(64, ge=1, le=65_536, description="images a step")
    optimizer: Optimizer = "sgd"
    learning_rate: float = Field(0.1, gt=0, le=10, description="peak of the schedule")
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Schedule = "one-cycle"
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of both training stages; auto times both on this device and takes the faster"
    )
    seed: int = Field(0, ge=0, description="seeds weights, order and views of both training stages")


class ExportRecipe(Section):
    """`[export]`: the ONNX file and the bounds of its proof."""

    opset: int = Field(20, ge=18, le=23, description="ONNX operator set")
    license: str = Field("", description="written into the file's metadata where given")
    max_logit_difference: float = Field(1e-3, gt=0, description="of any logit of the file from torch's")
    min_agreement: float = Field(0.999, ge=0, le=1, description="least share of images with one answer")
    max_accuracy_drop: float = Field(0.001, ge=0, le=1, description="top-1 accuracy the file may lose")
    images: int = Field(512, ge=1, description="validation images the proof runs on, at most")


class BenchRecipe(Section):
    """`[bench]`: how quality and speed are measured."""

    images: int = Field(0, ge=0, description="test images for the quality figures, 0 takes all")
    batch_sizes: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        (1, 32), description="batches whose throughput is measured; latency is always of batch 1"
    )
    samples: int = Field(100, ge=10, le=100_000, description="timed runs of batch 1 for each row")
    seconds: float = Field(10.0, gt=0, le=3600, description="s; most time spent on timing one row at one batch size")


class Recipe(Section):
    """All settings of a run. Immutable; `with_overrides` makes a changed copy."""

    data: DataRecipe = DataRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    distill: DistillRecipe = DistillRecipe()
    export: ExportRecipe = ExportRecipe()
    bench: BenchRecipe = BenchRecipe()

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> Self:
        """Check `values`; RecipeError names the key path and what is allowed, `origin` is where they came from."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _first_problem(error, origin) from None

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RecipeError(f"cannot read the recipe {path}: {reason}", "give --recipe a TOML file") from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not valid TOML: {error}", "mend that line") from None
        return cls.from_dict(values, str(path))

    def with_overrides(self, overrides: Iterable[str]) -> Self:
        """A copy with every `section.key=value` applied; values are read as TOML, bare words as strings."""
        values = self.model_dump(mode="json")
        for override in overrides:
            path, separator, text = override.partition("=")
            section, dot, key = path.strip().partition(".")
            if not separator or not dot:
                raise RecipeError(
                    f"--set {override!r} is not section.key=value", "write it like --set distill.temperature=4"
                )
            table = values.setdefault(section, {})
            table[key.strip()] = _toml_value(text.strip())
        return self.from_dict(values, "--set")

    def fingerprint(self, *parts: str) -> str:
        """SHA-256 of the named sections and `section.key`s, without what cannot change a result (paths, workers)."""
        values = {
            f"{section}.{key}": value
            for section, table in self.model_dump(mode="json").items()
            for key, value in table.items()
            if (section in parts or f"{section}.{key}" in parts) and f"{section}.{key}" not in NOT_IN_FINGERPRINT
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def builtin_names() -> list[str]:
    """Names of the recipes that ship with the toolkit."""
    return sorted(_builtin_files())


def load_builtin(name: str) -> Recipe:
    return Recipe.from_toml(_builtin_files()[name])


def _builtin_files() -> dict[str, Path]:
    package = Path(__file__).parent
    installed = {path.stem: path for path in (package / "recipes").glob("*.toml")}
    in_checkout = {path.parent.name: path for path in (package.parent / "models").glob("*/recipe.toml")}
    return installed or in_checkout


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _first_problem(error: ValidationError, origin: str) -> RecipeError:
    problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    path = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1)
        guess = f"did you mean {'.'.join([*keys[:-1], near[0]])}? " if near else ""
        return RecipeError(f"{origin}: unknown key {path}", f"{guess}valid here: {', '.join(known)}")
    message = problem["msg"].removeprefix("Value error, ")
    got = json.dumps(problem["input"], default=str)
    return RecipeError(f"{origin}: {path} = {got} is not allowed", f"{message[0].lower()}{message[1:]}")


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for key in path:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
