"""A report for people: the table on the terminal, and report.md."""

from collections.abc import Callable, Sequence
from functools import partial

from rich import box
from rich.table import Table
from rich.text import Text

from toolkit import console
from toolkit.bench.report.advice import SPLIT_NAMES, describe_knowledge
from toolkit.bench.report.markdown import bullets, markdown_table, percent
from toolkit.bench.report.verdict import describe_difference, name_gpu, name_model
from toolkit.bench.report.words import compared_with, describe_classes, describe_gain, render_classes
from toolkit.bench.schema import Distillation, Duration, Hardware, Report, ReportRow, SeedGain, short_provider

METHOD = (
    "Latency is that of one image, throughput that of batches. Both are of the network with its normalisation, from "
    "uint8 pixels to logits, without decoding, resizing and cropping. Each row is warmed up until its times are "
    "stable; then the rows are timed in turns. Quality is measured with the files themselves, on all chosen test "
    "images. ECE is the expected calibration error (15 bins). Agreement is the share of images with the teacher's "
    "top-1 class. MACs count convolutions and matrix products for one image."
)


def print_table(report: Report) -> None:
    """Print the report's figures on stdout, in every column if the terminal is wide enough; the verdict last."""
    console.out.print(_build_table(report))
    for row in report.rows:
        if row.vs_teacher:
            text = f"{name_model(row)}, {row.runtime}: {describe_difference(row)} than the teacher"
            console.out.print(text.replace("as accurate than", "as accurate as"), markup=False)
    if classes := describe_classes(report.classes):
        console.out.print(f"\n{classes}", markup=False)
    console.out.print(f"\n{describe_gain(report.distillation)}", markup=False)
    if paragraph := describe_knowledge(report.distillation):
        console.out.print(f"\nWhat the teacher knew beyond the labels. {paragraph}", markup=False)
    console.out.print(f"\n{report.verdict}", style="bold", markup=False)


def _build_table(report: Report) -> Table:
    """A table as wide as its figures, even beyond a narrow terminal: a cut number is worse than a wrapped line."""
    sizes = sorted(report.rows[0].throughput_img_s, key=int)
    few = _columns(sizes[-1])
    fewest = {name: cell for name, cell in few.items() if name != "params"}
    for columns in (_all_columns(sizes), few, fewest):
        table = Table(
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
            show_edge=False,
            title=Text(_title(report)),
            title_justify="left",
        )
        for place, heading in enumerate(columns):
            table.add_column(heading, no_wrap=True, justify="left" if place < len(NAMES) else "right")
        for row in report.rows:
            cells = [cell(row) for cell in columns.values()]
            table.add_row(*cells, style="bold" if row.model == "student" else None)
        table.width = console.out.measure(table, options=console.out.options.update_width(1000)).maximum
        if table.width <= console.out.width:
            break
    return table


Cell = Callable[[ReportRow], str]
NAMES: dict[str, Cell] = {"model": name_model, "runtime": lambda row: row.runtime}


def _columns(batch_size: str) -> dict[str, Cell]:
    """The columns that fit into 80 characters."""
    return NAMES | {
        "params": lambda row: short_count(row.params),
        "size": lambda row: console.size(row.size_bytes),
        "top-1 %": lambda row: f"{100 * row.accuracy_top1:.2f}",
        "agree %": _agreement,
        "p50 ms": lambda row: f"{row.latency_ms.p50:.2f}",
        "p95 ms": lambda row: f"{row.latency_ms.p95:.2f}",
        "img/s": partial(_throughput, batch_size),
    }


def _all_columns(batch_sizes: Sequence[str]) -> dict[str, Cell]:
    few = _columns(batch_sizes[-1])
    return {
        **{name: few[name] for name in (*NAMES, "params")},
        "MACs": lambda row: _macs(row),
        **{name: few[name] for name in ("size", "top-1 %")},
        "top-5 %": lambda row: f"{100 * row.accuracy_top5:.2f}",
        "F1 %": lambda row: f"{100 * row.macro_f1:.2f}",
        "ECE": lambda row: f"{row.ece:.4f}",
        **{name: few[name] for name in ("agree %", "p50 ms", "p95 ms")},
        "p99 ms": lambda row: f"{row.latency_ms.p99:.2f}",
        "end-to-end ms": lambda row: _milliseconds(row.end_to_end_ms),
        "first call ms": lambda row: _number(row.first_call_ms, ".0f"),
        "MiB": lambda row: _number(row.peak_memory_mib, ",.0f"),
        **{f"img/s {size}": partial(_throughput, size) for size in batch_sizes},
    }


def _agreement(row: ReportRow) -> str:
    return "–" if row.teacher_agreement is None else f"{100 * row.teacher_agreement:.2f}"


def _macs(row: ReportRow) -> str:
    return "–" if row.macs is None else short_count(row.macs)


def _throughput(batch_size: str, row: ReportRow) -> str:
    return _number(row.throughput_img_s.get(batch_size), ",.0f")


def _milliseconds(duration: Duration | None) -> str:
    return "–" if duration is None else f"{duration.p50:.2f}"


def _number(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


def render_markdown(report: Report) -> str:
    """report.md: the verdict, every figure, and the conditions of the measurement."""
    dataset, hardware, versions = report.dataset, report.hardware, report.versions
    other = compared_with(report.classes)
    gpu = f", {name_gpu(hardware)} (driver {hardware.driver})" if hardware.gpu else ""
    sections = [
        f"# {'Student' if report.no_teacher else 'Teacher and student'} on {dataset.name}",
        report.verdict,
        *(f"**Warning:** {warning}" for warning in (*report.warnings, *report.timing_warnings)),
        "## Did distillation help?",
        describe_gain(report.distillation),
        _seeds_table(report.distillation.per_seed),
        *_knowledge_section(report.distillation),
        "## Quality",
        _quality_table(report.rows),
        "![Accuracy against confidence](reliability.png)",
        "## Classes",
        render_classes(report.classes),
        f"![Classes that the student confuses more, or less, than the {other}](confusion_difference.png)"
        if other
        else "",
        "## Cost",
        _cost_table(report.rows),
        _describe_preprocessing(report.preprocess_ms),
        _describe_int8(report.rows),
        "![Accuracy against latency](accuracy_latency.png)",
        "## Conditions",
        bullets(
            {
                "data": f"{dataset.name}, {dataset.images:,} images of the {dataset.split} split "
                f"(SHA-256 {dataset.sha256[:12]}…)",
                "machine": f"{hardware.cpu}, {console.count(hardware.cores, 'core')}, "
                f"{hardware.memory_gib} GiB memory{gpu}",
                "before the benchmark began": _describe_activity(hardware),
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "created": f"{report.created} by kd-toolkit {report.toolkit_version}",
            }
        ),
        METHOD,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _knowledge_section(distillation: Distillation) -> list[str]:
    known = distillation.knowledge
    if known is None:
        return []
    headings = ["images", "number", "teacher", "beside the label", "student", "control", "student = teacher"]
    rows = [
        [
            SPLIT_NAMES[one.split], f"{one.images:,}",
            percent(one.teacher_accuracy), f"{100 * one.teacher_beside_label:.2f} %",
            percent(one.student_accuracy), percent(one.control_accuracy), percent(one.student_agreement),
        ]
        for one in known.splits
    ]  # fmt: skip
    table = markdown_table(headings, rows, left=(0,))
    return ["## What the teacher knew beyond the labels", describe_knowledge(distillation), table]


def _describe_activity(hardware: Hardware) -> str:
    clock, load, others = hardware.clock_mhz, hardware.load_1m, hardware.other_load_cores
    parts = [
        None if clock is None else f"clock {clock:,} MHz",
        None if load is None else f"load {load:.2f} (1 min)",
        None if others is None else f"other programs kept {others:.2f} cores busy",
    ]
    return ", ".join(part for part in parts if part) or "not known"


def _seeds_table(per_seed: Sequence[SeedGain]) -> str:
    """The seeds one by one; "" if there is only one."""
    if len(per_seed) < 2:
        return ""
    cells = [
        [
            str(one.seed),
            percent(one.student_accuracy_top1),
            percent(one.control_accuracy_top1),
            f"{100 * one.gain_top1:+.2f}",
        ]
        for one in per_seed
    ]
    return markdown_table(["seed", "student top-1", "control top-1", "gain, points"], cells, left=())


def _quality_table(rows: Sequence[ReportRow]) -> str:
    headings = ["model", "runtime", "provider", "top-1", "top-5", "macro-F1", "ECE", "agreement", "against the teacher"]
    cells = [
        [
            name_model(row), row.runtime, row.provider,
            *(percent(figure) for figure in (row.accuracy_top1, row.accuracy_top5, row.macro_f1)),
            f"{row.ece:.4f}", percent(row.teacher_agreement),
            describe_difference(row),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(headings, cells, left=(0, 1, 2, 8))


def _cost_table(rows: Sequence[ReportRow]) -> str:
    sizes = list(rows[0].throughput_img_s)
    headings = ["model", "runtime", "threads", "params", "MACs", "file", "p50 ms", "p95 ms", "p99 ms", "mean ± std ms"]
    headings += ["p50 by round", "n", "end-to-end p50 ms", "first call ms"]
    headings += [f"img/s, batch {size}" for size in sizes] + ["peak MiB"]
    cells = []
    for row in rows:
        latency = row.latency_ms
        cells.append(
            [
                name_model(row), row.runtime, _number(row.threads, "d"),
                f"{row.params:,}", _macs(row), console.size(row.size_bytes),
                *(f"{figure:.3f}" for figure in (latency.p50, latency.p95, latency.p99)),
                f"{latency.mean:.3f} ± {latency.std:.3f}",
                f"{latency.round_p50_min:.3f} to {latency.round_p50_max:.3f}", f"{latency.n:,}",
                _milliseconds(row.end_to_end_ms), _number(row.first_call_ms, ".0f"),
                *(_throughput(size, row) for size in sizes), _number(row.peak_memory_mib, ",.0f"),
            ]
        )  # fmt: skip
    return markdown_table(headings, cells, left=(0, 1))


def _describe_int8(rows: Sequence[ReportRow]) -> str:
    """How the int8 files were made; "" if there is none."""
    made = {
        name_model(row): (row.calibration, ", ".join(row.float_layers) or "no layer") for row in rows if row.calibration
    }
    return bullets({name: f"calibrated by {how}; {kept} stayed float32" for name, (how, kept) in made.items()})


def _describe_preprocessing(duration: Duration | None) -> str:
    if duration is None:
        return ""
    return (
        f"Decoding, resizing and cropping one image file takes {duration.p50:.3f} ms (p50; p95 "
        f"{duration.p95:.3f} ms, n = {duration.n:,}); end to end adds the network and the softmax."
    )


def _title(report: Report) -> str:
    dataset = report.dataset
    places = {row.runtime: row.provider for row in report.rows}
    text = ", ".join(f"{runtime} on {short_provider(provider)}" for runtime, provider in places.items())
    batch_size = max(report.rows[0].throughput_img_s, key=int)
    return (
        f"{dataset.name}, {dataset.images:,} test images; {text}, "
        f"{console.count(report.hardware.cores, 'core')}\n"
        f"p50, p95: one image; img/s: batches of {batch_size}"
    )


def short_count(number: int) -> str:
    """`257 k`, `11.2 M` or `1.8 G`."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
