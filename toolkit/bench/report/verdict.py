"""Comparisons within a report: each row with the teacher's, ONNX with torch, and which student to ship."""

from collections.abc import Sequence
from typing import Protocol

from toolkit.bench.schema import Hardware, ReportRow, VsTeacher, find_row, short_provider
from toolkit.runtimes.base import IO_BINDING

SAME = 0.05
"""Ratios within this of 1, and points within this of 0, are called equal."""

ROUNDING = 1e-9
"""By how much a difference of two fractions may exceed a bound: 0.91 - 0.90 is a little more than 0.01."""

ACCELERATORS = ("cuda", "rocm", "migraphx", "mps", "coreml", "gpu", "npu", "dml")
"""Parts of the names of providers that are not the CPU."""


class Named(Protocol):
    """Anything that has a row's names."""

    @property
    def model(self) -> str: ...
    @property
    def precision(self) -> str: ...


def compare_with_teacher(rows: Sequence[ReportRow]) -> list[ReportRow]:
    """The rows; all but the teacher's have `vs_teacher`, against its fp32 row in the same runtime and provider.

    `times_smaller` and `times_faster` (p50 of batch 1) are the teacher's figure over the row's. They are below 1 if the
    row is larger or slower. `accuracy_top1_difference` is the row's less the teacher's, as a fraction.
    """
    compared = []
    for row in rows:
        teacher = find_row(rows, "teacher", row.runtime, provider=row.provider)
        if row.model != "teacher" and teacher is not None:
            row = row.model_copy(update={"vs_teacher": _compare(row, teacher, teacher)})
        compared.append(row)
    return compared


def find_shipped(rows: Sequence[ReportRow]) -> ReportRow:
    """The row of the student that ships: its fp32 file in onnxruntime, else its first row."""
    found = find_row(rows, "student", "onnxruntime")
    return found or next(row for row in rows if row.model == "student")


def name_model(row: Named) -> str:
    """`student`, or `student int8`."""
    return row.model if row.precision == "fp32" else f"{row.model} {row.precision}"


def name_runtime(row: ReportRow, rows: Sequence[ReportRow]) -> str:
    """`onnxruntime`, or `onnxruntime cuda` if `rows` has that runtime on several providers."""
    providers = {other.provider for other in rows if other.runtime == row.runtime}
    return row.runtime if len(providers) < 2 else f"{row.runtime} {short_provider(row.provider)}"


def name_gpu(hardware: Hardware) -> str | None:
    """The GPU that a report's torch rows ran on, else all GPUs that the machine shows; None if there is none."""
    device = hardware.device or ""
    return device if device.startswith("cuda") else hardware.gpu


def find_contradictions(rows: Sequence[ReportRow], tolerance: float) -> list[str]:
    """A sentence for each fp32 row whose top-1 accuracy is off the same model's in torch by more than `tolerance`."""
    found = []
    for other in rows:
        torch = find_row(rows, other.model, "torch")
        if other.runtime == "torch" or other.precision != "fp32" or torch is None:
            continue
        if abs(other.accuracy_top1 - torch.accuracy_top1) > tolerance:
            weights, compiled = f"{other.model}.safetensors", other.runtime.startswith("torch")
            files = f"{weights} compiled and uncompiled" if compiled else f"{other.model}.onnx and {weights}"
            remedy = "leave that runtime out" if compiled else "export it again with toolkit export --onnx --force"
            found.append(
                f"{files} should agree, but do not: top-1 is {other.accuracy_top1:.4f} in {other.runtime} and "
                f"{torch.accuracy_top1:.4f} in torch; {remedy}"
            )
    return found


def ship(rows: Sequence[ReportRow], max_drop: float, images: int, no_teacher: str = "") -> str:
    """One sentence: which student row to ship, the fastest (p50 of batch 1) of those that lose at most `max_drop`.

    The loss is of top-1 accuracy, as a fraction, from the teacher's most accurate row on the same kind of device (the
    CPU or not). Speed and size are against the fastest of its rows that lose no more. `images` is how many were tested.
    If no student row is accurate enough, or the fastest is no faster than the teacher, the sentence says so. Rows with
    I/O binding are left out: a caller has to copy the images to the GPU. `no_teacher` says why there is none; then the
    loss is from the student's own most accurate row.
    """
    rows = [row for row in rows if row.runtime != IO_BINDING]
    if no_teacher:
        return f"{_ship_alone(rows, max_drop, images)} {no_teacher}"
    pairs = [(row, *_reference(row, rows, max_drop)) for row in rows if row.model == "student"]
    near = [pair for pair in pairs if _loss(pair[0], pair[1]) <= max_drop + ROUNDING]
    if not near:
        row, best, _ = min(pairs, key=lambda pair: _loss(pair[0], pair[1]))
        return (
            f"Ship no student yet: none is within --max-drop {max_drop:g} of the teacher. The closest, "
            f"{name_model(row)} in {name_runtime(row, rows)}, is {100 * _loss(row, best):.2f} points less accurate on "
            f"{images:,} test images: {100 * row.accuracy_top1:.2f} % against {100 * best.accuracy_top1:.2f} %."
        )
    row, best, fastest = min(near, key=lambda pair: pair[0].latency_ms.p50)
    name = f"{name_model(row)} in {name_runtime(row, rows)}"
    one = 100 * abs(_loss(fastest, best)) < SAME
    against = f"compared with the teacher's fastest row{'' if one else ' and its best accuracy'}"
    difference = _compare(row, fastest, best)
    comparison = f"{_describe(difference)} on {images:,} test images"
    if difference.times_faster < 1 + SAME:
        return f"The student is no faster here. Its fastest row, {name}, is {comparison}, {against}."
    return f"Ship {name}: {against}, it is {comparison}."


def _ship_alone(rows: Sequence[ReportRow], max_drop: float, images: int) -> str:
    students = [row for row in rows if row.model == "student"]
    best = max(students, key=lambda row: row.accuracy_top1)
    near = [row for row in students if _loss(row, best) <= max_drop + ROUNDING]
    row = min(near, key=lambda row: row.latency_ms.p50)
    return (
        f"Ship {name_model(row)} in {name_runtime(row, rows)}: it has {100 * row.accuracy_top1:.2f} % of {images:,}"
        f" test images right, and one image takes {row.latency_ms.p50:.2f} ms (p50)."
    )


def describe_difference(row: ReportRow) -> str:
    """`44.8 times smaller, 12.3 times faster and 0.4 points less accurate`; "" if there is nothing to compare with."""
    return _describe(row.vs_teacher) if row.vs_teacher else ""


def _reference(row: ReportRow, rows: Sequence[ReportRow], max_drop: float) -> tuple[ReportRow, ReportRow]:
    """The teacher's most accurate row and the fastest of those near it, on its kind of device if there are any."""
    teachers = [other for other in rows if other.model == "teacher"]
    alike = [other for other in teachers if _is_accelerated(other) == _is_accelerated(row)] or teachers
    best = max(alike, key=lambda other: other.accuracy_top1)
    near = [other for other in alike if _loss(other, best) <= max_drop + ROUNDING]
    return best, min(near, key=lambda other: other.latency_ms.p50)


def _loss(row: ReportRow, best: ReportRow) -> float:
    return best.accuracy_top1 - row.accuracy_top1


def _is_accelerated(row: ReportRow) -> bool:
    return any(name in row.provider.lower() for name in ACCELERATORS)


def _compare(row: ReportRow, cost: ReportRow, quality: ReportRow) -> VsTeacher:
    """The row against the teacher's rows of `cost` (size and speed) and of `quality`."""
    return VsTeacher(
        times_smaller=cost.size_bytes / row.size_bytes,
        times_faster=cost.latency_ms.p50 / row.latency_ms.p50,
        accuracy_top1_difference=row.accuracy_top1 - quality.accuracy_top1,
    )


def _describe(against: VsTeacher) -> str:
    points = 100 * against.accuracy_top1_difference
    accuracy = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate"
    return (
        f"{_times(against.times_smaller, 'smaller', 'larger', 'as large')}, "
        f"{_times(against.times_faster, 'faster', 'slower', 'as fast')} "
        f"and {'as accurate' if abs(points) < SAME else accuracy}"
    )


def _times(ratio: float, more: str, less: str, same: str) -> str:
    if abs(ratio - 1) < SAME:
        return f"about {same}"
    factor, word = (ratio, more) if ratio > 1 else (1 / ratio, less)
    return f"{factor:.0f} times {word}" if factor >= 100 else f"{factor:.1f} times {word}"
