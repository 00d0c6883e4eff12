"""The gain over the control: worked out by hand, over seeds, and only from pairs that belong together."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_samples import make_dataset
from report_samples import make_row
from torch import nn

from toolkit.bench.measure import gain
from toolkit.bench.measure.gain import describe_distillation, measure_gain
from toolkit.bench.measure.images import BenchImages
from toolkit.bench.report.words import describe_gain
from toolkit.bench.schema import Distillation
from toolkit.data.dataset import Images
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.modeldir import ModelDir, Role
from toolkit.networks.registry import NetworkSpec, build
from toolkit.networks.weights import ModelInfo, read_info, save_model
from toolkit.recipe import Recipe
from toolkit.runtimes.pytorch import TorchPredictor

CLASSES = ("red", "green", "blue")
RECIPE = Recipe().with_overrides(["data.image_size=32", "data.resize=0", "distill.temperature=2"])
PREPROCESS = Preprocess.from_recipe(RECIPE.data)


def save(directory: ModelDir, role: Role, seed: int, recipe: Recipe = RECIPE) -> None:
    recipe = recipe.with_overrides([f"training.seed={seed}"])
    sha = recipe.control_fingerprint() if role == "control" else recipe.fingerprint("data", "student", "distill")
    info = ModelInfo(
        role=role,
        network=NetworkSpec("depthwise", {"base": 2}),
        classes=CLASSES,
        preprocess=PREPROCESS,
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=sha,
        dataset_sha256="d",
        teacher_sha256="t" if role == "student" else None,
        toolkit_version="0.1.0",
        extra={"epochs": 7},
    )
    network = build("depthwise", len(CLASSES), base=2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    save_model(directory.weights(role), network, info)


@pytest.fixture
def pixels() -> Pixels:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(40) % 3
    sizes = np.full(40, 32)
    starts = np.arange(40) * 32 * 32 * 3
    names = Images.from_array("test", noise, labels).names
    return Pixels(names, labels, sizes, sizes, noise.reshape(-1), starts, PREPROCESS)


def accuracy(path: Path, pixels: Pixels) -> float:
    """Accuracy by the network alone, one image after the other."""
    hits = []
    for i in range(len(pixels)):
        logits = TorchPredictor(path).logits(pixels.centre(np.array([i])))
        hits.append(int(logits.argmax()) == pixels.labels[i])
    return float(np.mean(hits))


def measure(model_dir: ModelDir, pixels: Pixels) -> Distillation:
    roles: tuple[Role, ...] = ("student", "control")
    paths = {role: model_dir.weights(role) for role in roles if model_dir.weights(role).is_file()}
    measured = [make_row(role, 1.0, accuracy(path, pixels), 1000, "torch") for role, path in paths.items()]
    images = BenchImages.choose(make_dataset(), pixels, 0)
    training = read_info(model_dir.weights("student")).extra
    return describe_distillation(measure_gain(model_dir, 0, measured, images, "cpu"), training)


def test_mean_and_deviation_over_seeds_are_those_of_the_gains(tmp_path: Path, pixels: Pixels) -> None:
    model_dir = ModelDir(tmp_path)
    for seed in range(3):
        directory = model_dir if seed == 0 else model_dir.of_seed(seed)
        save(directory, "student", seed)
        save(directory, "control", seed)
    found = measure(model_dir, pixels)
    directories = [model_dir, model_dir.of_seed(1), model_dir.of_seed(2)]
    gains = [accuracy(one.weights("student"), pixels) - accuracy(one.weights("control"), pixels) for one in directories]
    assert found.seeds == (0, 1, 2)
    assert [one.gain_top1 for one in found.per_seed] == pytest.approx(gains)
    assert found.mean == pytest.approx(np.mean(gains))
    assert found.std == pytest.approx(np.std(gains, ddof=1))
    assert found.epochs == 7
    sentence = describe_gain(found)
    assert f"{100 * statistics.fmean(gains):+.2f} ± {100 * np.std(gains, ddof=1):.2f} points" in sentence
    assert "over 3 seeds" in sentence


def test_seeds_of_other_settings_are_left_out_and_named(
    tmp_path: Path, pixels: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = ModelDir(tmp_path)
    for role in ("student", "control"):
        save(model_dir, role, 0)  # type: ignore[arg-type]
        save(model_dir.of_seed(1), role, 1, RECIPE.with_overrides(["distill.epochs=3"]))  # type: ignore[arg-type]
    save(model_dir.of_seed(2), "student", 2)  # still without its control
    assert measure(model_dir, pixels).seeds == (0,)
    assert "seeds/1 was trained with other settings than the student and is left out" in capsys.readouterr().err


def test_the_first_seeds_rows_are_not_asked_again(
    tmp_path: Path, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their accuracies are known from the rows, whatever they are."""
    model_dir = ModelDir(tmp_path)
    for seed, directory in ((0, model_dir), (1, model_dir.of_seed(1))):
        save(directory, "student", seed)
        save(directory, "control", seed)
    opened: list[Path] = []

    class Remembering(TorchPredictor):
        def __init__(self, path: Path, *settings: Any) -> None:
            opened.append(path)
            super().__init__(path, *settings)

    monkeypatch.setattr(gain, "TorchPredictor", Remembering)
    found = measure(model_dir, pixels)
    assert found.seeds == (0, 1)
    assert opened == [model_dir.of_seed(1).weights("student"), model_dir.of_seed(1).weights("control")]


def test_without_a_control_the_command_that_makes_one_is_named(tmp_path: Path, pixels: Pixels) -> None:
    save(ModelDir(tmp_path), "student", 0)
    found = measure(ModelDir(tmp_path), pixels)
    assert found.gain_top1 is None
    assert found.seeds is None
    assert "toolkit distill --set distill.control=true" in describe_gain(found)
    before_there_were_controls = Distillation.model_validate({"gain_top1": None})
    assert "not measured" in describe_gain(before_there_were_controls)
