"""scripts/ship_teacher.py: the file that ships, the card beside it, and weights that do not ship."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from toolkit import pipeline
from toolkit.data.pixels import load_pixels
from toolkit.data.sources import load_dataset
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.provenance import SHIPPED_ACCURACY
from toolkit.errors import GateError, RecipeError, WeightsError
from toolkit.files import sha256_file
from toolkit.networks.weights import load_model, read_info
from toolkit.recipe import Recipe
from toolkit.stage_setup import prepare_training

RECIPE = """\
[data]
source = "{source}"
image_size = 32
resize = 36
[teacher]
architecture = "depthwise"
epochs = 3
batch_size = 12
[student]
base = 4
[distill]
precision = "fp32"
epochs = 1
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_teacher", Path(__file__).parents[1] / "scripts/ship_teacher.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ship_teacher"] = module  # dataclasses looks for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipe.toml and what `toolkit teacher --recipe recipe.toml --set training.seed=3` writes beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE.format(source=class_folders))
    recipe = str(folder / "recipe.toml")
    pipeline.make_teacher(prepare_training(recipe, None, folder, ["training.seed=3"], device="cpu"))
    return folder


def words(trained: Path, out: Path, *more: str) -> list[str]:
    return [
        *(str(trained), "--recipe", str(trained / "recipe.toml"), "--set", "training.seed=3", "--out", str(out)),
        *("--hardware", "a small machine", "--data-licence", "none needed", "--device", "cpu", *more),
    ]


def ship(script: ModuleType, *arguments: str) -> Path:
    path: Path = script.ship(script.parse_arguments(list(arguments)))
    return path


def test_the_card_says_what_the_file_is(script: ModuleType, trained: Path, tmp_path: Path) -> None:
    path = ship(script, *words(trained, tmp_path / "colours"))
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert sorted(file.name for file in path.parent.iterdir()) == [
        *("teacher-depthwise.md", "teacher-depthwise.safetensors"),
    ]
    assert path.stat().st_size < 0.7 * (trained / "teacher.safetensors").stat().st_size
    before, info = read_info(trained / "teacher.safetensors"), read_info(path)
    sha, accuracy = sha256_file(trained / "teacher.safetensors"), info.extra[SHIPPED_ACCURACY]
    assert info.extra == before.extra | {"float32_sha256": sha, SHIPPED_ACCURACY: accuracy}
    assert f"| SHA-256 | `{sha256_file(path)}` |" in card
    assert f"toolkit teacher --recipe {trained / 'recipe.toml'} --set training.seed=3" in card
    assert 'teacher.weights = "colours"' in card
    assert "| a small machine; arithmetic: fp32 |" in card
    assert "none needed" in card
    for setting in ("data.image_size = 32", "teacher.epochs = 3", "teacher.batch_size = 12", "training.seed = 3"):
        assert f"- `{setting}`" in card
    assert "teacher.optimizer" not in card, "a default"
    assert len(re.findall(r"^\| \*{0,2}\d+\*{0,2} \| \*{0,2}32", card, re.MULTILINE)) == 3, "every epoch"
    assert card.count("| **32** |") == 1, "the one that is kept"


def test_its_accuracies_are_those_of_the_file_that_ships(script: ModuleType, trained: Path, tmp_path: Path) -> None:
    path = ship(script, *words(trained, tmp_path))
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    classifier, info = load_model(path)
    dataset = load_dataset(Recipe.from_dict(info.recipe, "it").data)
    for split, name in (("valid", "validation"), ("test", "test")):
        pixels = load_pixels(dataset, split, info.preprocess)  # type: ignore[arg-type]
        right = (compute_logits(classifier, pixels, "fp32", "cpu").argmax(1) == torch.from_numpy(pixels.labels)).sum()
        row = re.search(rf"^\| {name} \| 12 \| ([\d.]+) % \| ([\d.]+) % \|", card, re.MULTILINE)
        assert row is not None
        assert float(row[2]) == pytest.approx(100 * int(right) / 12, abs=0.01)
        if split == "valid":
            assert info.extra[SHIPPED_ACCURACY] == pytest.approx(int(right) / 12), "what an import takes for known"
    assert f"Of the first 12 test images, {int(right)} get the right answer." in card


def test_it_is_written_once_to_be_measured_and_once_to_ship(
    script: ModuleType, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    save = script.save_model

    def noting(path: Path, *arguments: Any, **options: Any) -> None:
        written.append(path)
        save(path, *arguments, **options)

    monkeypatch.setattr(script, "save_model", noting)
    shipped = ship(script, *words(trained, tmp_path))
    measured, last = written
    assert last == shipped
    assert not measured.exists()


def test_a_recipe_that_did_not_make_it_is_refused(script: ModuleType, trained: Path, tmp_path: Path) -> None:
    expected = (
        r"other settings than .*recipe\.toml: training.seed = 3 and not 4; teacher.epochs = 3 and not 9; give the"
    )
    with pytest.raises(RecipeError, match=expected):
        ship(script, *words(trained, tmp_path, "--set", "training.seed=4", "--set", "teacher.epochs=9"))
    assert list(tmp_path.iterdir()) == []


def test_a_difference_that_counts_is_refused(
    script: ModuleType, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.Answers, "accuracy", lambda answers, logits: 0.9 + (logits is answers.trained) * 0.002)
    with pytest.raises(GateError, match=r"changes the accuracy on the test images by -0\.20 points, more than 0\.1; "):
        ship(script, *words(trained, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_a_licence_that_is_not_known_has_to_be_said(script: ModuleType, trained: Path, tmp_path: Path) -> None:
    given = words(trained, tmp_path)
    place = given.index("--data-licence")
    with pytest.raises(RecipeError, match=r"the licence of .* is not known here; state it with --data-licence"):
        ship(script, *given[:place], *given[place + 2 :])


def test_other_data_and_a_teacher_without_epochs_are_refused(
    script: ModuleType,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "teacher.safetensors").write_bytes((trained / "teacher.safetensors").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"stage": "distill"}\n')
    (tmp_path / "recipe.toml").write_bytes((trained / "recipe.toml").read_bytes())
    with pytest.raises(WeightsError, match="has no epoch of a teacher; ship a teacher that toolkit teacher trained"):
        ship(script, *words(tmp_path, tmp_path))
    (tmp_path / "metrics.jsonl").write_bytes((trained / "metrics.jsonl").read_bytes())
    real = load_dataset
    monkeypatch.setattr(script, "load_dataset", lambda data: _renamed(real(data)))
    monkeypatch.setattr(sys, "argv", ["ship_teacher.py", *words(tmp_path, tmp_path)])
    assert script.main() == 1
    printed = capsys.readouterr().err
    assert re.search(r"error: .*teacher\.safetensors was trained on another \S+; put back the data", printed)


def _renamed(dataset: object) -> object:
    from dataclasses import replace

    return replace(dataset, sha256="0" * 64)  # type: ignore[type-var]
