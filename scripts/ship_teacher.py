"""Make a trained teacher ready to ship: half precision, measured again, with its card.

    python scripts/ship_teacher.py MODEL_DIR --recipe FILE --hardware "NVIDIA H100, 16 cores" [--out FOLDER]

MODEL_DIR holds the results of `toolkit teacher --recipe FILE`: teacher.safetensors and metrics.jsonl. FOLDER, by
default models/<data set>, gets teacher-<architecture>.safetensors, and a card of the same name that ends in .md. Every
figure of the card comes from those files or is measured here, with the file that ships. No file knows the hardware, so
--hardware states it. The script writes nothing if the weights were trained with another recipe, or if half precision
changes the accuracy on the test images by more than 0.1 points.
"""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit import __version__, console
from toolkit.bench.report.markdown import markdown_table, percent
from toolkit.data.dataset import Dataset, Split
from toolkit.data.defaults import follow_pictures
from toolkit.data.pixels import load_pixels
from toolkit.data.sources import load_dataset
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.provenance import SHIPPED_ACCURACY
from toolkit.errors import GateError, RecipeError, ToolkitError, WeightsError
from toolkit.files import sha256_file, write_atomically
from toolkit.machine.devices import pick_device
from toolkit.modeldir import ModelDir
from toolkit.networks.weights import ModelInfo, load_model, save_model
from toolkit.recipe import NOT_IN_FINGERPRINT, Recipe

PART = 1000
"""The first test images of the split: the card counts their right answers, and a test recomputes them in a second."""
MAX_DIFFERENCE = 0.001
"""The largest difference of the accuracy on the test images, between half precision and float32."""

TRAINING = ("data", "training", "teacher")
"""Sections that a teacher is trained by."""

DATA_LICENCES = {
    "fashion-mnist": "MIT (Fashion-MNIST, © 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist)",
}


ACCURACY_HEADINGS = (
    *("images", "n", "as trained (float32)", "as it ships", "same answer", "largest difference of a logit"),
)
EPOCH_HEADINGS = (
    *("epoch", "px", "learning rate", "train loss", "train top-1"),
    *("valid loss", "valid top-1", "img/s", "seconds so far"),
)


@dataclass(frozen=True)
class Answers:
    """One split of N images: labels int64 (N,), logits float32 (N, C) of the network as trained and as it ships."""

    split: Split
    labels: Tensor
    trained: Tensor
    shipped: Tensor

    def accuracy(self, logits: Tensor) -> float:
        return (logits.argmax(1) == self.labels).float().mean().item()

    def row(self) -> list[str]:
        same = (self.trained.argmax(1) == self.shipped.argmax(1)).float().mean().item()
        difference = (self.trained - self.shipped).abs().max().item()
        accuracies = [percent(self.accuracy(logits)) for logits in (self.trained, self.shipped)]
        name = "validation" if self.split == "valid" else self.split
        return [name, f"{len(self.labels):,}", *accuracies, percent(same), f"{difference:.4f}"]


@dataclass(frozen=True)
class Shipment:
    """The facts of the card."""

    path: Path
    info: ModelInfo
    command: str
    hardware: str
    data_licence: str
    trained_on: datetime.date
    answers: list[Answers]
    epochs: list[dict[str, Any]]


def main() -> int:
    arguments = parse_arguments()
    try:
        ship(arguments)
    except ToolkitError as error:
        console.say(f"error: {error}")
        return error.exit_code
    return 0


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--recipe", type=Path, required=True, help="the file that it was trained with")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as in that training"
    )
    parser.add_argument("--hardware", required=True, help="hardware of the training")
    parser.add_argument("--out", type=Path, help="folder (default: models/<data set>)")
    parser.add_argument("--data-licence", help="of the data set, if this script does not know it")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


def ship(arguments: argparse.Namespace) -> Path:
    """Write the file and its card; return the path of the file."""
    source = ModelDir(arguments.model_dir)
    weights = source.require(source.weights("teacher"))
    device = pick_device(arguments.device)
    classifier, info = load_model(weights)
    epochs = read_epochs(source.require(source.metrics))
    dataset = load_dataset(Recipe.from_dict(info.recipe, str(weights)).data)
    data_licence = arguments.data_licence or licence_of(dataset.name)
    if dataset.sha256 != info.dataset_sha256:
        raise WeightsError(
            f"{weights} was trained on another {dataset.name}", "put back the data that it was trained on"
        )
    require_recipe(arguments.recipe, arguments.overrides, info, dataset)
    folder = arguments.out or Path("models") / dataset.name
    path = folder / f"teacher-{info.architecture}.safetensors"
    with tempfile.TemporaryDirectory() as temporary:
        halved = Path(temporary) / path.name
        save_model(halved, classifier.network, info, halved=True)
        answers = [ask(split, weights, halved, dataset, device) for split in ("valid", "test")]
        require_same_accuracy(answers[1])
    figures = {"float32_sha256": sha256_file(weights), SHIPPED_ACCURACY: answers[0].accuracy(answers[0].shipped)}
    info = replace(info, extra=info.extra | figures)
    save_model(path, classifier.network, info, halved=True)  # the same tensors, and the measured figures
    shipment = Shipment(
        path,
        info,
        shlex.join(["toolkit", "teacher", "--recipe", str(arguments.recipe), *flags("--set", arguments.overrides)]),
        arguments.hardware,
        data_licence,
        datetime.date.fromtimestamp(weights.stat().st_mtime),
        answers,
        epochs,
    )
    with write_atomically(path.with_suffix(".md")) as place:
        place.write_text(write_card(shipment), encoding="utf-8")
    console.say(f"wrote {path} ({console.size(path.stat().st_size)}) and {path.with_suffix('.md').name}")
    return path


def ask(split: Split, weights: Path, halved: Path, dataset: Dataset, device: str) -> Answers:
    """Both files' answers to every image of a split."""
    logits = []
    for path in (weights, halved):
        classifier, info = load_model(path)
        pixels = load_pixels(dataset, split, info.preprocess)
        logits.append(compute_logits(classifier.to(device), pixels, "fp32", device).cpu())
    return Answers(split, torch.from_numpy(pixels.labels), *logits)


def require_recipe(path: Path, overrides: list[str], info: ModelInfo, dataset: Dataset) -> None:
    """RecipeError unless the weights were trained with this recipe, so that anyone can repeat the card's command."""
    recipe = Recipe.from_toml(path).with_overrides(overrides)
    recipe, _ = follow_pictures(recipe, dataset.train)
    theirs, ours = (settings_of(it) for it in (Recipe.from_dict(info.recipe, "teacher.safetensors"), recipe))
    differing = [
        f"{key} = {json.dumps(theirs.get(key))} and not {json.dumps(ours[key])}"
        for key in ours
        if theirs.get(key) != ours[key]
    ]
    if differing:
        raise RecipeError(
            f"the weights were trained with other settings than {path}: {'; '.join(differing)}",
            "give the recipe of that training, with the same --set flags",
        )


def require_same_accuracy(test: Answers) -> None:
    lost = test.accuracy(test.trained) - test.accuracy(test.shipped)
    if abs(lost) > MAX_DIFFERENCE:
        raise GateError(
            f"half precision changes the accuracy on the test images by {-100 * lost:+.2f} points, more than"
            f" {100 * MAX_DIFFERENCE:.1f}",
            "ship another epoch or seed, or find weights that are too large or too small for half precision",
        )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """`section.key` → value of all settings of a teacher's training, except paths and threads."""
    values = {
        f"{section}.{key}": value
        for section, table in recipe.model_dump(mode="json").items()
        for key, value in table.items()
    }
    return {
        name: value
        for name, value in values.items()
        if name.split(".")[0] in TRAINING and name not in NOT_IN_FINGERPRINT
    }


def licence_of(data: str) -> str:
    if data not in DATA_LICENCES:
        raise RecipeError(f"the licence of {data} is not known here", "state it with --data-licence")
    return DATA_LICENCES[data]


def read_epochs(metrics: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if line["stage"] == "teacher"]
    if not epochs:
        raise WeightsError(f"{metrics} has no epoch of a teacher", "ship a teacher that toolkit teacher trained")
    return epochs


def flags(flag: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def write_card(shipment: Shipment) -> str:
    info, data, test = shipment.info, shipment.info.recipe["data"], shipment.answers[1]
    split = f"`data.split_seed` {data['split_seed']} and `data.validation_fraction` {data['validation_fraction']:g}"
    classes, part, right = len(info.classes), min(PART, len(test.labels)), count_right(test)
    versions = f"kd-toolkit {__version__} and torch {torch.__version__.partition('+')[0]}"
    return f"""\
<!-- written by scripts/ship_teacher.py: every figure is measured -->
# {shipment.path.name}

A teacher that this toolkit trained and ships: {info.architecture} for {data["source"]}, {classes} classes.
A recipe uses it with `teacher.weights = "{shipment.path.parent.name}"`.

{markdown_table(("what", "value"), facts(shipment), left=(0, 1))}

## Accuracy

{markdown_table(ACCURACY_HEADINGS, [answers.row() for answers in shipment.answers], left=(0,))}

Of the first {part:,} test images, {right:,} get the right answer.

Evaluated in float32 on the whole splits, by {versions}.
The validation images (those of {split}) were held out of its training.
They chose the epoch that is kept. No test image took part in training or in this choice.

## Recipe

Every setting that is not a default:

{list_settings(info)}

## Every epoch

{markdown_table(EPOCH_HEADINGS, [describe_epoch(epoch, info) for epoch in shipment.epochs], left=())}

Losses are means over images; training accuracies are of augmented views. **Bold**: the epoch whose weights are kept.

## What it is not for

It is meant as a teacher for distillation and as a reference. It predicts one of {classes} classes for any picture,
also for pictures unlike its training images, and often with high confidence. It was not measured on pictures from
another source. It is not for decisions about people.
"""


def facts(shipment: Shipment) -> list[list[str]]:
    info, extra, preprocess = shipment.info, shipment.info.extra, shipment.info.preprocess
    size = shipment.path.stat().st_size
    return [
        ["file", f"{size:,} bytes; filters and matrices in half precision, batch norms and biases in float32"],
        ["SHA-256", f"`{sha256_file(shipment.path)}`"],
        ["licence", "MIT, as the toolkit's"],
        ["data", f"{shipment.data_licence}; SHA-256 of the content `{info.dataset_sha256}`"],
        [
            "sees",
            f"{preprocess.image_size} px, resize {preprocess.resize}, mean {preprocess.mean}, std {preprocess.std}",
        ],
        ["command", f"`{shipment.command}`"],
        ["seed", str(Recipe.from_dict(info.recipe, "teacher.safetensors").training.seed)],
        ["hardware", f"{shipment.hardware}; arithmetic: {extra['precision']}"],
        ["date", shipment.trained_on.isoformat()],
        [
            "time",
            f"{console.duration(extra['seconds'])} for {console.count(extra['epochs'], 'epoch')},"
            f" {extra['train_img_s']:,.0f} training images/s",
        ],
        ["version", f"kd-toolkit {info.toolkit_version}"],
    ]


def count_right(test: Answers) -> int:
    return int((test.shipped[:PART].argmax(1) == test.labels[:PART]).sum())


def list_settings(info: ModelInfo) -> str:
    own, defaults = settings_of(Recipe.from_dict(info.recipe, "teacher.safetensors")), settings_of(Recipe())
    return "\n".join(f"- `{key} = {json.dumps(value)}`" for key, value in own.items() if value != defaults.get(key))


def describe_epoch(epoch: dict[str, Any], info: ModelInfo) -> list[str]:
    best = epoch["epoch"] == info.extra["best_epoch"]
    cells = [
        f"{epoch['epoch'] + 1}",
        f"{epoch['image_size']}",
        f"{epoch['learning_rate']:.5f}",
        f"{epoch['train_loss']:.4f}",
        percent(epoch["train_accuracy"]),
        f"{epoch['valid_loss']:.4f}",
        percent(epoch["valid_accuracy"]),
        f"{epoch['train_img_s']:,.0f}",
        f"{epoch['seconds']:,.0f}",
    ]
    return [f"**{cell}**" for cell in cells] if best else cells


if __name__ == "__main__":
    sys.exit(main())
