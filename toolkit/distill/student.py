"""The distillation stage: the student learns from labels and from a frozen teacher."""

import torch
from torch import Tensor

from toolkit import __version__
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import Dataset
from toolkit.distill.losses import kd_loss
from toolkit.distill.precision import choose_precision
from toolkit.distill.provenance import Made, check_destination
from toolkit.distill.trainer import Loss, Plan, train
from toolkit.errors import WeightsError
from toolkit.modeldir import ModelDir, sha256_file
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.weights import ModelInfo, load_model, save_model
from toolkit.recipe import DistillRecipe, Recipe


def distill_student(
    recipe: Recipe,
    model_dir: ModelDir,
    dataset: Dataset,
    train_pixels: Pixels,
    valid_pixels: Pixels,
    *,
    device: str,
    force: bool = False,
) -> Made:
    """Write student.safetensors, taught by the directory's teacher.safetensors, best epoch by validation accuracy.

    An existing student from the same settings, data and teacher is kept as it is. Raises WeightsError where the
    teacher's classes are not the data's.
    """
    destination = model_dir.weights("student")
    teacher_file = model_dir.require(model_dir.weights("teacher"))
    settings = {
        "recipe_sha256": recipe.fingerprint("data", "student", "distill"),
        "dataset_sha256": dataset.sha256,
        "teacher_sha256": sha256_file(teacher_file),
    }
    if kept := check_destination(destination, settings, force):
        return kept
    teacher, teacher_info = load_model(teacher_file)
    _require_same_classes(teacher_info, dataset, teacher_file.name)
    teacher.requires_grad_(False)
    torch.manual_seed(recipe.distill.seed)
    section = recipe.student
    network = registry.build(
        section.architecture,
        len(dataset.classes),
        base=section.base,
        width_mult=section.width_mult,
        image_size=recipe.data.image_size,
    )
    student = Classifier(network, recipe.data.mean, recipe.data.std)
    size = (recipe.distill.batch_size, recipe.data.image_size)
    precision = choose_precision(recipe.distill.precision, student, *size, device)
    teacher_precision = choose_precision(recipe.distill.precision, teacher, *size, device, training=False)
    plan = Plan.of(
        "distill",
        recipe.distill,
        precision=precision,
        teacher_precision=teacher_precision,
        seed=recipe.distill.seed,
        device=device,
    )
    training = train(
        student,
        distillation_loss(recipe.distill),
        train_pixels,
        valid_pixels,
        plan,
        recipe.data,
        model_dir.metrics,
        teacher=teacher,
    )
    student.network.load_state_dict(training.state_dict)
    info = ModelInfo(
        role="student",
        architecture=section.architecture,
        base=section.base,
        width_mult=section.width_mult,
        classes=dataset.classes,
        preprocess=Preprocess.from_recipe(recipe.data),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=settings["recipe_sha256"],
        dataset_sha256=dataset.sha256,
        teacher_sha256=settings["teacher_sha256"],
        toolkit_version=__version__,
        extra=training.summary() | {"precision": precision},
    )
    save_model(destination, student.network, info)
    return Made(destination, new=True, info=info)


def distillation_loss(section: DistillRecipe) -> Loss:
    """The recipe's loss as a function of (student_logits, labels, teacher_logits)."""

    def loss(student_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        assert teacher_logits is not None
        return kd_loss(student_logits, teacher_logits, labels, temperature=section.temperature, alpha=section.alpha)

    return loss


def _require_same_classes(teacher: ModelInfo, dataset: Dataset, file_name: str) -> None:
    remedy = "give --data what the teacher was trained on, or train one here with `toolkit teacher --force`"
    if len(teacher.classes) != len(dataset.classes):
        raise WeightsError(
            f"{file_name} knows {len(teacher.classes)} classes, {dataset.name} has {len(dataset.classes)}", remedy
        )
    for number, (theirs, ours) in enumerate(zip(teacher.classes, dataset.classes, strict=True)):
        if theirs != ours:
            raise WeightsError(f"{file_name} calls class {number} {theirs!r}, {dataset.name} {ours!r}", remedy)
