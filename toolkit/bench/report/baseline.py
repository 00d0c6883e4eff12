"""The gate for continuous integration: a new report must not be slower or less accurate than an earlier one."""

from collections.abc import Sequence

from toolkit import console
from toolkit.bench.report.verdict import ROUNDING, name_model
from toolkit.bench.schema import BaselineComparison, Hardware, Report, ReportDataset, ReportRow, short_provider
from toolkit.errors import ArtifactError, GateError


def check_against_baseline(
    report: Report, baseline: Report, max_slowdown: float, max_drop: float
) -> list[BaselineComparison]:
    """Every row of `baseline` against the same model, precision, runtime and provider in `report`, in its order.

    Raises GateError, which names all rows that are missing, are more than `max_slowdown` times as slow (p50 of batch
    1), or lost more than `max_drop` of top-1 accuracy (a fraction); ArtifactError if the two were not measured on the
    same images. Another processor gets a warning: times are hardly comparable then. Rows that are new pass.
    """
    require_same_images(report.dataset, baseline.dataset)
    _remark_on_hardware(report.hardware, baseline.hardware)
    now = {_key(row) for row in report.rows}
    missing = [f"{_name(row)} is missing" for row in baseline.rows if _key(row) not in now]
    comparisons = compare_with_baseline(report.rows, baseline.rows)
    failures = missing + _find_failures(comparisons, max_slowdown, max_drop)
    if failures:
        raise GateError(
            f"worse than the baseline of {baseline.created}: {'; '.join(failures)}",
            "fix that, measure again on an idle machine, or make this report the new baseline if you meant the change",
        )
    return comparisons


def compare_with_baseline(now: Sequence[ReportRow], before: Sequence[ReportRow]) -> list[BaselineComparison]:
    """Every row of `before` that is measured now too, in its order; whatever the figures are."""
    found = {_key(row): row for row in now}
    return [_compare(row, found[_key(row)]) for row in before if _key(row) in found]


def require_same_images(now: ReportDataset, before: ReportDataset) -> None:
    """ArtifactError unless both are the same images; `before` is the baseline's."""
    if (now.sha256, now.images) == (before.sha256, before.images):
        return
    contents = "" if now.sha256 == before.sha256 else " with other content"
    raise ArtifactError(
        f"the baseline was measured on {before.images:,} images of {before.name}, "
        f"this report on {now.images:,} of {now.name}{contents}: accuracies cannot be compared",
        "measure on the same data and as many images (bench.images), or make this report the new baseline",
    )


def _remark_on_hardware(now: Hardware, before: Hardware) -> None:
    for part, here, there in (("cpu", now.cpu, before.cpu), ("gpu", now.gpu, before.gpu)):
        if here != there:
            console.say(
                f"warning: the baseline was measured on another {part} ({there or 'none'}, now {here or 'none'}); "
                "times of two machines can hardly be compared"
            )


def _compare(before: ReportRow, now: ReportRow) -> BaselineComparison:
    then_ms, now_ms = before.latency_ms.p50, now.latency_ms.p50
    drop = before.accuracy_top1 - now.accuracy_top1
    return BaselineComparison(
        name=_name(before), baseline_ms=then_ms, now_ms=now_ms, slowdown=now_ms / then_ms, drop=drop
    )


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
    return row.model, row.precision, row.runtime, row.provider


def _name(row: ReportRow) -> str:
    return f"{name_model(row)} in {row.runtime} on {short_provider(row.provider)}"
