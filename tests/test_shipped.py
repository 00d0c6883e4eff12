"""Files that ship beside the code: found in a checkout and in a package; the given teacher is as its card says."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch

from toolkit import shipped
from toolkit.data.named import FASHION_MNIST_CLASSES
from toolkit.data.pixels import load_pixels
from toolkit.data.sources import load_dataset
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.provenance import SPLIT_SETTINGS
from toolkit.files import sha256_file
from toolkit.networks.weights import load_model, read_info
from toolkit.recipe import Recipe, load_builtin

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ROOT / "models" / "fashion-mnist" / "teacher-resnet18.safetensors"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_in_a_checkout_they_lie_in_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "toolkit")
    recipe = touch(tmp_path / "models" / "a" / "recipe.toml")
    weights = touch(tmp_path / "models" / "a" / "teacher-resnet18.safetensors")
    touch(tmp_path / "models" / "b" / "teacher.safetensors")  # written by a stage
    assert shipped.recipe_files() == {"a": recipe}
    assert shipped.weights_files() == {"a": weights}


def test_in_a_package_they_lie_beside_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "toolkit")
    touch(tmp_path / "models" / "somebodys" / "recipe.toml")
    recipe = touch(tmp_path / "toolkit" / "recipes" / "a.toml")
    weights = touch(tmp_path / "toolkit" / "weights" / "a.safetensors")
    touch(tmp_path / "toolkit" / "weights" / "a.md")
    assert shipped.recipe_files() == {"a": recipe}
    assert shipped.weights_files() == {"a": weights}


def test_all_of_it_is_in_the_wheel_where_it_is_looked_for() -> None:
    expected = {f"models/{name}/recipe.toml": f"toolkit/recipes/{name}.toml" for name in shipped.recipe_files()}
    for name, path in shipped.weights_files().items():
        for suffix in (".safetensors", ".md"):
            file = path.with_suffix(suffix).relative_to(ROOT).as_posix()
            expected[file] = f"toolkit/weights/{name}{suffix}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == expected


def test_git_keeps_what_ships_and_not_what_stages_write() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of git's")

    def is_ignored(name: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", f"models/x/{name}"], cwd=ROOT, check=False).returncode == 0

    kept = ("recipe.toml", "teacher-resnet18.safetensors", "teacher-resnet18.md", "teacher-resnet18.toml")
    written = ("teacher.safetensors", "student.safetensors", "teacher.onnx", "README.md", "report.md", "metrics.jsonl")
    assert [is_ignored(name) for name in kept] == [False] * len(kept)
    assert [is_ignored(name) for name in written] == [True] * len(written)


class TestTheTeacherOfFashionMnist:
    def test_its_card_has_its_hash(self) -> None:
        card = TEACHER.with_suffix(".md").read_text(encoding="utf-8")
        assert re.findall(r"\| SHA-256 \| `([0-9a-f]{64})` \|", card) == [sha256_file(TEACHER)]

    def test_it_is_in_half_precision_and_held_out_what_the_default_recipe_does(self) -> None:
        info, recipe = read_info(TEACHER), load_builtin("fashion-mnist")
        assert TEACHER.stat().st_size < 23e6
        assert (info.role, info.architecture, info.classes) == ("teacher", "resnet18", FASHION_MNIST_CLASSES)
        assert (info.preprocess.image_size, info.preprocess.resize) == (recipe.data.image_size, recipe.data.resize)
        assert [info.recipe["data"][key] for key in SPLIT_SETTINGS] == [
            getattr(recipe.data, key) for key in SPLIT_SETTINGS
        ]
        assert recipe.teacher.weights == "fashion-mnist"
        assert shipped.weights_files()["fashion-mnist"] == TEACHER

    @pytest.mark.usefixtures("fashion_mnist")
    def test_it_answers_as_its_card_says(self) -> None:
        """On the first test images; two of a thousand may differ if another CPU rounds in another way."""
        card = TEACHER.with_suffix(".md").read_text(encoding="utf-8")
        counts = re.search(r"Of the first ([\d,]+) test images, ([\d,]+) get the right answer", card)
        assert counts is not None
        count, right = (int(number.replace(",", "")) for number in counts.groups())
        classifier, info = load_model(TEACHER)
        dataset = load_dataset(Recipe.from_dict(info.recipe, str(TEACHER)).data)
        assert dataset.sha256 == info.dataset_sha256
        pixels = load_pixels(dataset, "test", info.preprocess)
        part = type(pixels)(**vars(pixels) | {"names": pixels.names[:count], "labels": pixels.labels[:count]})
        answers = compute_logits(classifier, part, "fp32", "cpu").argmax(1)
        assert int((answers == torch.from_numpy(part.labels)).sum()) == pytest.approx(right, abs=2)
        assert right / count > 0.93
