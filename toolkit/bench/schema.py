"""report.json, field by field: `toolkit bench` writes it, and everything else reads it.

Schema 1: fields may be added, never renamed. Fractions are fractions (0.91), not percents. A description starts with
the unit, if there is one: "ms; ...". A field with a default came later than the first reports, or is
absent if there is nothing to say. docs/report.md is generated from these models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from toolkit.errors import ArtifactError

SCHEMA = 1
"""The version of report.json that this toolkit writes and reads."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
"""of two fractions"""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
MAX_COUNT = 2**63 - 1
AtLeastOne = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
BatchSize = Annotated[str, Field(pattern=r"^[1-9]\d{0,8}$")]


class Part(BaseModel):
    """A part of a report. It is frozen: nothing changes a report once it is built. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """The part as report.json has it, key by key; a field that was never given stays absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Hardware(Part):
    """The machine, and what it was doing when the benchmark began."""

    cpu: str = Field(description="name of the processor")
    cores: AtLeastOne = Field(description="cores; how many the benchmark may use, cgroups included")
    memory_gib: Positive = Field(description="GiB; memory that the benchmark may use")
    gpu: str | None = Field(description="names of all GPUs that the machine shows; null if there is none")
    driver: str | None = Field(description="version of the GPUs' driver; null if there is none")
    device: str | None = Field(None, description="the torch device of the torch rows; for a GPU with its name")
    clock_mhz: Count | None = Field(None, description="MHz; the processor's clock; null if not known")
    load_1m: NotNegative | None = Field(None, description="processes; the system's load average over one minute")
    other_load_cores: NotNegative | None = Field(
        None, description="cores; how many other programs kept busy; null if not known"
    )


class ReportDataset(Part):
    """The test images that all figures are of."""

    name: str = Field(description="name of the data set")
    split: str = Field("test", description="always `test`")
    images: AtLeastOne = Field(description="how many images were tested")
    sha256: str = Field(min_length=1, description="fingerprint of the data set's content")


class Latency(Part):
    """Timed runs of one image; percentiles interpolate linearly."""

    p50: Positive = Field(description="ms; half of the runs took no longer")
    p95: Positive = Field(description="ms; 95 % of the runs took no longer")
    p99: Positive = Field(description="ms; 99 % of the runs took no longer")
    mean: Positive = Field(description="ms; mean of the runs")
    std: NotNegative = Field(description="ms; standard deviation of the runs (population)")
    n: AtLeastOne = Field(description="how many runs were timed")
    round_p50_min: Positive = Field(
        default_factory=lambda latency: latency["p50"],
        description="ms; smallest of the rounds' medians: another measurement might find this",
    )
    round_p50_max: Positive = Field(
        default_factory=lambda latency: latency["p50"], description="ms; largest of the rounds' medians"
    )


class Duration(Part):
    """Timed runs of one image file; percentiles interpolate linearly."""

    p50: Positive = Field(description="ms; half of the runs took no longer")
    p95: Positive = Field(description="ms; 95 % of the runs took no longer")
    n: AtLeastOne = Field(description="how many runs were timed")


class RowFacts(Part):
    """One model file in one runtime: what is known of a row without running it."""

    model: str = Field(description="`teacher`, `student`, or `control`: the same student, trained without the teacher")
    precision: str = Field(description="`fp32`, `fp16` or `int8`")
    runtime: str = Field(
        description="`torch`, `torch.compile`, `onnxruntime`, `onnxruntime.io_binding` (images and logits stay on the "
        "GPU) or `openvino`"
    )
    provider: str = Field(description="where the row runs: a torch device, or an execution provider of the runtime")
    threads: AtLeastOne | None = Field(None, description="threads that the runtime may use on the CPU")
    params: Count = Field(description="parameters of the network")
    macs: Count | None = Field(
        None,
        description="multiply-adds of convolutions and matrix products for one image; null for an imported ONNX file",
    )
    size_bytes: AtLeastOne = Field(description="bytes; size of the file")
    calibration: str | None = Field(None, description="how the ranges of an int8 file were found; null for others")
    float_layers: tuple[str, ...] = Field((), description="layers of an fp16 or int8 file that stayed float32")


class Fidelity(Part):
    """How good a row's answers are."""

    accuracy_top1: Fraction = Field(description="fraction; images whose predicted class is the true one")
    accuracy_top5: Fraction = Field(
        description="fraction; images whose class is among the five likeliest, or among all if there are fewer"
    )
    macro_f1: Fraction = Field(description="fraction; mean F1 of the classes that occur in labels or answers")
    ece: Fraction = Field(
        description="fraction; expected calibration error, the gap between confidence and accuracy: 0 is best"
    )
    teacher_agreement: Fraction | None = Field(
        description="fraction; images with the same predicted class as in the teacher's first row, right or wrong; "
        "null if no teacher was measured"
    )


class RowSpeed(Part):
    """How fast a row answers, and what its first use costs."""

    latency_ms: Latency = Field(description="ms; one image, from uint8 pixels to logits")
    throughput_img_s: dict[BatchSize, Positive] = Field(min_length=1, description="images per second; by batch size")
    end_to_end_ms: Duration | None = Field(
        None, description="ms; one image, from the file's bytes to probabilities; null for torch and I/O binding"
    )
    first_call_ms: Positive | None = Field(
        None, description="ms; from opening the file to the first answer, in a process of its own; imports not counted"
    )
    peak_memory_mib: NotNegative | None = Field(
        None, description="MiB; how much that process grew at its peak; null if not known"
    )


class VsTeacher(Part):
    """A row against the teacher's fp32 row in the same runtime and on the same provider."""

    times_smaller: Positive = Field(description="times; the teacher's bytes / the row's bytes")
    times_faster: Positive = Field(description="times; the teacher's p50 / the row's p50, of one image")
    accuracy_top1_difference: Difference = Field(description="fraction; the row's top-1 accuracy less the teacher's")


class ReportRow(RowSpeed, Fidelity, RowFacts):
    """All figures of one model file in one runtime."""

    # In the file, the fields of the last base come first.
    vs_teacher: VsTeacher | None = Field(
        None, description="against the teacher; absent from the teacher's rows, and if the teacher has no such row"
    )


class ClassRecall(Part):
    """One class. Recall is the fraction of a class's images whose predicted class it is."""

    name: str = Field(description="name of the class")
    images: Count = Field(description="test images of the class")
    teacher_recall: Fraction | None = Field(
        description="fraction; recall of the teacher's first row; null without images, as the next two, and if no "
        "teacher was measured"
    )
    student_recall: Fraction | None = Field(
        description="fraction; recall of the student's fp32 row in onnxruntime, else of its first row"
    )
    recall_difference: Difference | None = Field(
        description="fraction; the student's recall less the teacher's, or the control's if no teacher was measured"
    )
    control_recall: Fraction | None = Field(
        None, description="fraction; recall of the control's first row; absent if a teacher was measured"
    )


class SeedGain(Part):
    """A student and its control, both trained from one seed and tested in one runtime."""

    seed: int = Field(description="seed of both trainings")
    student_accuracy_top1: Fraction = Field(description="fraction; top-1 accuracy with the teacher")
    control_accuracy_top1: Fraction = Field(description="fraction; top-1 accuracy without the teacher")
    gain_top1: Difference = Field(description="fraction; the student's accuracy less the control's")


class KnownSplit(Part):
    """What teacher and student answer to one kind of images."""

    split: Literal["train", "out_of_fold", "test"] = Field(
        description="`train`; `out_of_fold`: training images, answered by the teacher that has not seen them; or `test`"
    )
    images: Count = Field(description="images that were asked; training images are a sample")
    teacher_accuracy: Fraction = Field(description="fraction; images that the teacher gets right")
    teacher_beside_label: Fraction = Field(
        description="fraction; mean probability that the teacher gives to other classes than the label's"
    )
    student_accuracy: Fraction = Field(description="fraction; images that the student gets right")
    control_accuracy: Fraction | None = Field(None, description="fraction; the same of the control; null without one")
    student_agreement: Fraction = Field(description="fraction; images with the teacher's class, right or wrong")


class Knowledge(Part):
    """What the teacher knew beyond the labels, and what became of it. Pairs are of the test images, first seed."""

    splits: Annotated[tuple[KnownSplit, ...], Field(min_length=1)] = Field(
        description="kinds of images; `test` is last"
    )
    inherited: Count | None = Field(
        None,
        description="test images right in the control; student and teacher predict the same wrong class",
    )
    spared: Count | None = Field(None, description="test images wrong in the control, right in student and teacher")
    only_student: Count | None = Field(None, description="test images right in the student and wrong in the control")
    only_control: Count | None = Field(None, description="test images right in the control and wrong in the student")
    mcnemar_p: Fraction | None = Field(
        None, description="p of McNemar's exact test of those two counts; null without a control"
    )
    gain_low: Difference | None = Field(
        None, description="fraction; lower end of the 95 % interval of the gain over seeds; null for one seed"
    )
    gain_high: Difference | None = Field(None, description="fraction; its upper end")


class Distillation(Part):
    """Did the teacher help? The student against its control: the same student, trained without the teacher."""

    control_accuracy_top1: Fraction | None = Field(
        None, description="fraction; top-1 accuracy of the control, first seed; null without a control"
    )
    gain_top1: Difference | None = Field(
        None, description="fraction; the student's top-1 accuracy less the control's, first seed"
    )
    seeds: tuple[int, ...] | None = Field(None, description="all seeds that were compared; null without a control")
    mean: Difference | None = Field(None, description="fraction; mean of the gain over all seeds")
    std: NotNegative | None = Field(
        None, description="fraction; standard deviation of the gain (sample); null for one seed"
    )
    per_seed: tuple[SeedGain, ...] = Field((), description="seed by seed")
    epochs: Count | None = Field(None, description="epochs that the student was trained")
    images_seen: Count | None = Field(None, description="images that the student was shown, repeats included")
    seconds: NotNegative | None = Field(None, description="s; how long the student was trained")
    train_img_s: NotNegative | None = Field(None, description="images per second; in training")
    unlabelled_images: Count | None = Field(
        None, description="images without labels that the student was shown; the control saw none; null without any"
    )
    knowledge: Knowledge | None = Field(
        None, description="what the teacher knew beyond the labels; absent from reports of earlier versions"
    )


class BaselineComparison(Part):
    """One row of the baseline against the same row now."""

    name: str = Field(description="the row in words")
    baseline_ms: Positive = Field(description="ms; the baseline's p50 of one image")
    now_ms: Positive = Field(description="ms; the same now")
    slowdown: Positive = Field(description="times; now_ms / baseline_ms: above 1 if it got slower")
    drop: Difference = Field(description="fraction; top-1 accuracy lost: above 0 if it got worse")


class Report(Part):
    """report.json as a whole."""

    schema_: Literal[1] = Field(alias="schema", description="version of this format")
    created: str = Field(description="when the benchmark ended, in ISO 8601 with its time zone")
    toolkit_version: str = Field(description="version of kd-toolkit that measured")
    hardware: Hardware = Field(description="the machine")
    versions: dict[str, str] = Field(description="package, `python` or `system` → its version")
    dataset: ReportDataset = Field(description="the test images")
    recipe: dict[str, Any] = Field(description="all settings by section, as in models/README.md")
    rows: Annotated[tuple[ReportRow, ...], Field(min_length=1)] = Field(
        description="one for each model file in each runtime; the teacher's come first, if it was measured"
    )
    preprocess_ms: Duration | None = Field(None, description="ms; decoding, resizing and cropping one image file")
    classes: tuple[ClassRecall, ...] = Field((), description="class by class, in the order of the classes")
    distillation: Annotated[Distillation, BeforeValidator(lambda part: {} if part is None else part)] = Field(
        Distillation(), description="what the teacher was worth"
    )
    verdict: str = Field(description="which row to ship, in a sentence")
    no_teacher: str = Field("", description="why no teacher was measured, in a sentence; empty if one was")
    warnings: tuple[str, ...] = Field(description="warnings about rows that should agree, but do not")
    timing_warnings: tuple[str, ...] = Field((), description="warnings about what makes the times doubtful")
    license: str = Field("", description="licence of the weights; empty if none was given")
    baseline: tuple[BaselineComparison, ...] | None = Field(
        None, description="the rows of `--baseline` that were measured again; absent without it"
    )

    def with_baseline(self, comparisons: Sequence[BaselineComparison]) -> Self:
        return self.model_copy(update={"baseline": tuple(comparisons)})


class _SchemaOnly(Part):
    schema_: int = Field(alias="schema")


def read_report(path: Path) -> Report:
    """The report in a report.json. Raises ArtifactError if the file is missing or something else."""
    remedy = "make it with toolkit bench, and give the path of its report.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"there is no report {path}", remedy) from None
    except OSError as error:
        raise ArtifactError(f"cannot read the report {path}: {error.strerror}", remedy) from None
    try:
        schema = _SchemaOnly.model_validate_json(text).schema_
        if schema == SCHEMA:
            return Report.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a report of toolkit bench: {first_reason(error)}", remedy) from None
    raise ArtifactError(
        f"{path} has schema {schema}, and this toolkit reads schema {SCHEMA}",
        "make it again with this version's toolkit bench",
    )


def first_reason(error: ValidationError) -> str:
    """`rows.0.latency_ms.p50: field required`"""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].replace("Tuple", "List")  # JSON has no tuples
    reason = message[0].lower() + message[1:]
    return f"{where}: {reason}" if where else reason


def find_row(
    rows: Sequence[ReportRow], model: str, runtime: str, precision: str = "fp32", *, provider: str | None = None
) -> ReportRow | None:
    """The first such row; of any provider if none is given."""
    wanted = (model, runtime, precision)
    for row in rows:
        if (row.model, row.runtime, row.precision) == wanted and provider in (None, row.provider):
            return row
    return None


def short_provider(provider: str) -> str:
    """`CPUExecutionProvider` → `cpu`, `CUDAExecutionProvider:1` → `cuda:1`; torch's names stay."""
    return provider.replace("ExecutionProvider", "").lower()
