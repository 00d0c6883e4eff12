"""The export stage: weights → an ONNX file that has been proven to answer as they do, or no file at all."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from toolkit import __version__, console
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, WeightsError
from toolkit.export.verify import Proof, choose_samples, prove_file
from toolkit.modeldir import ModelDir, Role, sha256_file, write_atomically
from toolkit.networks.classifier import Classifier
from toolkit.networks.graph import build_graph, check_graph, set_metadata
from toolkit.networks.registry import DEPTHWISE, build
from toolkit.networks.student import infer_student
from toolkit.networks.weights import ModelInfo, carries_info, load_into, load_model, read_state_dict
from toolkit.recipe import Recipe

"""What the notebook's networks were trained with: the centre 256 px, values in 0..1."""


@dataclass(frozen=True)
class ExportResult:
    """What was written and what its proof measured. Accuracies are None where there were no validation images."""

    path: Path
    size_bytes: int
    max_logit_difference: float
    agreement: float
    accuracy_torch: float | None
    accuracy_onnx: float | None
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    def summary(self) -> str:
        """One line for people."""
        accuracy = (
            "accuracy not checked (no validation images)"
            if self.accuracy_onnx is None
            else f"accuracy {self.accuracy_onnx:.4f} (torch {self.accuracy_torch:.4f})"
        )
        return (
            f"{self.path}  {console.size(self.size_bytes)}  {console.duration(self.seconds)}  "
            f"logits within {self.max_logit_difference:.1e} of torch's, "
            f"same class on {self.agreement:.2%} of {self.images} images, {accuracy}"
        )


def export_onnx(
    weights: Path, destination: Path, recipe: Recipe, pixels: Pixels | None, *, force: bool = False
) -> ExportResult:
    """Export a .safetensors file of the toolkit; `pixels` are the validation images of the proof.

    Raises ArtifactError where `destination` holds an export of other weights and `force` is not given, and GateError,
    leaving no file, where the export does not answer as the weights do.
    """
    check_destination(weights, destination, force)
    start = time.perf_counter()
    classifier, info = load_model(weights)
    return _export(classifier, info, weights, destination, recipe, pixels, start)


def export_model_dir(
    model_dir: ModelDir,
    recipe: Recipe,
    pixels: Pixels | None,
    roles: Sequence[Role] = ("teacher", "student"),
    force: bool = False,
) -> list[ExportResult]:
    """Export each role's weights of a model directory; whether all may be written is known before the first is."""
    for role in roles:
        check_destination(model_dir.require(model_dir.weights(role)), model_dir.onnx(role), force)
    return [export_onnx(model_dir.weights(role), model_dir.onnx(role), recipe, pixels, force=force) for role in roles]


def export_weights_file(
    path: Path,
    out: Path,
    recipe: Recipe,
    classes: tuple[str, ...] | None,
    pixels: Pixels | None,
    *,
    force: bool = False,
) -> ExportResult:
    """Export one weights file as `out`/<its stem>.onnx, a bare state dict too.

    A bare state dict is taken for the depthwise student that its keys describe, else for the recipe's teacher, with the
    recipe's preprocessing; that is said on stderr. `classes` names its classes; without, they are numbered.
    """
    destination = out / f"{path.stem}.onnx"
    if carries_info(path):
        return export_onnx(path, destination, recipe, pixels, force=force)
    check_destination(path, destination, force)
    start = time.perf_counter()
    classifier, info = _describe_bare_weights(path, recipe, classes)
    return _export(classifier, info, path, destination, recipe, pixels, start)


def check_destination(weights: Path, destination: Path, force: bool) -> None:
    """Raise ArtifactError where `destination` is there, `force` is not given, and it is no export of these weights."""
    if force or not destination.exists():
        return
    try:
        model = onnx.load_model(str(destination), load_external_data=False)
        made_from = {entry.key: entry.value for entry in model.metadata_props}.get("weights_sha256")
    except (DecodeError, OSError, ValueError):
        made_from = None
    if made_from != sha256_file(weights):
        raise ArtifactError(
            f"{destination} is there and was not exported from {weights}",
            "replace it with --force, or choose another directory with --out",
        )


def _export(
    classifier: Classifier,
    info: ModelInfo,
    weights: Path,
    destination: Path,
    recipe: Recipe,
    pixels: Pixels | None,
    start: float,
) -> ExportResult:
    image_size, num_classes = info.preprocess.image_size, len(info.classes)
    samples = choose_samples(pixels, image_size, num_classes, recipe.export.images)
    console.say(f"export: {weights} → {destination}, proof on {len(samples.names)} images")
    model = build_graph(classifier, image_size, recipe.export.opset)
    set_metadata(model, _metadata(info, weights, recipe))
    check_graph(model, image_size, num_classes)
    with write_atomically(destination) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        proof = prove_file(temporary, destination.name, classifier, samples, recipe.export)
    return _result(destination, proof, time.perf_counter() - start)


def _result(destination: Path, proof: Proof, seconds: float) -> ExportResult:
    if proof.accuracy_onnx is None:
        console.say(
            f"{destination.name}: checked for closeness and agreement on {proof.images} synthetic images; "
            "accuracy was not checked (no validation images; --data gives some)"
        )
    return ExportResult(
        path=destination,
        size_bytes=destination.stat().st_size,
        seconds=seconds,
        **{k: getattr(proof, k) for k in vars(proof)},
    )


def _metadata(info: ModelInfo, weights: Path, recipe: Recipe) -> dict[str, str]:
    """Every value is a string; those that are not known are empty, a license that is not known is left out."""
    metadata = {
        "role": info.role,
        "architecture": info.architecture,
        "classes": json.dumps(info.classes, ensure_ascii=False),
        "preprocess": info.preprocess.to_json(),
        "recipe_sha256": info.recipe_sha256,
        "dataset_sha256": info.dataset_sha256,
        "teacher_sha256": info.teacher_sha256 or "",
        "weights_sha256": sha256_file(weights),
        "toolkit_version": __version__,
    }
    return metadata | ({"license": recipe.export.license} if recipe.export.license else {})


def _describe_bare_weights(path: Path, recipe: Recipe, classes: tuple[str, ...] | None) -> tuple[Classifier, ModelInfo]:
    state_dict = read_state_dict(path)
    role: Role
    if any(name.startswith("cnn.") for name in state_dict):
        num_classes, base, width_mult = infer_student(state_dict)
        role, architecture, preprocess = "student", DEPTHWISE, Preprocess.from_recipe(recipe.data)
        assumed = "the depthwise student"
    else:
        num_classes, base, width_mult = _head_size(state_dict, path), recipe.student.base, recipe.student.width_mult
        mean, std = recipe.teacher.mean or recipe.data.mean, recipe.teacher.std or recipe.data.std
        preprocess = Preprocess(recipe.data.image_size, recipe.data.resize, mean, std)
        role, architecture = "teacher", recipe.teacher.architecture
        assumed = f"the recipe's teacher ({architecture})"
    if classes is not None and len(classes) != num_classes:
        raise WeightsError(
            f"{path} knows {num_classes} classes, the data has {len(classes)}",
            "give the data those weights were trained on with --data",
        )
    console.say(
        f"{path} does not describe itself: taken for {assumed} with {num_classes} classes, "
        f"{preprocess.image_size} px images, resize {preprocess.resize}, mean {preprocess.mean}, std {preprocess.std}"
    )
    network = build(architecture, num_classes, base=base, width_mult=width_mult, image_size=preprocess.image_size)
    load_into(network, state_dict, path, num_classes)
    info = ModelInfo(
        role=role,
        architecture=architecture,
        base=base,
        width_mult=width_mult,
        classes=classes or tuple(str(i) for i in range(num_classes)),
        preprocess=preprocess,
        recipe={},
        recipe_sha256="",
        dataset_sha256="",
        teacher_sha256=None,
        toolkit_version=__version__,
    )
    return Classifier(network, preprocess.mean, preprocess.std).float().eval(), info


def _head_size(state_dict: dict[str, Any], path: Path) -> int:
    """Classes of a torchvision classifier: its state dict ends with the last layer's bias."""
    last = list(state_dict.values())[-1]
    if last.ndim != 1:
        raise WeightsError(
            f"{path}: its last tensor {list(state_dict)[-1]} is no bias of a last layer",
            "give a state dict of the depthwise student or of the recipe's teacher",
        )
    return len(last)
