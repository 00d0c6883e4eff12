"""Two reports side by side: their rows, and what differs in data, settings, hardware and versions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from toolkit import console
from toolkit.bench.report.markdown import percent
from toolkit.bench.report.verdict import name_model
from toolkit.bench.schema import Report, ReportRow, short_provider
from toolkit.recipe import move_settings

HEADINGS = ("model", "runtime", "top-1 A", "top-1 B", "points", "ms A", "ms B", "×", "size A", "size B", "×")
LEFT = (0, 1)
"""columns that are flush left"""
MACHINE = {"cpu", "cores", "memory_gib", "gpu", "driver"}
"""fields of the hardware that distinguish machines; clock and load are never the same twice"""


@dataclass(frozen=True)
class RowPair:
    """A row of both reports: a model, precision and runtime, and if there are several the provider too.

    Lists are [first, second], with None if a report lacks the row; the other figures are then None.
    """

    model: str
    precision: str
    runtime: str
    provider: list[str | None]
    accuracy_top1: list[float | None]
    """fractions"""
    accuracy_top1_difference: float | None
    """The second's fraction less the first's."""
    latency_ms_p50: list[float | None]
    """ms, of one image"""
    times_faster: float | None
    """The first's p50 / the second's: the gain from the first to the second. `times_smaller` is the same for sizes."""
    size_bytes: list[int | None]
    times_smaller: float | None


@dataclass(frozen=True)
class SideBySide:
    """Two reports: their `names` (A, B), a sentence for each difference between them, and their rows."""

    names: list[str]
    differences: list[str]
    rows: list[RowPair]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_reports(first: Report, second: Report, names: tuple[str, str]) -> SideBySide:
    """Both reports, called by `names` (their directories)."""
    return SideBySide(
        list(names),
        _find_differences(first, second),
        [_put_together(*pair) for pair in _pair_rows(first.rows, second.rows)],
    )


def print_side_by_side(comparison: SideBySide) -> None:
    """Print the comparison on stdout: the rows as a table, the differences below it."""
    first, second = comparison.names
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    table.title, table.title_justify = Text(f"A: {first}\nB: {second}"), "left"
    for column, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if column in LEFT else "right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*_cells(row), style="bold" if row.model == "student" else None)
    # the table is as wide as its figures, even beyond a narrow terminal: a cut number is worse than a wrapped line.
    table.width = console.out.measure(table, options=console.out.options.update_width(1000)).maximum
    console.out.print(table)
    for difference in comparison.differences:
        console.out.print(difference, markup=False)


def _pair_rows(
    first: Sequence[ReportRow], second: Sequence[ReportRow]
) -> list[tuple[ReportRow | None, ReportRow | None]]:
    """Pairs of rows that belong together, in the first report's order, then the rows that only the second has.

    A row whose provider the second report lacks is paired with a row on a provider that the first report lacks.
    """
    left = list(second)
    pairs: list[tuple[ReportRow | None, ReportRow | None]] = []
    for row in first:
        here = {one.provider for one in first if _key(one) == _key(row)}
        alike = [one for one in left if _key(one) == _key(row)]
        same = [one for one in alike if one.provider == row.provider]
        other = next(iter(same or [one for one in alike if one.provider not in here]), None)
        left = [one for one in left if one is not other]
        pairs.append((row, other))
    return [*pairs, *((None, row) for row in left)]


def _put_together(first: ReportRow | None, second: ReportRow | None) -> RowPair:
    """One of the two at least is a row."""
    rows = (first, second)
    known = next(row for row in rows if row)
    both = (first, second) if first and second else None
    return RowPair(
        model=known.model,
        precision=known.precision,
        runtime=known.runtime,
        provider=[row.provider if row else None for row in rows],
        accuracy_top1=[row.accuracy_top1 if row else None for row in rows],
        accuracy_top1_difference=both[1].accuracy_top1 - both[0].accuracy_top1 if both else None,
        latency_ms_p50=[row.latency_ms.p50 if row else None for row in rows],
        times_faster=both[0].latency_ms.p50 / both[1].latency_ms.p50 if both else None,
        size_bytes=[row.size_bytes if row else None for row in rows],
        times_smaller=both[0].size_bytes / both[1].size_bytes if both else None,
    )


def _cells(row: RowPair) -> list[str]:
    providers = list(dict.fromkeys(short_provider(one) for one in row.provider if one))
    difference = row.accuracy_top1_difference
    return [
        name_model(row),
        f"{row.runtime} {' / '.join(providers)}",
        *(percent(one) for one in row.accuracy_top1),
        "" if difference is None else f"{100 * difference:+.2f}",
        *("–" if one is None else f"{one:.3f}" for one in row.latency_ms_p50),
        "" if row.times_faster is None else f"{row.times_faster:.2f}",
        *("–" if one is None else console.size(one) for one in row.size_bytes),
        "" if row.times_smaller is None else f"{row.times_smaller:.2f}",
    ]


def _find_differences(first: Report, second: Report) -> list[str]:
    """A sentence for whatever makes the figures hard to compare, data first, and for each setting and version."""
    found = []
    data = [report.dataset for report in (first, second)]
    if (data[0].sha256, data[0].images) != (data[1].sha256, data[1].images):
        texts = [f"{one.images:,} images of {one.name} ({one.sha256[:12]}…)" for one in data]
        found.append(f"data: {texts[0]} in A, {texts[1]} in B: accuracies are not from the same images")
    machines = [report.hardware.model_dump(include=MACHINE) for report in (first, second)]
    tables: tuple[tuple[str, Sequence[Mapping[str, Any]], str], ...] = (
        ("hardware", machines, ": times are not from the same machine"),
        ("versions", [first.versions, second.versions], ""),
        ("recipe", [move_settings(report.recipe) for report in (first, second)], ""),
    )
    for title, both, remark in tables:
        flat = [_flatten(one) for one in both]
        changed = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
        texts = [f"{name} {_word(flat[0].get(name))} in A, {_word(flat[1].get(name))} in B" for name in changed]
        if texts:
            found.append(f"{title}: {'; '.join(texts)}{remark}")
    return found


def _flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _key(row: ReportRow) -> tuple[str, str, str]:
    return row.model, row.precision, row.runtime
