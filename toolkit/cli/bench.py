"""Benchmarks: measure (and compare with a baseline), compare two reports, put a file under load."""

import time
from pathlib import Path

from toolkit import console
from toolkit.bench.bench import written_files
from toolkit.bench.measure.load_test import run_load
from toolkit.bench.report.baseline import check_against_baseline, require_same_images
from toolkit.bench.report.side_by_side import compare_reports, print_side_by_side
from toolkit.bench.report.table import print_table
from toolkit.bench.schema import Report, read_report
from toolkit.cli.printing import after_report, print_end, print_files, print_json
from toolkit.errors import ArtifactError
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.pipeline import bench_models, require_runtimes
from toolkit.settings import BenchRecipe
from toolkit.stage_setup import prepare_finished


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
    """Benchmark a model directory; GateError if it is worse than the report at `baseline` allows."""
    start = time.perf_counter()
    before = _read_baseline(baseline, ModelDir(model)) if baseline else None
    setup = prepare_finished(model, recipe, data, overrides, device=device)
    require_runtimes(setup)
    if before is not None:
        require_same_images(setup.bench_images.describe(), before.dataset)
    report = bench_models(setup, provider, before)
    if as_json:
        print_json(report.to_json())
    else:
        print_table(report)
        print_files(written_files(setup.model_dir))
    # The gate comes after the figures: they are shown even if it fails.
    held = _hold_against(report, before, setup.recipe.bench) if before is not None else None
    if not as_json:
        if held is not None:
            console.out.print(held, markup=False)
        print_end(start, after_report(report, model))


def compare(model: Path, other: Path, as_json: bool) -> None:
    """Print two directories' reports side by side; nothing is measured."""
    first, second = (read_report(ModelDir(path).report_json) for path in (model, other))
    comparison = compare_reports(first, second, (str(model), str(other)))
    if as_json:
        print_json(comparison.to_json())
    else:
        print_side_by_side(comparison)


def put_under_load(
    model: Path, provider: str, clients: int, seconds: float, role: Role, precision: FilePrecision, as_json: bool
) -> None:
    """Drive one ONNX file of a directory from many threads; its report stays as it is."""
    result = run_load(ModelDir(model), role, precision, provider, clients, seconds)
    if as_json:
        print_json(result.to_json())
    else:
        console.out.print(result.summary(), markup=False)


def _read_baseline(path: Path, model_dir: ModelDir) -> Report:
    if path.resolve() == model_dir.report_json.resolve():
        raise ArtifactError(
            f"{path} is the report that this benchmark will replace, so it cannot be the baseline",
            "copy it to another place, and give that file to --baseline",
        )
    return read_report(path)


def _hold_against(report: Report, before: Report, bounds: BenchRecipe) -> str:
    """A line for the terminal; GateError if the report is worse than `before`."""
    rows = check_against_baseline(report, before, bounds.max_slowdown, bounds.max_drop)
    limits = f"at most {bounds.max_slowdown:g} times as slow, at most {100 * bounds.max_drop:g} points lost"
    return f"baseline of {before.created}: {console.count(len(rows), 'row')} passed ({limits})"
