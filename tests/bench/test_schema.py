"""docs/report.md: every field of report.json, from the models themselves, each with an example."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from report_samples import make_report, make_row

from toolkit.bench.measure.gain import describe_distillation
from toolkit.bench.measure.knowledge import SplitAnswers, measure_knowledge
from toolkit.bench.report.baseline import compare_with_baseline
from toolkit.bench.schema import Report, SeedGain

DOCUMENT = Path(__file__).parents[2] / "docs" / "report.md"
TITLES = {
    "Report": "The report",
    "Hardware": "`hardware`",
    "ReportDataset": "`dataset`",
    "ReportRow": "`rows`",
    "Latency": "`rows.latency_ms`",
    "Duration": "`preprocess_ms` and `rows.end_to_end_ms`",
    "VsTeacher": "`rows.vs_teacher`",
    "ClassRecall": "`classes`",
    "Distillation": "`distillation`",
    "Knowledge": "`distillation.knowledge`",
    "KnownSplit": "`distillation.knowledge.splits`",
    "SeedGain": "`distillation.per_seed`",
    "BaselineComparison": "`baseline`",
}
"""Model → heading, in the order of the document."""
UNITS = ("ms", "s", "MHz", "GiB", "MiB", "bytes", "cores", "processes", "images per second", "times", "fraction")
"""Units that a description may start with."""
LONGEST = 60
"""characters of an example"""


def example() -> Report:
    """A report in which every field has something to say; its first row is the student's."""
    row = make_row("student", 0.11, 0.8992, 300_000, precision="int8").model_copy(update={"peak_memory_mib": 9.5})
    report = make_report([make_row("teacher", 0.53, 0.9079, 44_700_000), row])
    report = report.with_baseline(compare_with_baseline(report.rows, report.rows)[1:])
    accuracies = ((0, 0.8992, 0.8861), (1, 0.9010, 0.8874))
    per_seed = [
        SeedGain(seed=seed, student_accuracy_top1=with_it, control_accuracy_top1=without, gain_top1=with_it - without)
        for seed, with_it, without in accuracies
    ]
    training = {
        "epochs": 10,
        "images_seen": 550_000,
        "seconds": 42.5,
        "train_img_s": 12_941.2,
        "unlabelled_images": 9000,
    }
    labels = np.array([0, 1, 1, 0])
    answers = [np.array([[2.0, 0.5], rest, rest, [1.0, 0.0]], np.float32) for rest in ([0, 1], [1, 0], [0.5, 0.9])]
    knowledge = measure_knowledge([SplitAnswers("test", labels, *answers)], per_seed)
    noisy = "other programs kept 0.5 of 2 cores busy when the benchmark began, so its times are too long"
    stale = "student.onnx was exported from other weights than student.safetensors has now"
    return report.model_copy(
        update={
            "rows": report.rows[::-1],
            "distillation": describe_distillation(per_seed, training).model_copy(update={"knowledge": knowledge}),
            "timing_warnings": (noisy,),
            "warnings": (stale,),
            "license": "MIT",
            "classes": (report.classes[0].model_copy(update={"control_recall": 0.88}), *report.classes[1:]),
        }
    )


def find_examples(part: BaseModel, found: dict[str, BaseModel]) -> dict[str, BaseModel]:
    """The first part of each model."""
    found.setdefault(type(part).__name__, part)
    for value in dict(part).values():
        for one in value[:1] if isinstance(value, tuple) else (value,):
            if isinstance(one, BaseModel):
                find_examples(one, found)
    return found


def field_tables() -> str:
    schema = Report.model_json_schema(by_alias=True)
    models = {"Report": schema, **schema["$defs"]}
    examples = find_examples(example(), {})
    lines: list[str] = []
    for model, title in TITLES.items():
        lines += [f"## {title}", "", models[model]["description"], ""]
        lines += ["| field | type | unit | what it is | example |", "|---|---|---|---|---|"]
        values = examples[model].model_dump(mode="json", by_alias=True)
        for name, field in models[model]["properties"].items():
            optional = "" if name in models[model].get("required", []) else ", optional"
            unit, separator, meaning = field["description"].partition("; ")
            texts = [unit, meaning] if separator and unit in UNITS else ["", field["description"]]
            shown = "see below" if "$ref" in json.dumps(field) else show(values[name])
            cells = [f"`{name}`", describe_type(field) + optional, *texts, shown]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def describe_type(field: dict[str, Any]) -> str:
    """`list of objects`, `number, or null`"""
    if "anyOf" in field:
        return ", or ".join(describe_type(choice) for choice in field["anyOf"])
    if field.get("type") == "array":
        return f"list of {describe_type(field['items'])}s"
    if "const" in field:
        return f"`{field['const']}`"
    kinds = {"number": "number", "integer": "whole number", "string": "text", "null": "null", "object": "object"}
    return kinds[field.get("type", "object")]


def show(value: Any) -> str:
    """As JSON, cut if it is long."""
    text = json.dumps(json.loads(json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.4g}")))
    return f"`{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}`"


def test_every_model_has_its_table() -> None:
    assert set(Report.model_json_schema()["$defs"]) | {"Report"} == set(TITLES) == set(find_examples(example(), {}))


def test_every_field_is_described_and_has_an_example() -> None:
    for part in find_examples(example(), {}).values():
        for name, field in type(part).model_fields.items():
            assert field.description, name
            assert getattr(part, name) is not None or name in {"gpu", "driver"}, name


def test_the_document_lists_every_field() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    start = text.index("-->", text.index("<!-- fields:")) + len("-->\n")
    end = text.index("<!-- end of fields -->")
    if os.environ.get("KD_TOOLKIT_WRITE_DOCS"):
        DOCUMENT.write_text(text[:start] + field_tables() + text[end:], encoding="utf-8")
    else:
        assert text[start:end] == field_tables(), "run this test again with KD_TOOLKIT_WRITE_DOCS=1"
