"""The model card, README.md of the model directory: it describes the model, from the report alone.

The front matter has the fields of https://github.com/huggingface/hub-docs/blob/main/modelcard.md, so that the
directory can be pushed to the Hugging Face hub as it is.
"""

import contextlib
import json
import shlex
from collections.abc import Sequence
from typing import Any

from toolkit import console
from toolkit.architectures import ONNX
from toolkit.bench.report.markdown import bullets, markdown_table, percent
from toolkit.bench.report.table import short_count
from toolkit.bench.report.verdict import find_shipped, name_gpu, name_model
from toolkit.bench.report.words import compared_with, describe_classes, describe_gain
from toolkit.bench.schema import Report, ReportRow
from toolkit.data.defaults import left_to_pictures
from toolkit.data.sources import NAMED
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe, builtin_names, load_builtin

HUB_DATASETS = {name: known.hub_id for name, known in NAMED.items() if known.hub_id}
"""Named set → its id on the hub; a set that is not there gets the type that the hub has for folders of images."""

HUB_LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m",
    "openrail++", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl",
    "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by",
    "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "unknown", "other",
}  # fmt: skip
"""Identifiers that the hub knows: https://huggingface.co/docs/hub/repositories-licenses; the hub refuses others."""

MOST_NAMES = 200
"""classes whose names are listed; the ONNX file has all of them"""

SNIPPET = '''\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
classes, steps = json.loads(metadata["classes"]), json.loads(metadata["preprocess"])


def prepare(path):
    """An image file as the network sees it: uint8 (side, side, 3)."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    shorter, side = steps["resize"]["shorter_side_px"], steps["centre_crop"]["side_px"]
    if shorter:
        size = [length * shorter // min(image.size) for length in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
    rooms = [length - side for length in image.size]  # below 0 if the image is smaller: the crop is black there
    left, top = (round(room / 2) if room >= 0 else -(-room // 2) for room in rooms)
    return np.asarray(image.crop((left, top, left + side, top + side)))


images = np.stack([prepare("picture.jpg")])  # any number of them; the graph normalises
probabilities = session.run(["probabilities"], {"image": images})[0]
for i in probabilities[0].argsort()[::-1][:5]:
    print(f"{probabilities[0][i]:.4f} {classes[i]}")
'''


MADE_BY = "<!-- This card was made by toolkit bench; delete this line to keep changes of your own. -->"
"""A card with this line is replaced by the next benchmark."""


def render_card(report: Report, license: str) -> str:
    """The card as text; `license` is the recipe's `export.license`, "" if none was given."""
    recipe, dataset = Recipe.model_validate(report.recipe), report.dataset
    sections = [
        _front_matter(report, recipe, license),
        MADE_BY,
        f"# {_model_name(report, recipe)}",
        f"{_count_classes(report)}: a {recipe.student.architecture} network with "
        f"{short_count(find_shipped(report.rows).params)} parameters, distilled from "
        f"{_name_teacher(report, recipe)} on {dataset.name} and exported to ONNX. {report.verdict}",
        "## Intended use",
        f"Classifying pictures like those of {dataset.name}, if a small and fast network is wanted. "
        "Every picture gets one of the classes below, even if it shows none of them. The model has not been tested for "
        "decisions about people, or on pictures from other sources.",
        f"Licence: {license}" if license else "No licence was given with the weights.",
        "## How to use it",
        "This code needs onnxruntime, numpy and Pillow, and nothing else. The file's metadata describes resizing and "
        "cropping; the graph normalises.",
        f"```python\n{SNIPPET}```",
        "With kd-toolkit: `toolkit predict student.onnx picture.jpg`.",
        "## Data",
        _describe_data(report, recipe),
        "## Training",
        *_describe_training(report, recipe),
        "## Evaluation",
        f"On {dataset.images:,} images of the {dataset.split} split, with the files themselves. Latency is that of one "
        "image, without decoding and resizing. ECE is the expected calibration error (15 bins).",
        _metrics_table(report.rows),
        "## Limits",
        _describe_limits(report),
        "## Environment",
        _describe_environment(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def reproduce(recipe: Recipe, seeds: Sequence[int] | None = None) -> str:
    """The `toolkit run` command line that trains with this recipe again, from the nearest recipe that ships.

    `seeds` are all trained seeds, as in the report; None or a single one stands for the recipe's own.
    """
    names = [name for name in builtin_names() if load_builtin(name).data.source == recipe.data.source]
    starts = [(["--recipe", name], load_builtin(name)) for name in names]
    lines = []
    for flags, base in starts or [(["--data", recipe.data.source], Recipe())]:
        changes = {name: recipe.value_of(name) for name in left_to_pictures(base)}  # they may have been stated
        changes |= {name: now for name, now, _ in _changed_settings(recipe, base) if name != "data.source"}
        overrides = [f"{name}={json.dumps(now, ensure_ascii=False)}" for name, now in changes.items()]
        line = ["toolkit", "run", *flags, *(part for override in overrides for part in ("--set", override))]
        with contextlib.suppress(RecipeError):  # what the recipe leaves open cannot be taken from a base that states it
            lines.append((base.with_overrides(overrides) != recipe, len(line), line))
    line = min(lines)[2]
    return shlex.join([*line, "--seeds", str(len(seeds))] if seeds and len(seeds) > 1 else line)


def _changed_settings(recipe: Recipe, base: Recipe) -> list[tuple[str, Any, Any]]:
    """`section.key`, its value in `recipe` and in `base`, if they differ; what `recipe` leaves open is left out."""
    ours, theirs = (one.model_dump(mode="json") for one in (recipe, base))
    return [
        (f"{section}.{key}", value, theirs[section].get(key))
        for section, table in ours.items()
        for key, value in table.items()
        if value != theirs[section].get(key) and value is not None
    ]


def _front_matter(report: Report, recipe: Recipe, license: str) -> str:
    row, dataset = find_shipped(report.rows), report.dataset
    hub_id = HUB_DATASETS.get(recipe.data.source)
    metrics = [
        {"type": "accuracy", "value": row.accuracy_top1, "name": "Top-1 accuracy"},
        {"type": "accuracy", "value": row.accuracy_top5, "name": "Top-5 accuracy", "args": {"top_k": 5}},
        {"type": "f1", "value": row.macro_f1, "name": "Macro F1", "args": {"average": "macro"}},
    ]
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": hub_id or "imagefolder", "name": dataset.name, "split": dataset.split},
        "metrics": metrics,
    }
    fields = {
        **_license_fields(license),
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "onnx", "kd-toolkit"],
        **({"datasets": [hub_id]} if hub_id else {}),
        "metrics": ["accuracy", "f1"],
        "model-index": [{"name": _model_name(report, recipe), "results": [result]}],
    }
    return "\n".join(["---", *_yaml(fields), "---"])


def _license_fields(license: str) -> dict[str, str]:
    """As the hub wants it: one of its identifiers, else `other` with a name and the file that holds the text."""
    identifier = license.strip().lower() or "unknown"
    if identifier in HUB_LICENSES:
        return {"license": identifier}
    name = "".join(letter if letter.isalnum() or letter in ".-+" else "-" for letter in identifier)
    return {"license": "other", "license_name": name, "license_link": "LICENSE"}


def _yaml(value: dict[str, Any]) -> list[str]:
    """A mapping as lines of block YAML; strings are always quoted, so that none reads as something else."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{key}:", *(f"  {line}" for line in _yaml(item))]
        elif isinstance(item, list):
            lines.append(f"{key}:")
            for one in item:
                first, *others = _yaml(one) if isinstance(one, dict) else [_scalar(one)]
                lines += [f"- {first}", *(f"  {line}" for line in others)]
        else:
            lines.append(f"{key}: {_scalar(item)}")
    return lines


def _scalar(value: str | float) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    plain = (letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}" for letter in value)
    return f'"{"".join(plain)}"'


def _model_name(report: Report, recipe: Recipe) -> str:
    return f"{report.dataset.name}-{recipe.student.architecture}"


def _name_teacher(report: Report, recipe: Recipe) -> str:
    section = recipe.teacher
    if report.no_teacher:
        return "a teacher that was not measured"
    if several := len(section.members):
        return f"{several} teachers"
    if section.folds:
        return f"{section.folds} {section.architecture} teachers, each trained without one part of the images,"
    return "a teacher in an ONNX file" if section.architecture == ONNX else f"a {section.architecture} teacher"


def _count_classes(report: Report) -> str:
    return f"An image classifier of {len(report.classes)} classes" if report.classes else "An image classifier"


def _describe_data(report: Report, recipe: Recipe) -> str:
    dataset, classes = report.dataset, report.classes
    hub_id = HUB_DATASETS.get(recipe.data.source)
    known = f" ([{hub_id}](https://huggingface.co/datasets/{hub_id}))" if hub_id else ""
    names = ", ".join(one.name for one in classes[:MOST_NAMES])
    more = f" and {len(classes) - MOST_NAMES} more" if len(classes) > MOST_NAMES else ""
    resized = f"the shorter side resized to {recipe.data.resize} px, then " if recipe.data.resize else ""
    return bullets(
        {
            "data set": f"{dataset.name}{known}, SHA-256 {dataset.sha256}",
            "classes": names + more,
            "input": f"RGB, {resized}the centre {recipe.data.image_size} × {recipe.data.image_size} px",
        }
    )


def _describe_training(report: Report, recipe: Recipe) -> list[str]:
    distillation = report.distillation
    spent = f" in {console.duration(distillation.seconds)}" if distillation.seconds else ""
    changed = [[name, json.dumps(now), json.dumps(usual)] for name, now, usual in _changed_settings(recipe, Recipe())]
    return [
        f"Trained with kd-toolkit {report.toolkit_version}: {console.count(recipe.distill.epochs, 'epoch')} of "
        f"distillation{spent} (method {recipe.distill.method}). This command trains it again:",
        f"```\n{reproduce(recipe, distillation.seeds)}\n```",
        describe_gain(distillation),
        "Settings that differ from the defaults:" if changed else "All settings are the defaults.",
        markdown_table(["setting", "here", "default"], changed, left=(0, 1, 2)) if changed else "",
    ]


def _metrics_table(rows: Sequence[ReportRow]) -> str:
    headings = ["model", "runtime", "provider", "top-1", "top-5", "macro-F1", "ECE", "agreement with the teacher"]
    headings += ["file", "p50 ms", "p95 ms"]
    cells = [
        [
            name_model(row), row.runtime, row.provider,
            *(percent(figure) for figure in (row.accuracy_top1, row.accuracy_top5, row.macro_f1)),
            f"{row.ece:.4f}", percent(row.teacher_agreement), console.size(row.size_bytes),
            *(f"{figure:.3f}" for figure in (row.latency_ms.p50, row.latency_ms.p95)),
        ]
        for row in sorted(rows, key=lambda row: row.model != "student")
    ]  # fmt: skip
    return markdown_table(headings, cells, left=(0, 1, 2))


def _describe_limits(report: Report) -> str:
    row, classes = find_shipped(report.rows), report.classes
    weakest = min((one for one in classes if one.images), key=lambda one: one.student_recall or 0.0, default=None)
    limits = [
        "A picture of something else still gets one of the classes, often with high confidence.",
        f"Its confidence differs from its accuracy by {100 * row.ece:.1f} points on average (ECE {row.ece:.4f}): "
        "choose thresholds on images of your own.",
        *([f"Against the {compared_with(classes)}: {text}"] if classes and (text := describe_classes(classes)) else []),
        *report.warnings,
    ]
    if weakest:
        seen = f"{percent(weakest.student_recall)} of {weakest.images:,} images"
        limits.append(f"The class it recognises least often is {weakest.name}: {seen}.")
    return "\n".join(f"- {limit}" for limit in limits)


def _describe_environment(report: Report) -> str:
    hardware = report.hardware
    gpu = f", {name_gpu(hardware)} (driver {hardware.driver})" if hardware.gpu else ""
    return bullets(
        {
            "measured on": f"{hardware.cpu}, {console.count(hardware.cores, 'core')}, "
            f"{hardware.memory_gib} GiB memory{gpu}",
            "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
            "created": f"{report.created} by kd-toolkit {report.toolkit_version}",
        }
    )
