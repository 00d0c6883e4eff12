"""A report for people: the table on the terminal, and report.md."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from toolkit import console
from toolkit.bench.comparison import describe_difference
from toolkit.bench.gain import describe_gain

Report = dict[str, Any]

METHOD = (
    "Latency is of one image, throughput of batches; both are of the network with its normalisation, from uint8 pixels "
    "to logits, without decoding, resizing and cropping. Rows are warmed up until stable and timed in turns. Quality "
    "is measured on the files themselves, on every test image asked for. ECE is the expected calibration error "
    "(15 bins); agreement is the share of images with the teacher's top-1 class. MACs count convolutions and matrix "
    "products of one image."
)


def print_table(report: Report) -> None:
    """The report's figures on stdout, in 80 columns, and the verdict last."""
    rows = report["rows"]
    largest = _largest_batch(rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        title=_title(report),
        title_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("runtime", no_wrap=True)
    for heading in ("params", "size", "top-1 %", "agree %", "p50 ms", "p95 ms", "img/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            _model(row),
            row["runtime"],
            _count(row["params"]),
            console.size(row["size_bytes"]),
            f"{100 * row['accuracy_top1']:.2f}",
            f"{100 * row['teacher_agreement']:.2f}",
            f"{row['latency_ms']['p50']:.2f}",
            f"{row['latency_ms']['p95']:.2f}",
            f"{row['throughput_img_s'][largest]:,.0f}",
            style="bold" if row["model"] == "student" else None,
        )
    # As wide as its figures, even beyond a narrow terminal: a cut number is worse than a wrapped line.
    table.width = console.out.measure(table, options=console.out.options.update_width(1000)).maximum
    console.out.print(table)
    for row in rows:
        if "vs_teacher" in row:
            told = f"{_model(row)}, {row['runtime']}: {describe_difference(row)} than the teacher"
            console.out.print(told.replace("as accurate than", "as accurate as"), markup=False)
    console.out.print(f"\n{describe_gain(report['distillation'])}", markup=False)
    console.out.print(f"\n{report['verdict']}", style="bold", markup=False)


def render_markdown(report: Report) -> str:
    """report.md: verdict, every figure, and under which conditions."""
    dataset, hardware, versions = report["dataset"], report["hardware"], report["versions"]
    gpu = f", {hardware['gpu']} (driver {hardware['driver']})" if hardware["gpu"] else ""
    sections = [
        f"# Teacher and student on {dataset['name']}",
        report["verdict"],
        *(f"**Careful:** {warning}" for warning in report["warnings"]),
        "## Did distillation help?",
        describe_gain(report["distillation"]),
        _seeds_table(report["distillation"].get("per_seed") or []),
        "## Quality",
        _quality_table(report["rows"]),
        "## Cost",
        _cost_table(report["rows"]),
        "![Accuracy against latency](accuracy_latency.png)",
        "## Conditions",
        _bullets(
            {
                "data": f"{dataset['name']}, {dataset['images']:,} images of the {dataset['split']} split "
                f"(SHA-256 {dataset['sha256'][:12]}…)",
                "machine": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB memory{gpu}",
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "created": f"{report['created']} by kd-toolkit {report['toolkit_version']}",
            }
        ),
        METHOD,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _seeds_table(per_seed: Sequence[dict[str, Any]]) -> str:
    """The seeds one by one, "" where there is no more than one."""
    if len(per_seed) < 2:
        return ""
    cells = [
        [
            str(one["seed"]),
            _percent(one["student_accuracy_top1"]),
            _percent(one["control_accuracy_top1"]),
            f"{100 * one['gain_top1']:+.2f}",
        ]
        for one in per_seed
    ]
    return _markdown_table(["seed", "student top-1", "control top-1", "gain, points"], cells, left=())


def _quality_table(rows: Sequence[dict[str, Any]]) -> str:
    headings = ["model", "runtime", "provider", "top-1", "top-5", "macro-F1", "ECE", "agreement", "against the teacher"]
    cells = [
        [
            _model(row), row["runtime"], row["provider"],
            *(_percent(row[key]) for key in ("accuracy_top1", "accuracy_top5", "macro_f1")),
            f"{row['ece']:.4f}", _percent(row["teacher_agreement"]),
            describe_difference(row) if "vs_teacher" in row else "",
        ]
        for row in rows
    ]  # fmt: skip
    return _markdown_table(headings, cells, left=(0, 1, 2, 8))


def _cost_table(rows: Sequence[dict[str, Any]]) -> str:
    sizes = list(rows[0]["throughput_img_s"])
    headings = ["model", "runtime", "params", "MACs", "file", "p50 ms", "p95 ms", "p99 ms", "mean ± std ms", "n"]
    headings += [f"img/s, batch {size}" for size in sizes] + ["peak MiB"]
    cells = []
    for row in rows:
        latency, peak = row["latency_ms"], row["peak_memory_mib"]
        cells.append(
            [
                _model(row), row["runtime"], f"{row['params']:,}", _count(row["macs"]), console.size(row["size_bytes"]),
                *(f"{latency[key]:.3f}" for key in ("p50", "p95", "p99")),
                f"{latency['mean']:.3f} ± {latency['std']:.3f}", f"{latency['n']:,}",
                *(f"{row['throughput_img_s'][size]:,.0f}" for size in sizes), "–" if peak is None else f"{peak:,.1f}",
            ]
        )  # fmt: skip
    return _markdown_table(headings, cells, left=(0, 1))


def _markdown_table(headings: list[str], rows: list[list[str]], left: Sequence[int]) -> str:
    rule = ["---" if column in left else "---:" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def _bullets(items: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in items.items())


def _title(report: Report) -> str:
    dataset = report["dataset"]
    places = {row["runtime"]: row["provider"] for row in report["rows"]}
    told = ", ".join(f"{runtime} on {short_provider(provider)}" for runtime, provider in places.items())
    return (
        f"{dataset['name']}, {dataset['images']:,} test images; {told}, {report['hardware']['cores']} cores\n"
        f"p50, p95: one image; img/s: batches of {_largest_batch(report['rows'])}"
    )


def short_provider(provider: str) -> str:
    """`CPUExecutionProvider` → `cpu`; torch's names stay."""
    return provider.removesuffix("ExecutionProvider").lower()


def _model(row: dict[str, Any]) -> str:
    return str(row["model"] if row["precision"] == "fp32" else f"{row['model']} {row['precision']}")


def _largest_batch(rows: Sequence[dict[str, Any]]) -> str:
    return max((str(size) for size in rows[0]["throughput_img_s"]), key=int)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _count(number: int) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
