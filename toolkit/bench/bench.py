"""The benchmark: what the student loses and gains against the teacher. It writes report, pictures and model card."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit import __version__, console
from toolkit.bench.measure.classes import compare_classes
from toolkit.bench.measure.fidelity import measure_fidelity
from toolkit.bench.measure.gain import describe_distillation, measure_gain
from toolkit.bench.measure.images import BenchImages
from toolkit.bench.measure.knowledge import SplitAnswers, measure_knowledge
from toolkit.bench.measure.noise import find_noise
from toolkit.bench.measure.reference import Reference, find_reference, say_why_no_teacher
from toolkit.bench.measure.rows import Row, answer_images, find_remarks, find_stale, open_rows
from toolkit.bench.measure.speed import measure_speed
from toolkit.bench.pictures.accuracy_latency import draw_accuracy_latency
from toolkit.bench.pictures.confusion import draw_confusion_difference
from toolkit.bench.pictures.reliability import draw_reliability
from toolkit.bench.report.baseline import compare_with_baseline
from toolkit.bench.report.card import MADE_BY, render_card
from toolkit.bench.report.examples import write_examples
from toolkit.bench.report.table import render_markdown
from toolkit.bench.report.verdict import compare_with_teacher, find_contradictions, find_shipped, ship
from toolkit.bench.schema import SCHEMA, ClassRecall, Hardware, Report, ReportRow, RowSpeed
from toolkit.errors import DataError
from toolkit.files import write_atomically
from toolkit.machine.devices import pick_device
from toolkit.machine.hardware import describe_hardware, describe_versions
from toolkit.modeldir import BENCH_PLOTS, ModelDir
from toolkit.recipe import Recipe
from toolkit.runtimes.base import Logits

SHOWN_WARNINGS = 4
"""warnings about speed on the terminal; report.md has all"""


def run_bench(
    model_dir: ModelDir,
    recipe: Recipe,
    images: BenchImages,
    *,
    device: str = "auto",
    provider: str = "auto",
    baseline: Report | None = None,
) -> Report:
    """Measure teacher, student and control, those that there are, in every runtime of `recipe.bench.runtimes`.

    torch runs on `device`, and onnxruntime on the same GPU, unless `provider` says otherwise. Returns the report that
    is written to report.json. Given a `baseline` of the same images, it also compares the rows with the baseline's,
    whatever the figures are. Raises ArtifactError if weights or ONNX files are missing, DataError if the images are not
    of the model's classes, DeviceError.
    """
    device = pick_device(device)
    hardware = Hardware.model_validate(describe_hardware(device))  # before this process is busy itself
    rows = open_rows(model_dir, device, provider, recipe.bench.runtimes)
    _require_fitting_images(rows, images)
    answers = _answer(rows, images)
    speed = measure_speed(rows, recipe.bench, images)
    reference = find_reference(rows, answers)
    teacher = reference.logits if reference and reference.role == "teacher" else None
    measured = compare_with_teacher(_put_together(rows, answers, images.labels, teacher, speed.rows))
    contradictions = [*find_stale(rows, model_dir), *find_contradictions(measured, recipe.export.max_accuracy_drop)]
    noise = [*find_remarks(rows, model_dir), *find_noise(measured, hardware)]
    _warn(contradictions, noise)
    # what ships against the teacher: the pair that classes and pictures are about
    shipped = measured.index(find_shipped(measured))
    student, no_teacher = answers[shipped], say_why_no_teacher(rows, model_dir)
    per_seed = measure_gain(model_dir, recipe.training.seed, measured, images, device)
    known = measure_knowledge(_ask_all(rows, shipped, answers, images), per_seed) if teacher is not None else None
    report = Report(
        schema=SCHEMA,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        toolkit_version=__version__,
        hardware=hardware,
        versions=describe_versions(),
        dataset=images.describe(),
        recipe=recipe.model_dump(mode="json"),
        rows=tuple(measured),
        preprocess_ms=speed.preprocess_ms,
        classes=_compare_classes(images, reference, student),
        distillation=describe_distillation(per_seed, rows[shipped].extra).model_copy(update={"knowledge": known}),
        verdict=ship(measured, recipe.bench.max_drop, len(images), no_teacher),
        no_teacher=no_teacher,
        warnings=tuple(contradictions),
        timing_warnings=tuple(noise),
        license=rows[shipped].metadata.get("license", recipe.export.license),
    )
    if baseline is not None:
        report = report.with_baseline(compare_with_baseline(report.rows, baseline.rows))
    write_examples(model_dir.examples, images, teacher, student, recipe.bench.disagreements)
    _write(model_dir, report, _draw(report, images, reference, student))
    return report


def written_files(model_dir: ModelDir) -> list[Path]:
    """The files that `run_bench` wrote; a README.md of the user's own is not among them."""
    pictures = [path for name in BENCH_PLOTS if (path := model_dir.plot(name)).is_file()]
    card = [model_dir.card] if MADE_BY in model_dir.card.read_text(encoding="utf-8", errors="replace") else []
    return [model_dir.report_json, model_dir.report_markdown, *pictures, model_dir.examples, *card]


def _warn(contradictions: Sequence[str], noise: Sequence[str]) -> None:
    for warning in (*contradictions, *noise[:SHOWN_WARNINGS]):
        console.say(f"warning: {warning}")
    if (more := len(noise) - SHOWN_WARNINGS) > 0:
        console.say(f"warning: {console.count(more, 'more warning')} about speed in report.md")


def _answer(rows: Sequence[Row], images: BenchImages) -> list[Logits]:
    with console.progress("bench: quality", len(images) * len(rows)) as advance:
        # one after the other: in turns, the threads of the one before would go on spinning
        return [answer_images(row.predictor, images.seen_by(row.model), images.chosen, advance) for row in rows]


def _compare_classes(images: BenchImages, reference: Reference | None, student: Logits) -> tuple[ClassRecall, ...]:
    labels, names = images.labels, images.dataset.classes
    if reference is None:
        return tuple(compare_classes(labels, None, student, names))
    return tuple(compare_classes(labels, reference.logits, student, names, reference.role))


def _ask_all(rows: Sequence[Row], shipped: int, answers: Sequence[Logits], images: BenchImages) -> list[SplitAnswers]:
    """Teacher, student and control on training images and on test images; the latter are asked already."""
    control = next((place for place, row in enumerate(rows) if row.model == "control"), None)
    asked = [0, shipped] if control is None else [0, shipped, control]
    found = []
    if (sample := images.training) is not None:
        everything, own = np.arange(len(sample.pixels)), []
        with console.progress("bench: training images", len(everything) * len(asked)) as advance:
            for row in (rows[place] for place in asked):
                own.append(answer_images(row.predictor, sample.seen_by(row.model), everything, advance))
        found.append(SplitAnswers("train", sample.pixels.labels, *own))
        if sample.out_of_fold is not None:
            found.append(SplitAnswers("out_of_fold", sample.pixels.labels, sample.out_of_fold, *own[1:]))
    return [*found, SplitAnswers("test", images.labels, *(answers[place] for place in asked))]


def _put_together(
    rows: Sequence[Row],
    answers: Sequence[Logits],
    labels: NDArray[np.integer],
    teacher: Logits | None,
    speeds: Sequence[RowSpeed],
) -> list[ReportRow]:
    return [
        ReportRow(**dict(row.describe()), **dict(measure_fidelity(logits, labels, teacher)), **dict(speed))
        for row, logits, speed in zip(rows, answers, speeds, strict=True)
    ]


def _draw(report: Report, images: BenchImages, reference: Reference | None, student: Logits) -> dict[str, bytes]:
    """The pictures by their names in the model directory."""
    labels, dataset = images.labels, images.dataset
    teacher = reference.logits if reference and reference.role == "teacher" else None
    pictures = {
        "accuracy_latency": draw_accuracy_latency(report),
        "reliability": draw_reliability(labels, teacher, student, dataset.name),
    }
    if reference is not None:
        pictures["confusion_difference"] = draw_confusion_difference(
            labels, reference.logits, student, dataset.classes, dataset.name, reference.role
        )
    return pictures


def _require_fitting_images(rows: Sequence[Row], images: BenchImages) -> None:
    pixels, dataset = images.pixels, images.dataset
    if len(pixels) == 0:
        raise DataError(f"{dataset.name} has no readable test image", "add some, or give another data set")
    known, given = rows[0].predictor.classes, dataset.classes
    if known != given:
        detail = f"{len(known)} and {len(given)}" if len(known) != len(given) else "the same number, but other names"
        raise DataError(
            f"{rows[0].path} was not trained on the classes of {dataset.name} ({detail})",
            "give the data it was trained on",
        )
    for row in rows:
        seen, cut = row.predictor.preprocess, images.seen_by(row.model).preprocess
        if (seen.image_size, seen.resize) != (cut.image_size, cut.resize):
            raise DataError(
                f"{row.path} sees {seen.image_size} px, resized to {seen.resize}; the recipe cuts images to "
                f"{cut.image_size} px, resized to {cut.resize}",
                f"use data.image_size={seen.image_size} and data.resize={seen.resize}"
                + (f", or teacher.image_size={seen.image_size}" if row.model == "teacher" else ""),
            )


def _write(model_dir: ModelDir, report: Report, pictures: dict[str, bytes]) -> None:
    """Write the pictures first and report.json last: if that is new, all is new."""
    for name in BENCH_PLOTS:
        if name not in pictures:
            model_dir.plot(name).unlink(missing_ok=True)  # of an earlier benchmark
    for name, picture in pictures.items():
        with write_atomically(model_dir.plot(name)) as path:
            path.write_bytes(picture)
    texts = {model_dir.report_markdown: render_markdown(report)}
    if _may_replace(model_dir.card):
        texts[model_dir.card] = render_card(report, report.license)
    texts[model_dir.report_json] = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for destination, text in texts.items():
        with write_atomically(destination) as path:
            path.write_text(text, encoding="utf-8")


def _may_replace(card: Path) -> bool:
    """Whether there is no README.md, or an earlier benchmark wrote it."""
    if not card.exists() or MADE_BY in card.read_text(encoding="utf-8", errors="replace"):
        return True
    console.say(
        f"{card} was not written by toolkit bench and stays as it is; move it away to have a model card written there"
    )
    return False
