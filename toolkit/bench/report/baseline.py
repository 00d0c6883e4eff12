"""The gate for continuous integration: a new report must not be slower or less accurate than an earlier one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit import console
from toolkit.bench.report.verdict import ROUNDING, name_model
from toolkit.bench.schema import ReportRow, short_provider
from toolkit.errors import ArtifactError, GateError

SCHEMA = 1
"""The version of report.json that this toolkit writes and reads: fields may be added, never renamed."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class BaselineComparison:
    """One row of the baseline against the same row now."""

    name: str
    """`student int8 in onnxruntime on cpu`"""
    baseline_ms: float
    """p50 of batch 1, as is the next"""
    now_ms: float
    slowdown: float
    """now_ms / baseline_ms: above 1 where it got slower"""
    drop: float
    """top-1 accuracy lost, as a fraction: above 0 where it got worse"""


def check_against_baseline(
    report: dict[str, Any], baseline: dict[str, Any], max_slowdown: float, max_drop: float
) -> list[BaselineComparison]:
    """Every row of `baseline` against the same model, precision, runtime and provider in `report`, in its order.

    Raises GateError naming all rows that are missing now, are more than `max_slowdown` times as slow (p50 of batch 1),
    or lost more than `max_drop` of top-1 accuracy (a fraction); ArtifactError where the two were not measured on the
    same images. Another processor is remarked on: times are hardly comparable then. Rows that are new pass.
    """
    require_same_images(report["dataset"], baseline)
    _remark_on_hardware(report["hardware"], baseline["hardware"])
    now = {_key(row): row for row in report["rows"]}
    missing = [f"{_name(row)} is missing" for row in baseline["rows"] if _key(row) not in now]
    comparisons = [_compare(row, now[_key(row)]) for row in baseline["rows"] if _key(row) in now]
    failures = missing + _find_failures(comparisons, max_slowdown, max_drop)
    if failures:
        raise GateError(
            f"worse than the baseline of {baseline['created']}: {'; '.join(failures)}",
            "mend that, measure again on an idle machine, or make this report the new baseline if the change is meant",
        )
    return comparisons


def read_report(path: Path) -> dict[str, Any]:
    """A report.json of this or an earlier run. Raises ArtifactError where it is missing or something else."""
    remedy = "make it with toolkit bench, and give the path of its report.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"there is no report {path}", remedy) from None
    except OSError as error:
        raise ArtifactError(f"cannot read the report {path}: {error.strerror}", remedy) from None
    try:
        schema = _Schema.model_validate_json(text).schema_
        if schema == SCHEMA:
            _Report.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"{path} is no report of toolkit bench: {_first_reason(error)}", remedy) from None
    if schema != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {schema}, and this toolkit reads schema {SCHEMA}",
            "make it again with this version's toolkit bench",
        )
    report: dict[str, Any] = json.loads(text)
    return report


class _Part(BaseModel):
    """What is compared; all the rest of a report may be as it likes."""

    model_config = ConfigDict(extra="ignore")


class _Latency(_Part):
    p50: Positive


class _Row(_Part):
    model: str
    precision: str
    runtime: str
    provider: str
    size_bytes: Annotated[int, Field(ge=1)]
    accuracy_top1: Fraction
    latency_ms: _Latency


class _Dataset(_Part):
    name: str
    images: Annotated[int, Field(ge=1)]
    sha256: str


class _Hardware(_Part):
    cpu: str
    gpu: str | None


class _Schema(_Part):
    schema_: Annotated[int, Field(alias="schema")]


class _Report(_Part):
    created: str
    dataset: _Dataset
    hardware: _Hardware
    rows: Annotated[list[_Row], Field(min_length=1)]


def _first_reason(error: ValidationError) -> str:
    """`rows.0.latency_ms.p50: field required`"""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    reason = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{where}: {reason}" if where else reason


def require_same_images(now: dict[str, Any], baseline: dict[str, Any]) -> None:
    """ArtifactError unless the report `baseline` is of the images of `now`, the `dataset` part of a report."""
    before = baseline["dataset"]
    if (now["sha256"], now["images"]) == (before["sha256"], before["images"]):
        return
    contents = "" if now["sha256"] == before["sha256"] else " of other content"
    raise ArtifactError(
        f"the baseline was measured on {before['images']:,} images of {before['name']}, "
        f"this report on {now['images']:,} of {now['name']}{contents}: accuracies cannot be compared",
        "measure on the same data and as many images (bench.images), or make this report the new baseline",
    )


def _remark_on_hardware(now: dict[str, Any], before: dict[str, Any]) -> None:
    for part in ("cpu", "gpu"):
        if now[part] != before[part]:
            console.say(
                f"warning: the baseline was measured on another {part} ({before[part] or 'none'}, now "
                f"{now[part] or 'none'}); times say little across machines"
            )


def _compare(before: ReportRow, now: ReportRow) -> BaselineComparison:
    then_ms, now_ms = before["latency_ms"]["p50"], now["latency_ms"]["p50"]
    drop = before["accuracy_top1"] - now["accuracy_top1"]
    return BaselineComparison(_name(before), then_ms, now_ms, now_ms / then_ms, drop)


def _find_failures(comparisons: Sequence[BaselineComparison], max_slowdown: float, max_drop: float) -> list[str]:
    failures = []
    for one in comparisons:
        if one.slowdown > max_slowdown * (1 + ROUNDING):
            failures.append(
                f"{one.name} is {one.slowdown:.2f} times as slow "
                f"({one.baseline_ms:.3f} -> {one.now_ms:.3f} ms, {max_slowdown:g} times allowed)"
            )
        if one.drop > max_drop + ROUNDING:
            failures.append(f"{one.name} lost {100 * one.drop:.2f} points of top-1 ({100 * max_drop:g} allowed)")
    return failures


def _key(row: ReportRow) -> tuple[str, str, str, str]:
    return row["model"], row["precision"], row["runtime"], row["provider"]


def _name(row: ReportRow) -> str:
    return f"{name_model(row)} in {row['runtime']} on {short_provider(row['provider'])}"
