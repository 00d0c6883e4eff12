"""The model card: front matter as the hub reads it, a snippet that works, a command that gives the same recipe."""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from report_samples import first_report, make_report, make_row
from tiny_onnx import save_colour_model

from toolkit.bench.report.card import HUB_LICENSES, SNIPPET, render_card, reproduce
from toolkit.bench.schema import Report
from toolkit.data.defaults import left_to_pictures
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import NAMED
from toolkit.recipe import Recipe, builtin_names, load_builtin


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    fields = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(fields, dict)
    return fields


# ---- front matter ----------------------------------------------------------------------------------------------------


def test_the_hub_reads_the_card() -> None:
    report = make_report()
    card = ModelCard(render_card(report, "MIT"))
    assert isinstance(card.data, ModelCardData)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "onnx", "image-classification")
    assert data.datasets == ["zalando-datasets/fashion_mnist"]
    assert data.metrics == ["accuracy", "f1"]
    assert data.tags is not None
    assert "onnx" in data.tags
    assert data.model_name == "fashion-mnist-depthwise"
    common = {
        "task_type": "image-classification",
        "task_name": "Image classification",
        "dataset_type": "zalando-datasets/fashion_mnist",
        "dataset_name": "fashion-mnist",
        "dataset_split": "test",
    }
    student = report.rows[3]
    assert data.eval_results == [
        EvalResult(**common, metric_type="accuracy", metric_value=student.accuracy_top1, metric_name="Top-1 accuracy"),
        EvalResult(
            **common,
            metric_type="accuracy",
            metric_value=student.accuracy_top5,
            metric_name="Top-5 accuracy",
            metric_args={"top_k": 5},
        ),
        EvalResult(
            **common,
            metric_type="f1",
            metric_value=student.macro_f1,
            metric_name="Macro F1",
            metric_args={"average": "macro"},
        ),
    ]


def test_yaml_and_the_hubs_own_writer_agree() -> None:
    fields = front_matter(render_card(make_report(), "apache-2.0"))
    again = yaml.safe_load(ModelCardData(**fields).to_yaml())
    assert again == fields


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("MIT", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("", {"license": "unknown"}),
        (
            "Acme Research 1.0",
            {"license": "other", "license_name": "acme-research-1.0", "license_link": "LICENSE"},
        ),
    ],
)
def test_licences_are_named_as_the_hub_wants_them(given: str, fields: dict[str, str]) -> None:
    card = render_card(make_report(), given)
    found = front_matter(card)
    assert {key: found[key] for key in found if key.startswith("license")} == fields
    assert found["license"] in HUB_LICENSES
    assert (f"Licence: {given}" if given else "No licence was given with the weights.") in card


NAMES = ['a "quoted" name', "back\\slash", "yes", "1.0", "a: b # c", "été 寿司 🍕", "tab\there", "- x"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_survives_yaml(name: str) -> None:
    report = make_report(recipe=Recipe().with_overrides(["data.source=photos"]), name=name)
    fields = front_matter(render_card(report, "mit"))
    result = fields["model-index"][0]["results"][0]
    assert result["dataset"] == {"type": "imagefolder", "name": name, "split": "test"}
    assert "datasets" not in fields


def test_a_class_of_images_that_nobody_published_has_no_id() -> None:
    for name in NAMED:
        fields = front_matter(render_card(make_report(recipe=Recipe().with_overrides([f"data.source={name}"])), "mit"))
        assert ("datasets" in fields) == (name != "food-11")


# ---- the snippet -----------------------------------------------------------------------------------------------------

PICTURES = {
    "wide.png": Image.effect_noise((101, 47), 90).convert("RGB"),
    "tall.png": Image.effect_noise((41, 98), 90).convert("RGB"),
    "small.png": Image.effect_noise((17, 23), 90).convert("RGB"),
    "grey.png": Image.effect_noise((60, 61), 90),
    "palette.png": Image.effect_noise((50, 40), 90).convert("RGB").quantize(16),
    "alpha.png": Image.merge("RGBA", [Image.effect_noise((50, 45), 90)] * 4),
}


def run_snippet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables that the card's Python leaves behind when it is run in `folder`."""
    (code,) = re.findall(r"```python\n(.*?)```", render_card(make_report(), "mit"), re.DOTALL)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(("image_size", "resize"), [(32, 36), (32, 0), (33, 33)])
def test_the_snippet_prepares_images_as_the_toolkit_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int, resize: int
) -> None:
    save_colour_model(tmp_path / "student.onnx", image_size=image_size, resize=resize)
    for name, picture in PICTURES.items():
        picture.save(tmp_path / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.effect_noise((60, 48), 90).convert("RGB").save(tmp_path / "picture.jpg", exif=turned)
    names = run_snippet(tmp_path, monkeypatch)
    preprocess = Preprocess(image_size, resize, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for path in tmp_path.glob("*.[pj][np]g"):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(names["prepare"](path), preprocess(picture), err_msg=path.name)


def test_the_snippet_prints_the_likeliest_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_colour_model(tmp_path / "student.onnx")
    Image.new("RGB", (60, 50), (0, 255, 0)).save(tmp_path / "picture.jpg", quality=100, subsampling=0)
    run_snippet(tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] in {"0.9999 green", "1.0000 green"}


# ---- training --------------------------------------------------------------------------------------------------------


def read_command(line: str) -> Recipe:
    """The recipe that a `toolkit run` command line gives, by the flags' documented meaning."""
    words = shlex.split(line)
    assert words[:2] == ["toolkit", "run"]
    overrides = [value for flag, value in zip(words[2::2], words[3::2], strict=True) if flag == "--set"]
    if words[2] == "--recipe":
        return load_builtin(words[3]).with_overrides(overrides)
    assert words[2] == "--data"
    return Recipe().with_overrides([f"data.source={json.dumps(words[3])}", *overrides])


@pytest.mark.parametrize("name", builtin_names())
def test_a_recipe_that_ships_is_named(name: str) -> None:
    assert reproduce(load_builtin(name)) == f"toolkit run --recipe {name}"


@pytest.mark.parametrize(
    "recipe",
    [
        load_builtin("fashion-mnist").with_overrides(["distill.temperature=8", "distill.method=kd+attention"]),
        load_builtin("food11-fast").with_overrides(["student.base=32", "data.mean=[0.1, 0.2, 0.3]"]),
        Recipe().with_overrides(['data.source="my photos/寿司"', "distill.learning_rate=1e-5", "data.flip=false"]),
        Recipe().with_overrides(["data.source=cifar10", 'distill.teacher_taps=["a"]', 'distill.student_taps=["b"]']),
    ],
)
def test_the_command_gives_the_same_recipe(recipe: Recipe) -> None:
    line = reproduce(recipe)
    assert read_command(line) == recipe
    assert line in render_card(make_report(recipe=recipe), "mit")


def test_the_command_states_what_would_follow_the_pictures() -> None:
    """160 px was stated for pictures of 32 px, and is the constant for photographs."""
    recipe = Recipe().with_overrides(["data.source=tiny", "data.image_size=160", "data.resize=176"])
    assert left_to_pictures(read_command(reproduce(recipe))) == []
    assert read_command(reproduce(recipe)) == recipe


def test_several_seeds_are_asked_for_again() -> None:
    recipe = load_builtin("fashion-mnist")
    assert reproduce(recipe, [0, 1, 2]) == "toolkit run --recipe fashion-mnist --seeds 3"
    assert reproduce(recipe, [0]) == reproduce(recipe, None) == "toolkit run --recipe fashion-mnist"


def test_settings_that_differ_from_the_defaults_are_listed() -> None:
    card = render_card(make_report(recipe=Recipe().with_overrides(["distill.temperature=8.5"])), "mit")
    settings = [line for line in card.splitlines() if line.startswith("| distill.") or line.startswith("| data.")]
    assert settings == ["| distill.temperature | 8.5 | 4.0 |"]
    assert "All settings are the defaults." in render_card(make_report(recipe=Recipe()), "mit")


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_the_card_has_all_that_a_reader_needs() -> None:
    warnings = ("student.onnx and student.safetensors should agree and do not",)
    report = make_report(classes=["shirt", "coat", "bag|pouch"]).model_copy(update={"warnings": warnings})
    card = render_card(report, "mit")
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "Intended use", "How to use it", "Data", "Training", "Evaluation", "Limits", "Environment",
    ]  # fmt: skip
    for expected in (
        "An image classifier of 3 classes: a depthwise network with 258 k parameters, distilled from a resnet18",
        report.verdict,
        "- classes: shirt, coat, bag|pouch",
        "- input: RGB, the shorter side resized to 32 px, then the centre 32 × 32 px",
        "10 epochs of distillation in 42.0 s (method kd)",
        "- Against the teacher: Classes that lose most: bag|pouch -0.2 points (recall 90.0 -> 89.8 %), coat -0.1 ",
        "differs from its accuracy by 3.1 points on average (ECE 0.0312)",
        "The class it recognises least often is bag|pouch: 89.80 % of 1,000 images.",
        "- student.onnx and student.safetensors should agree and do not",
        "- measured on: AMD EPYC, 2 cores, 7.8 GiB memory\n",
        "python 3.11.9, torch 2.15.0",
        "abababab",
    ):
        assert expected in card
    table = [line for line in card.splitlines() if line.startswith("| student |") or line.startswith("| teacher |")]
    assert [line.split()[1] for line in table] == ["student", "student", "teacher", "teacher"]
    assert "| 90.31 % | 99.50 % | 89.31 % | 0.0312 | 95.00 % | 1.0 MB | 0.150 | 0.180 |" in table[1]


def test_a_report_of_before_there_were_classes_and_one_without_onnx() -> None:
    report = make_report([make_row("teacher", 2, 0.9, 40, "torch"), make_row("student", 1, 0.85, 40, "torch")])
    report = Report.model_validate(first_report(report))
    card = render_card(report, "")
    assert "\nAn image classifier: a depthwise network" in card
    assert "- classes" not in card
    assert front_matter(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.85


def test_many_classes_are_not_all_listed() -> None:
    card = render_card(make_report(classes=[f"c{i}" for i in range(250)]), "mit")
    assert "c199 and 50 more" in card
    assert "c200" not in card.split("## Training")[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": ["a.onnx", "b.safetensors"]}, "distilled from 2 teachers on"),
        ({"folds": 5}, "distilled from 5 resnet18 teachers, each trained without one part of the images, on"),
        ({"weights": "a.onnx"}, "distilled from a teacher in an ONNX file on"),
    ],
)
def test_teachers_of_all_kinds_are_named(settings: dict[str, object], words: str) -> None:
    recipe = Recipe().with_overrides({f"teacher.{key}": value for key, value in settings.items()})
    assert words in render_card(make_report(recipe=recipe), "")


def test_the_snippet_imports_what_it_uses() -> None:
    tree = ast.parse(SNIPPET)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {name.asname or name.name for node in imports for name in node.names}
    assert imported == imported & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
