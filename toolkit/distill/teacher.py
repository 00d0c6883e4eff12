"""The teacher stage: train a network, fine-tune ImageNet weights, or import a file."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from toolkit import __version__, console
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import Dataset
from toolkit.distill.precision import choose_precision
from toolkit.distill.provenance import Made, check_destination
from toolkit.distill.trainer import Loss, Plan, compute_logits, train
from toolkit.errors import WeightsError
from toolkit.modeldir import ModelDir, sha256_file
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.weights import ModelInfo, import_teacher, save_model
from toolkit.recipe import Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def make_teacher(
    recipe: Recipe,
    model_dir: ModelDir,
    dataset: Dataset,
    train_pixels: Pixels,
    valid_pixels: Pixels,
    *,
    device: str,
    force: bool = False,
) -> Made:
    """Write teacher.safetensors; an existing one from the same settings and data is kept as it is.

    `recipe.teacher.weights` decides: empty trains from scratch, `imagenet` fine-tunes torchvision's weights, a path is
    imported without training (its normalisation comes along). Raises WeightsError where weights do not fit.
    """
    destination = model_dir.weights("teacher")
    source = _weights_file(recipe)
    settings = {
        "recipe_sha256": recipe.fingerprint("data", "teacher", "distill.seed", "distill.precision"),
        "dataset_sha256": dataset.sha256,
        "weights": sha256_file(source) if source else recipe.teacher.weights,
    }
    if kept := check_destination(destination, settings, force):
        return kept
    if source:
        network, mean, std = import_teacher(source, recipe, len(dataset.classes), dataset.classes)
        classifier = Classifier(network, mean, std)
        extra = _measure(classifier, valid_pixels, device)
        console.say(f"teacher: imported {source}, validation accuracy {extra['valid_accuracy']:.4f}")
    else:
        network, mean, std = _new_network(recipe, len(dataset.classes))
        classifier = Classifier(network, mean, std)
        extra = _fit(classifier, recipe, model_dir, train_pixels, valid_pixels, device)
    preprocess = Preprocess(recipe.data.image_size, recipe.data.resize, mean, std)
    info = ModelInfo(
        role="teacher",
        architecture=recipe.teacher.architecture,
        base=recipe.student.base,
        width_mult=recipe.student.width_mult,
        classes=dataset.classes,
        preprocess=preprocess,
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=settings["recipe_sha256"],
        dataset_sha256=dataset.sha256,
        teacher_sha256=None,
        toolkit_version=__version__,
        extra=extra | {"weights": settings["weights"]},
    )
    save_model(destination, classifier.network, info)
    return Made(destination, new=True, info=info)


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with labels, smoothed by `label_smoothing` (0..1); the teacher's logits are not looked at."""
    return lambda logits, labels, _: F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def _fit(
    classifier: Classifier, recipe: Recipe, model_dir: ModelDir, train_pixels: Pixels, valid_pixels: Pixels, device: str
) -> dict[str, Any]:
    section = recipe.teacher
    precision = choose_precision(
        recipe.distill.precision, classifier, section.batch_size, recipe.data.image_size, device
    )
    plan = Plan.of("teacher", section, precision=precision, seed=recipe.distill.seed, device=device)
    training = train(
        classifier,
        cross_entropy(section.label_smoothing),
        train_pixels,
        valid_pixels,
        plan,
        recipe.data,
        model_dir.metrics,
    )
    classifier.network.load_state_dict(training.state_dict)
    return training.summary() | {"precision": precision}


def _measure(classifier: Classifier, valid_pixels: Pixels, device: str) -> dict[str, Any]:
    classifier.to(device)
    predicted = compute_logits(classifier, valid_pixels, "fp32", device).argmax(1).cpu()
    return {"valid_accuracy": (predicted == torch.from_numpy(valid_pixels.labels)).float().mean().item()}


def _weights_file(recipe: Recipe) -> Path | None:
    if recipe.teacher.weights in ("", "imagenet"):
        return None
    if recipe.teacher.weights == "food-11":
        from toolkit.data.food11 import teacher_weights

        return teacher_weights()
    path = Path(recipe.teacher.weights)
    if not path.is_file():
        raise WeightsError(
            f"teacher.weights: there is no file {path}",
            "give a .safetensors or .pt/.bin file, `imagenet`, `food-11`, or leave it empty to train from scratch",
        )
    return path


def _new_network(
    recipe: Recipe, num_classes: int
) -> tuple[nn.Module, tuple[float, float, float], tuple[float, float, float]]:
    """An untrained network, or torchvision's ImageNet one with a new head; with the normalisation that goes with it."""
    section = recipe.teacher
    torch.manual_seed(recipe.distill.seed)
    imagenet = section.weights == "imagenet"
    network = registry.build(
        section.architecture,
        num_classes,
        base=recipe.student.base,
        width_mult=recipe.student.width_mult,
        image_size=recipe.data.image_size,
    )
    if imagenet:
        _load_imagenet_body(network, section.architecture)
    mean = section.mean or (IMAGENET_MEAN if imagenet else recipe.data.mean)
    std = section.std or (IMAGENET_STD if imagenet else recipe.data.std)
    return network, mean, std


def _load_imagenet_body(network: nn.Module, architecture: str) -> None:
    """Fill every layer whose shape fits with torchvision's ImageNet weights; the new head stays as initialised."""
    from torchvision.models import get_model_weights

    try:
        weights = get_model_weights(architecture)["DEFAULT"]
    except ValueError:
        raise WeightsError(
            f"torchvision has no ImageNet weights for {architecture}",
            'use teacher.weights = "" or a torchvision classifier',
        ) from None
    try:
        pretrained = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise WeightsError(
            f"cannot download {weights.url}: {error}",
            f'put that file into {Path(torch.hub.get_dir()) / "checkpoints"}, or use teacher.weights = ""',
        ) from None
    own = network.state_dict()
    fitting = {name: value for name, value in pretrained.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    console.say(f"teacher: {len(fitting)} of {len(own)} tensors from torchvision's ImageNet {architecture}")
