"""Imports that answer wrongly: the order of the outputs, the normalisation, chance; and when nothing is said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_class_folders, make_image
from distill_samples import load_splits
from torch import Tensor, nn

from toolkit import pipeline
from toolkit.distill import distributed, teacher
from toolkit.distill.doubts import (
    NORMALISATIONS,
    Order,
    find_normalisation,
    find_order,
    is_better,
    is_near_chance,
)
from toolkit.distill.job import WeightsFile
from toolkit.errors import WeightsError
from toolkit.modeldir import ModelDir
from toolkit.networks.onnx_file import ONE, ZERO
from toolkit.networks.registry import build, register
from toolkit.networks.weights import Channels, Imported
from toolkit.stage_setup import prepare_training

NUMBERS = tuple(sorted(map(str, range(11))))
"""As folders stand: 0, 1, 10, 2, ..."""


def answer(labels: np.ndarray, count: int, right: float, seed: int = 0) -> np.ndarray:
    """float32 logits (N, C) of a network that has so large a share of `labels` right, and errs evenly."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(labels), count)).astype(np.float32)
    known = random.random(len(labels)) < right
    logits[known, labels[known]] += 8
    return logits


def labels_of(count: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(count), each)


def in_order(logits: np.ndarray, classes: tuple[str, ...], order: tuple[str, ...]) -> np.ndarray:
    """The same network with its outputs in another order of the classes."""
    return logits[:, [classes.index(name) for name in order]]


class TestOrder:
    @pytest.mark.parametrize("each", [2, 4, 50])
    def test_numbers_in_order(self, each: int) -> None:
        labels = labels_of(11, each)
        logits = answer(labels, 11, right=0.7)
        order = tuple(map(str, range(11)))
        found = find_order(in_order(logits, NUMBERS, order), labels, NUMBERS)
        assert found is not None
        assert found.classes == order
        assert found.accuracy == (logits.argmax(1) == labels).mean()
        assert find_order(logits, labels, NUMBERS) is None

    @pytest.mark.parametrize(
        ("classes", "order"),
        [
            (("class1", "class10", "class2"), ("class1", "class2", "class10")),
            (("1 b", "2 a", "10 c"), ("1 b", "10 c", "2 a")),
            (("Zebra", "ant", "bee"), ("ant", "bee", "Zebra")),
            (("ant", "bee", "Zebra"), ("Zebra", "ant", "bee")),
            (("tea", "soup", "bread"), ("bread", "soup", "tea")),
        ],
    )
    def test_other_usual_orders(self, classes: tuple[str, ...], order: tuple[str, ...]) -> None:
        labels = labels_of(3, 10)
        found = find_order(in_order(answer(labels, 3, 0.9), classes, order), labels, classes)
        assert found is not None
        assert found.classes == order

    @pytest.mark.parametrize(("count", "each", "right"), [(3, 20, 0.9), (10, 8, 0.8), (40, 6, 0.9)])
    def test_any_order_is_found_where_images_are_enough(self, count: int, each: int, right: float) -> None:
        classes = tuple(f"class {number:03d}" for number in range(count))
        order = tuple(np.random.default_rng(3).permutation(classes).tolist())
        labels = labels_of(count, each)
        logits = answer(labels, count, right)
        found = find_order(in_order(logits, classes, order), labels, classes)
        assert found is not None
        assert found.classes == order
        assert abs(found.accuracy - (logits.argmax(1) == labels).mean()) < 0.1, "held out, not fitted"

    @pytest.mark.parametrize(("count", "each"), [(2, 3), (3, 4), (10, 1), (11, 4), (100, 2), (5, 200)])
    def test_none_is_found_in_noise(self, count: int, each: int) -> None:
        """Nor in a good teacher's answers. An order that is fitted to noise fits it well, and holds nowhere else."""
        classes, labels = tuple(map(str, range(count))), labels_of(count, each)
        for seed in range(20):
            for right in (0.0, 0.3, 0.9):
                assert find_order(answer(labels, count, right, seed), labels, classes) is None

    def test_two_classes_that_are_confused_now_and_then_are_no_other_order(self) -> None:
        labels = labels_of(4, 25)
        logits = answer(labels, 4, 1.0)
        logits[:12] = logits[25:37]
        assert find_order(logits, labels, ("a", "b", "c", "d")) is None

    def test_a_class_without_validation_images(self) -> None:
        labels = np.concatenate((labels_of(4, 20), np.full(20, 5)))
        classes = tuple("abcdef")
        order = ("d", "a", "c", "f", "b", "e")
        found = find_order(in_order(answer(labels, 6, 0.95), classes, order), labels, classes)
        assert found is not None
        assert found.classes == order


class TestChance:
    @pytest.mark.parametrize(
        ("hits", "counts", "chance"),
        [
            (4, [4, 4, 4], True),
            (12, [4, 4, 4], False),
            (7, [4, 4, 4], True),
            (90, [90, 10], True),
            (91, [90, 10], True),
            (100, [90, 10], False),
            (130, [100] * 10, False),
            (110, [100] * 10, True),
            (0, [3, 3], True),
            (5, [5, 0], True),
        ],
    )
    def test_against_the_commonest_class(self, hits: int, counts: list[int], chance: bool) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        assert is_near_chance(np.arange(len(labels)) < hits, labels) == chance

    def test_it_is_the_binomial_s_tail(self) -> None:
        """Of 20 tosses, 15 or more heads come with 0.0207, 16 or more with 0.0059."""
        labels = labels_of(2, 10)
        assert is_near_chance(np.arange(20) < 15, labels)
        assert not is_near_chance(np.arange(20) < 16, labels)


def test_a_guess_is_better_if_it_gains_much_and_surely() -> None:
    def better(gained: int, lost: int, same: int, guesses: int = 1, classes: int = 1000) -> bool:
        hits = np.array([False] * gained + [True] * lost + [False] * same)
        others = np.array([True] * gained + [False] * lost + [False] * same)
        return is_better(hits, others, np.arange(len(hits)) % classes, guesses)

    assert better(7, 0, 3)
    assert not better(6, 0, 3), "0.0156 by chance"
    assert not better(7, 0, 3, guesses=2)
    assert not better(20, 10, 0)
    assert better(200, 100, 500)
    assert not better(90, 0, 911), "a gain of less than a tenth"
    assert not better(8, 0, 4, classes=3), "an untrained network that is all wrong can be as lucky"
    assert better(10, 0, 2, classes=3)


class Thermometer(nn.Module):
    """Right where its input is in −1..1, the image's dominant channel being its class; else always the first class."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3)).flip(1)
        is_known = (images.amin((1, 2, 3)) < 0) & (images.amin((1, 2, 3)) >= -1.01) & (images.amax((1, 2, 3)) <= 1.01)
        return torch.where(is_known[:, None], means, torch.tensor([1.0, 0.0, 0.0]))


class TestNormalisation:
    def find(self, class_folders: Path, mean: Channels, std: Channels) -> Any:
        pixels = load_splits(class_folders)[0]
        network = Thermometer()

        def ask(images: Any, mean: Channels, std: Channels) -> Tensor:
            seen = torch.from_numpy(images.centre(np.arange(len(images)))).permute(0, 3, 1, 2) / 255
            return network((seen - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))

        return find_normalisation(ask, pixels, mean, std)

    def test_another_one_that_is_much_better_is_found(self, class_folders: Path) -> None:
        found = self.find(class_folders, *NORMALISATIONS[0])
        assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)
        assert (found.before, found.accuracy) == (pytest.approx(1 / 3), 1.0)

    def test_the_right_one_is_left_alone(self, class_folders: Path) -> None:
        assert self.find(class_folders, (0.5,) * 3, (0.5,) * 3) is None


class ByColour(nn.Module):
    """Blue, green, red in the order `order`, as far as the images are normalised to −1..1."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.order = nn.Linear(3, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.order(Thermometer()(images))
        return logits


class TestImport:
    """Of a network that answers by colour: the whole way of the stage."""

    @pytest.fixture(autouse=True)
    def _registered(self) -> None:
        register("by-colour")(ByColour)

    def make(self, tmp_path: Path, data: Path, order: list[int], *more: str) -> WeightsFile:
        torch.save({"order.weight": torch.eye(3)[order]}, tmp_path / "given.pth")
        settings = ["data.image_size=32", "data.resize=36", "teacher.architecture=by-colour", *more]
        settings.append(f'teacher.weights="{tmp_path / "given.pth"}"')
        if not any(setting.startswith("teacher.mean") for setting in settings):
            settings += ["teacher.mean=[0.5,0.5,0.5]", "teacher.std=[0.5,0.5,0.5]"]
        setup = prepare_training(None, str(data), tmp_path / "m", settings, device="cpu", force=True)
        return pipeline.make_teacher(setup)

    def test_what_is_right_is_not_remarked_on(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.make(tmp_path, class_folders, [0, 1, 2]).info.extra["valid_accuracy"] == 1
        assert "warning" not in capsys.readouterr().err
        assert not (tmp_path / "m" / "classes.txt").exists()

    def test_another_order_is_named_and_its_file_mends_it(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = make_class_folders(tmp_path / "data", (6, 6, 3))
        assert self.make(tmp_path, data, [2, 0, 1]).info.extra["valid_accuracy"] == 0
        warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
        written = tmp_path / "m" / "classes.txt"
        assert warning == (
            "warning: teacher: its outputs seem to stand in another order: red, blue, green; in that order it has"
            f" 1.0000 of the validation images right instead of 0.0000; import it again with --force --set"
            f" teacher.classes={written}"
        )
        again = self.make(tmp_path, data, [2, 0, 1], f"teacher.classes={written}")
        assert again.info.extra["valid_accuracy"] == 1
        assert "warning" not in capsys.readouterr().err

    def test_names_that_the_import_had_are_mended_too(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Of outputs that are more than the data's classes; those keep their names."""
        data = make_class_folders(tmp_path / "data", (6, 6, 3))
        (tmp_path / "names.txt").write_text("plaid\nblue\ngreen\nred\n")
        named = f"teacher.classes={tmp_path / 'names.txt'}"
        self.make(tmp_path, data, [2, 2, 0, 1], named)
        written = tmp_path / "m" / "classes.txt"
        assert f"--set teacher.classes={written}" in capsys.readouterr().err
        assert written.read_text() == "plaid\nred\nblue\ngreen\n"
        again = self.make(tmp_path, data, [2, 2, 0, 1], f"teacher.classes={written}")
        assert again.info.extra["valid_accuracy"] == 1

    def test_data_sets_without_class_folders_have_the_same_way(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Flat files have labels."""
        for split in ("train", "val", "test"):
            (tmp_path / "data" / split).mkdir(parents=True)
            for number in range(18):
                label = number % 3
                make_image(2 - label, number).save(tmp_path / "data" / split / f"{label}_{number}.png")
        self.make(tmp_path, tmp_path / "data", [2, 0, 1])
        assert "in another order: 2, 0, 1; " in capsys.readouterr().err
        again = self.make(tmp_path, tmp_path / "data", [2, 0, 1], f"teacher.classes={tmp_path / 'm' / 'classes.txt'}")
        assert again.info.extra["valid_accuracy"] == 1

    def test_another_normalisation_is_named_as_flags(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = make_class_folders(tmp_path / "data", (6, 6, 3))
        self.make(tmp_path, data, [0, 1, 2], "teacher.mean=[0.0,0.0,0.0]", "teacher.std=[1.0,1.0,1.0]")
        said = capsys.readouterr().err
        assert (
            "warning: teacher: with another normalisation it has 1.0000 of the validation images right instead of"
            " 0.3333; import it again with --force --set teacher.mean=[0.5,0.5,0.5] --set teacher.std=[0.5,0.5,0.5]\n"
        ) in said

    def test_chance_is_said(self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.make(tmp_path, class_folders, [0, 0, 0])
        said = capsys.readouterr().err
        assert "warning: teacher: an accuracy of 0.3333 is no better than chance: the commonest class" in said

    def test_answers_that_are_not_finite_are_refused(
        self, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of finite weights: they overflow on the way."""
        monkeypatch.setattr(Thermometer, "forward", lambda _, images: images.mean((2, 3)) + 1e38)
        monkeypatch.setattr(torch, "eye", lambda count: torch.full((count, count), 1e38))
        with pytest.raises(
            WeightsError, match=r"the teacher answers val/\S+ with values that are not finite; give other"
        ):
            self.make(tmp_path, class_folders, [0, 1, 2])
        assert not (tmp_path / "m" / "teacher.safetensors").exists()

    def test_only_the_main_process_writes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(distributed, "is_main", lambda: False)
        data = make_class_folders(tmp_path / "data", (6, 6, 3))
        self.make(tmp_path, data, [2, 0, 1])
        assert not (tmp_path / "m" / "classes.txt").exists()


def test_many_classes_are_not_all_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = SimpleNamespace(model_dir=ModelDir(tmp_path))
    network = build("depthwise", 100, base=4)
    order = Order(tuple(map(str, range(100))), 0.5)
    teacher._warn_of_order(order, 0.1, job, Imported(network, ZERO, ONE))  # type: ignore[arg-type]
    assert "in another order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …; in that order" in capsys.readouterr().err
