"""What `toolkit bench` can do: measure (and hold against a baseline), compare two reports, put a file under load."""

import time
from pathlib import Path
from typing import Any

from toolkit import console
from toolkit.bench.gate import check_against_baseline, read_report
from toolkit.bench.load import run_load
from toolkit.bench.report import print_table, written_files
from toolkit.bench.side_by_side import compare_reports, print_side_by_side
from toolkit.modeldir import ModelDir, Precision, Role
from toolkit.pipeline import bench_models, open_finished_job
from toolkit.printing import command, print_end, print_json, print_written
from toolkit.recipe import BenchRecipe


def measure(
    model: Path,
    recipe: str | None,
    data: str | None,
    device: str,
    provider: str,
    overrides: list[str],
    baseline: Path | None,
    as_json: bool,
) -> None:
    """Benchmark a model directory; GateError where it is worse than the report at `baseline` allows."""
    start = time.perf_counter()
    before = read_report(baseline) if baseline else None  # it may lie where the new report goes
    job = open_finished_job(model, recipe, data, overrides, device=device)
    report = bench_models(job, provider)
    if as_json:
        print_json(report)
    else:
        print_table(report)
        print_written(written_files(job.model_dir))
        print_end(start, command("demo", model))
    if before is not None:
        _hold_against(report, before, job.recipe.bench, as_json)


def compare(model: Path, other: Path, as_json: bool) -> None:
    """Print two directories' reports side by side; nothing is measured."""
    first, second = (read_report(ModelDir(path).report_json) for path in (model, other))
    comparison = compare_reports(first, second, (str(model), str(other)))
    if as_json:
        print_json(comparison)
    else:
        print_side_by_side(comparison)


def put_under_load(
    model: Path, provider: str, clients: int, seconds: float, role: Role, precision: Precision, as_json: bool
) -> None:
    """Drive one ONNX file of a directory from many threads; its report stays as it is."""
    result = run_load(ModelDir(model), role, precision, provider, clients, seconds)
    if as_json:
        print_json(result.to_json())
    else:
        console.out.print(result.summary(), markup=False)


def _hold_against(report: dict[str, Any], before: dict[str, Any], bounds: BenchRecipe, as_json: bool) -> None:
    rows = check_against_baseline(report, before, bounds.max_slowdown, bounds.max_drop)
    if not as_json:
        told = f"no more than {bounds.max_slowdown:g} times as slow, no more than {100 * bounds.max_drop:g} points lost"
        console.out.print(f"baseline of {before['created']}: {len(rows)} rows hold ({told})", markup=False)
