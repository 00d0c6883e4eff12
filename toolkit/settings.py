"""Every setting of every stage, with its unit, range and default, declared once: a class per section of the recipe.

The defaults are meant for photographs.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, field_validator, model_validator

from toolkit.architectures import ONNX, check_settings, settings_of
from toolkit.errors import did_you_mean, shorten
from toolkit.names import ANSWER_SUFFIXES, ONNX_SUFFIX, RUNTIME_NAMES, RuntimeName

IMAGENET, FOOD_11 = "imagenet", "food-11"
"""Names that `teacher.weights` takes besides files and shipped teachers: torchvision's, the notebook's."""

OF_TEACHING = {
    "method", "temperature", "alpha", "standardize", "dkd_target_weight", "dkd_other_weight", "dist_inter_weight",
    "dist_intra_weight", "feature_weight", "teacher_taps", "student_taps", "teacher_precision", "unlabelled_ratio",
}  # fmt: skip
"""Keys of [distill] that mean nothing to a student without a teacher."""

Channels = Annotated[tuple[float, float, float], Field(strict=False)]
Positive = Annotated[float, Field(gt=0)]
Spread = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Sigma = Annotated[float, Field(gt=0, le=0.1)]
Factor = Annotated[float, Field(ge=0, le=10)]
Jitter = Annotated[tuple[Factor, Factor, Factor, Annotated[float, Field(ge=0, le=0.5)]], Field(strict=False)]
Optimizer = Literal["adamw", "sgd"]
Augment = Literal["none", "randaugment", "trivialaugment"]
Schedule = Literal["constant", "cosine", "one-cycle"]
FolderLayout = Literal["auto", "splits", "classes"]
Names = Annotated[tuple[str, ...], Field(strict=False)]

Calibration = Literal["minmax", "entropy", "percentile"]
"""The range of all values; the range that loses least information (by KL); the central 99.999 %."""

LOGIT_METHODS = ("kd", "dkd", "dist", "hard")
"""Ways to learn from the teacher's logits; METHODS in toolkit/distill/objective.py has each of them."""
FEATURE_METHODS = ("fitnets", "attention", "similarity")
"""Ways to learn from the teacher's layers."""


class Mix(NamedTuple):
    """How two images share a view: α of Beta(α, α), 0 for none of it; with both, each view draws one of them."""

    mixup: float = 0.0
    cutmix: float = 0.0


class Section(BaseModel):
    """A table of the recipe: frozen, no coercion between types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataRecipe(Section):
    """`[data]`: which images are used, and what a network sees of them."""

    source: str = Field("fashion-mnist", min_length=1, description="a named data set, or a directory of images")
    layout: FolderLayout = Field(
        "auto",
        description="what folders called train, val or test are: splits, or classes among others; auto: as it fits",
    )
    image_size: int = Field(
        160, ge=8, le=2048, description="px; side of the square that a network sees; absent: follows the pictures"
    )
    resize: int = Field(
        176,
        ge=0,
        le=4096,
        description="px; length of the shorter side after resizing; 0: no resizing; absent: follows the pictures",
    )
    mean: Channels = Field((0.485, 0.456, 0.406), description="the student subtracts it from RGB in 0..1")
    std: Spread = Field((0.229, 0.224, 0.225), description="the student divides by it after it has subtracted the mean")
    crop_padding: int = Field(
        0,
        ge=0,
        le=512,
        description="px; padding on every side before the random training crop; absent: follows resize, else 0",
    )
    padding_mode: Literal["symmetric", "constant"] = Field(
        "symmetric", description="symmetric: mirrors the border; constant: fills with 0"
    )
    flip: bool = Field(True, description="mirrors half of the training views left to right")
    rotation_degrees: float = Field(
        0.0, ge=0, le=180, description="degrees; training views turn by up to this angle, either way"
    )
    crop_scale: Annotated[tuple[Share, Share], Field(strict=False)] = Field(
        (1.0, 1.0),
        description="least and largest share of the image's area in a random resized crop, which has no crop_padding; "
        "[1, 1]: a plain crop of image_size",
    )
    crop_ratio: Annotated[tuple[Positive, Positive], Field(strict=False)] = Field(
        (0.75, 1.3333), description="least and largest width over height of that crop"
    )
    color_jitter: Jitter = Field(
        (0.0, 0.0, 0.0, 0.0),
        description="brightness, contrast, saturation change by factors of up to 1 ± this; hue by this share of the "
        "circle; in random order",
    )
    grey: float = Field(0.0, ge=0, le=1, description="share of the training views that lose their colour")
    blur: float = Field(0.0, ge=0, le=1, description="share of the training views that are blurred")
    blur_sigma: Annotated[tuple[Sigma, Sigma], Field(strict=False)] = Field(
        (0.0005, 0.009), description="least and largest σ of that blur, as a share of the view's side"
    )
    erasing: float = Field(
        0.0, ge=0, le=1, description="share of the training views in which a box is erased: 2 to 33 % of the area"
    )
    augment: Augment = Field("none", description="random operations on training views, by one of the usual policies")
    augment_operations: int = Field(2, ge=1, le=10, description="randaugment: operations per view")
    augment_magnitude: int = Field(9, ge=0, le=30, description="randaugment: magnitude of each operation")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share of the training images, held out if a data set has no validation split"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=0.5, description="share of all images, held out if a directory has no splits at all"
    )
    split_seed: int = Field(0, ge=0, description="seed of those two splits")
    share: float = Field(
        1.0, gt=0, le=1, description="share of each class's training images that is used, drawn by split_seed; 1: all"
    )
    unlabelled: Names = Field(
        (), description="folders of images without labels, from which the student learns the teacher's answers alone"
    )
    workers: int = Field(0, ge=0, le=256, description="threads that decode; 0: as many as the process may use cores")

    @field_validator("unlabelled", mode="before")
    @classmethod
    def _a_list(cls, folders: Any) -> Any:
        return _refuse_text(folders, "folders")

    @field_validator("unlabelled")
    @classmethod
    def _no_empty_folder(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        if not all(folders):
            raise ValueError("a folder has no name: use . for the current one")
        return folders

    @field_validator("crop_scale", "crop_ratio", "blur_sigma")
    @classmethod
    def _in_order(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError("write the smaller number first")
        return bounds

    @property
    def has_resized_crop(self) -> bool:
        """Whether training views are random resized crops."""
        return self.crop_scale != (1, 1)

    @property
    def changes_colour(self) -> bool:
        """Whether training views are jittered, grey or blurred."""
        return any(self.color_jitter) or self.grey > 0 or self.blur > 0


class TrainingRecipe(Section):
    """`[training]`: the common settings of all training stages."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of weights, order and views in both training stages")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of both training stages; auto: times both here and uses the faster one"
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = Field(
        "off", description="mode of torch.compile in both training stages; reduce-overhead uses CUDA graphs"
    )


class StageRecipe(Section):
    """Settings of every training stage: the budget, the optimiser, and the regularisation."""

    epochs: int = Field(
        60, ge=1, le=10_000, description="passes over the training images; absent: follows their number"
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="images per step, of all processes together")
    optimizer: Optimizer = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=10, description="peak of the schedule")
    weight_decay: float = Field(5e-4, ge=0, le=1)
    schedule: Schedule = "one-cycle"
    warm_up: float = Field(0.25, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    start_image_size: int = Field(
        0, ge=0, le=2048, description="px; images grow from this size to data.image_size; 0: full size throughout"
    )
    grow_until: float = Field(0.8, gt=0, le=1, description="share of the epochs after which images have full size")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label that is spread over all classes")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: a label counts in inverse proportion to its class's number of training images"
    )
    logit_adjustment: float = Field(
        0.0, ge=0, le=10, description="τ; cross-entropy adds τ·log of each class's share to the logits; 0: nothing"
    )
    mixup: float = Field(0.0, ge=0, le=10, description="α of Beta(α, α), the mix of two images; 0: no mix")
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="α of Beta(α, α), the share of a box that another image fills; 0: none; with mixup: one of the two",
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of the average of weights, which is then kept; 0: no average"
    )
    patience: int = Field(
        0, ge=0, le=10_000, description="epochs without improvement after which training stops; 0: never"
    )

    @property
    def mix(self) -> Mix:
        return Mix(self.mixup, self.cutmix)


class NetworkRecipe(Section):
    """A section that names an architecture. The settings of that architecture are keys of the section, too.

    What they are is the architecture's own affair (toolkit/architectures.py). They are checked with the section, and
    the defaults of those that nobody states are in its dump and fingerprint.
    """

    model_config = ConfigDict(extra="allow")

    once_for_all: ClassVar[Mapping[str, Any]] = {}
    """Settings that earlier versions wrote for every architecture → their default, which is ignored if it is there."""

    architecture: str

    @classmethod
    def architecture_in(cls, values: Mapping[str, Any]) -> Any:
        """The architecture that the section with these values has; of any type, as they are not checked yet."""
        return values.get("architecture", cls.model_fields["architecture"].default)

    @model_validator(mode="wrap")
    @classmethod
    def _check_settings(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        keys = cls.model_fields
        architecture = cls.architecture_in(values) if isinstance(values, dict) else None
        if not isinstance(architecture, str):
            return handler(values)  # refused there, or a section already
        known = settings_of(architecture).model_fields
        stated = {
            key: value
            for key, value in values.items()
            if key not in keys and (key in known or cls.once_for_all.get(key) != value)
        }
        settings = check_settings(architecture, stated)
        own = {"architecture": architecture} | {key: values[key] for key in values if key in keys}
        section = handler(own | settings.model_dump(mode="json"))
        section.model_fields_set.difference_update(known.keys() - settings.model_fields_set)
        section.model_fields_set.difference_update({"architecture"} - values.keys())
        return section

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the architecture, as JSON has them."""
        return dict(self.model_extra or {})

    @property
    def stated_settings(self) -> dict[str, Any]:
        """Those of them that were not left to their defaults."""
        return {key: value for key, value in self.settings.items() if key in self.model_fields_set}


class TeacherRecipe(NetworkRecipe, StageRecipe):
    """`[teacher]`: the network that teaches, trained here, fine-tuned or imported."""

    model_config = ConfigDict(extra="allow")

    architecture: str = Field(
        "resnet18",
        description="a torchvision classifier, `efficientnet_lite0`, `timm:NAME`, `transformers:TYPE`, "
        "`package.module:function`, or `depthwise`, with settings of its own as in [student]",
    )
    weights: str | Names = Field(
        "",
        description="empty: from scratch; a file (also .onnx) or a folder of Hugging Face's, beside the recipe or in "
        "the current directory; answers in .npz or .parquet; `fashion-mnist`: the teacher that ships under that name; "
        "`food-11`: the notebook's; `imagenet`: torchvision's, timm's or efficientnet_lite0's, fine-tuned; a list of "
        "files: the mean of what they say",
    )
    combine: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what is averaged, if there are several weights"
    )
    folds: int = Field(
        0,
        ge=0,
        le=20,
        description="teachers that are trained, each without one part of the training images; an image is taught by the"
        " one that has not seen it; 0: one teacher that sees all",
    )
    classes: str = Field(
        "", description="file with the names of its outputs, one per line; empty: as its weights say, else the data's"
    )
    mean: Channels | None = Field(
        None, description="of the teacher's input; absent: as its weights say, else as in [data]"
    )
    std: Spread | None = Field(None, description="see mean")
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="px; its own side of the square, of the same part of each picture; absent: data's",
    )
    enlarge: int | None = Field(
        None, ge=1, le=16, description="factor by which it enlarges each image; absent: as its weights say, else 1"
    )
    epochs: int = Field(
        30, ge=1, le=10_000, description="passes over the training images; absent: follows their number"
    )

    @classmethod
    def architecture_in(cls, values: Mapping[str, Any]) -> Any:
        """ONNX files have a network of their own."""
        if _all_end_with(values.get("weights"), (ONNX_SUFFIX,)):
            return values.get("architecture", ONNX)
        return super().architecture_in(values)

    @property
    def source(self) -> str:
        """`weights`, if that is one; "" for several."""
        if isinstance(self.weights, str):
            return self.weights
        return self.weights[0] if len(self.weights) == 1 else ""

    @property
    def members(self) -> tuple[str, ...]:
        """The files of several weights; () for one."""
        return () if isinstance(self.weights, str) or len(self.weights) < 2 else self.weights


def has_own_network(weights: Any) -> bool:
    """Whether `teacher.weights` are files whose network is their own: ONNX files, or answers, which need none."""
    return _all_end_with(weights, (ONNX_SUFFIX, *ANSWER_SUFFIXES))


def _all_end_with(weights: Any, suffixes: tuple[str, ...]) -> bool:
    """Whether weights, of any type as they are not checked yet, are one or more files with such endings."""
    given = list(weights) if isinstance(weights, list | tuple) else [weights]
    return bool(given) and all(isinstance(one, str) and one.lower().endswith(suffixes) for one in given)


class StudentRecipe(NetworkRecipe):
    """`[student]`: the small network that ships."""

    once_for_all: ClassVar[Mapping[str, Any]] = {"base": 16, "width_mult": 1.0}

    architecture: str = Field(
        "depthwise", description="`depthwise` (the notebook's), or another network, named as in [teacher]"
    )


class DistillRecipe(StageRecipe):
    """`[distill]`: how the student learns from the teacher."""

    method: str = Field("kd", description=f"{', '.join((*LOGIT_METHODS, *FEATURE_METHODS))}, or two: kd+attention")
    temperature: float = Field(4.0, gt=0, le=100, description="temperature T that softens both distributions")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's logits; 0: plain cross-entropy")
    standardize: bool = Field(False, description="z-scores both networks' logits first (Sun et al. 2024)")
    dkd_target_weight: float = Field(1.0, ge=0, le=100, description="dkd: weight of the target class's term")
    dkd_other_weight: float = Field(8.0, ge=0, le=100, description="dkd: weight of the other classes' term")
    dist_inter_weight: float = Field(1.0, ge=0, le=100, description="dist: weight of the relation between classes")
    dist_intra_weight: float = Field(1.0, ge=0, le=100, description="dist: weight of the relation between images")
    feature_weight: float | None = Field(
        None, ge=0, description="weight of the layers' term; absent: as the method has it"
    )
    teacher_taps: Names = Field((), description="layers that teach, by name; empty: the last feature map")
    student_taps: Names = Field((), description="layers that learn from them; as many as in teacher_taps")
    teacher_views: int = Field(
        0, ge=0, le=10_000, description="views per image with stored, replayed teacher logits; 0: a live teacher"
    )
    control: bool | None = Field(
        None, description="also trains the student without a teacher; absent: in `toolkit run` and with --seeds"
    )
    learning_rate: float = Field(0.1, gt=0, le=10, description="peak of the schedule")
    teacher_precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto", description="arithmetic of the teacher while it teaches; auto: as precision, or int8 if that is faster"
    )
    unlabelled_ratio: float = Field(
        1.0, gt=0, le=100, description="images of data.unlabelled per labelled image in each step, besides batch_size"
    )

    @field_validator("teacher_taps", "student_taps", mode="before")
    @classmethod
    def _a_list(cls, names: Any) -> Any:
        return _refuse_text(names, "names")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        check_method(method)
        return method

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if any(self.mix) and "dkd" in self.method_parts:
            raise ValueError(f"dkd needs one label per image: set {'mixup' if self.mixup else 'cutmix'} to 0")
        if self.teacher_precision == "int8" and self.feature_method:
            raise ValueError("a method of layers cannot read an int8 teacher: choose another teacher_precision")
        if len(self.teacher_taps) != len(self.student_taps):
            raise ValueError("teacher_taps and student_taps must name the same number of layers")
        return self

    @property
    def method_parts(self) -> tuple[str, ...]:
        return tuple(self.method.split("+"))

    @property
    def logit_method(self) -> str | None:
        return next((part for part in LOGIT_METHODS if part in self.method_parts), None)

    @property
    def stored_views(self) -> int:
        """Views whose teacher logits are stored, no more than are shown; 0 for a live teacher, and for its layers."""
        return 0 if self.feature_method else min(self.teacher_views, self.epochs)

    @property
    def feature_method(self) -> str | None:
        return next((part for part in FEATURE_METHODS if part in self.method_parts), None)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the loss has a term of the teacher's."""
        return bool(self.logit_method and self.alpha) or bool(self.feature_method and self.feature_weight != 0)


def _refuse_text(values: Any, what: str) -> Any:
    """ValueError if one text was given instead of a list."""
    if isinstance(values, str):
        raise ValueError(f"write a list of {what}: [{json.dumps(shorten(values))}]")
    return values


def check_method(method: str) -> None:
    """ValueError unless `method` is a logits method, a features method, or one of each joined by `+`."""
    parts = method.split("+")
    known = (*LOGIT_METHODS, *FEATURE_METHODS)
    if unknown := [part for part in parts if part not in known]:
        guess = did_you_mean(unknown[0], known)
        raise ValueError(f"{guess}valid: {', '.join(known)}; a method of logits and one of layers join as kd+attention")
    for family in (LOGIT_METHODS, FEATURE_METHODS):
        if sum(part in family for part in parts) > 1:
            raise ValueError(f"at most one of {', '.join(family)} at a time")


class ExportRecipe(Section):
    """`[export]`: the ONNX files, and the bounds within which they are proven."""

    opset: int = Field(20, ge=18, le=23, description="ONNX operator set")
    license: str = Field("", description="written into the file's metadata, unless empty")
    images: int = Field(1000, ge=1, description="most validation images for a proof")
    max_logit_difference: float = Field(
        1e-3, gt=0, description="largest difference of any logit between the fp32 file and torch"
    )
    min_agreement: float = Field(0.999, ge=0, le=1, description="least share of images on which they agree")
    max_accuracy_drop: float = Field(0.001, ge=0, le=1, description="top-1 accuracy that the fp32 file may lose")
    fp16_max_logit_difference: float = Field(
        0.1, gt=0, description="largest difference of any logit between the fp16 file and torch"
    )
    fp16_min_agreement: float = Field(0.99, ge=0, le=1, description="least share of images on which they agree")
    fp16_max_accuracy_drop: float = Field(0.005, ge=0, le=1, description="top-1 accuracy that the fp16 file may lose")
    max_drop: float = Field(0.01, ge=0, le=1, description="top-1 accuracy that the int8 file may lose to the fp32 file")
    calibration: Calibration = Field("minmax", description="how int8 finds the range of each layer's activations")
    calibration_images: int = Field(128, ge=1, le=10_000, description="training images on which those ranges are found")


class BenchRecipe(Section):
    """`[bench]`: how quality and speed are measured."""

    images: int = Field(0, ge=0, description="test images for the quality figures; 0: all")
    batch_sizes: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        (1, 32), description="batch sizes whose throughput is measured; latency is always that of batch 1"
    )
    samples: int = Field(100, ge=10, le=100_000, description="timed runs of batch 1 for each row")
    seconds: float = Field(10.0, gt=0, le=3600, description="s; longest time for one row at one batch size")
    runtimes: Annotated[tuple[RuntimeName, ...], Field(strict=False, min_length=1)] = Field(
        ("torch", "onnxruntime"),
        description=f"of {', '.join(RUNTIME_NAMES)}; torch.compile takes a minute per model, openvino is an extra",
    )
    max_drop: float = Field(
        0.01, ge=0, le=1, description="top-1 accuracy that a student may lose to its teacher, and a row to its baseline"
    )
    max_slowdown: float = Field(
        1.2, ge=1, le=100, description="largest ratio of a row's p50 of one image to its baseline's"
    )
    disagreements: int = Field(
        24, ge=0, le=1000, description="test images on which teacher and student differ, kept for the demo"
    )
