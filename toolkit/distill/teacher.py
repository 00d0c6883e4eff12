"""The teacher stage: train a network, fine-tune ImageNet weights, or import a file."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit import console
from toolkit.architectures import ANSWERS, ENSEMBLE
from toolkit.data.answer_file import is_answer_file
from toolkit.data.dataset import Dataset
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.distill import distributed, provenance
from toolkit.distill.answers import import_answers, is_answered, known_logits, require_one_answer
from toolkit.distill.doubts import (
    Order,
    best_constant,
    find_normalisation,
    find_order,
    is_near_chance,
)
from toolkit.distill.evaluation import compute_logits, require_finite
from toolkit.distill.features import TappedNetwork
from toolkit.distill.folds import answer_out_of_fold, draw_folds, without_fold
from toolkit.distill.job import TrainingData, TrainingJob, TrainingOptions, WeightsFile
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.plan import Plan
from toolkit.distill.training import Training
from toolkit.errors import ArtifactError
from toolkit.files import sha256_file, write_atomically
from toolkit.modeldir import ModelDir
from toolkit.networks.class_map import UNKNOWN, show
from toolkit.networks.classifier import Classifier
from toolkit.networks.ensemble import Ensemble, describe_member
from toolkit.networks.families import Channels, Pretrained
from toolkit.networks.of_answers import Answers
from toolkit.networks.of_onnx import is_onnx
from toolkit.networks.onnx_file import ONE, ZERO
from toolkit.networks.registry import NetworkSpec, find_pretrained, spec_of
from toolkit.networks.small_maps import place
from toolkit.networks.weights import (
    Imported,
    ModelInfo,
    given_classes,
    import_teacher,
    load_model,
    read_info,
    teacher_spec,
)
from toolkit.recipe import Recipe
from toolkit.settings import IMAGENET

SHOWN_CLASSES = 12
"""names in a warning about their order"""

TRAINED_BY = ("teacher", "training.seed", "training.precision")
"""Settings, beside the data's, that decide the result for a teacher that is trained here..."""
IMPORTED_BY = tuple(
    f"teacher.{key}"
    for key in ("architecture", "mean", "std", "enlarge", "image_size", "combine", "layout", "white", "output")
)
"""...and one that is imported; the file itself is known by its SHA-256, and its network's settings are compared."""


def make_teacher(recipe: Recipe, model_dir: ModelDir, data: TrainingData, options: TrainingOptions) -> WeightsFile:
    """Write teacher.safetensors; an existing one from the same settings and data stays as it is.

    `recipe.teacher.weights` decides: empty trains from scratch, `imagenet` fine-tunes ImageNet weights, anything
    else names files, which are imported without training (their normalisation comes along). With `teacher.folds`,
    several are trained, and become one. Raises WeightsError if weights do not fit.
    """
    sources, settings = teacher_settings(recipe, data.dataset)
    job = with_folds(TrainingJob("teacher", recipe, model_dir, data, settings, options))
    if kept := job.kept():
        return kept
    if sources:
        if is_answered(recipe):
            teacher = import_answers(sources[0][1], recipe, data.dataset)
        else:
            teacher = import_given(sources, data.dataset.classes, recipe.teacher.combine)
        learner = TappedNetwork(Classifier(teacher.network, teacher.mean, teacher.std), ())
        extra = _judge_import(sources, learner.classifier, job, teacher)
    elif recipe.teacher.folds:
        learner, extra = _train_folds(job)
    else:
        learner, extra = _train(job)
    return _save(job, learner, extra)


def _save(job: TrainingJob, learner: TappedNetwork, extra: dict[str, Any]) -> WeightsFile:
    mean, std = learner.classifier.normalisation
    preprocess = Preprocess(job.sees.image_size, job.sees.resize, mean, std)
    return job.save(learner, extra | {"weights": job.settings["weights"]}, preprocess)


def _train(job: TrainingJob) -> tuple[TappedNetwork, dict[str, Any]]:
    """A new network, trained on the job's images, and the figures about that."""
    teacher = _new_network(job.recipe, job.data.num_classes)
    network = distributed.synchronize_batch_norms(teacher.network, job.options.device)
    job.require_trainable(network)
    learner = TappedNetwork(Classifier(network, teacher.mean, teacher.std), ())
    return learner, _fit(learner, job)


def _train_folds(job: TrainingJob) -> tuple[TappedNetwork, dict[str, Any]]:
    """One teacher without each fold, in directories of their own, and all of them as one network."""
    count, seen = job.recipe.teacher.folds, job.data.seen_by("teacher")
    folds = draw_folds(seen.train.labels, count, job.recipe.data.split_seed)
    files = []
    for fold, of_fold in enumerate(job.parts):
        of_fold.model_dir.make()
        part = replace(of_fold, data=without_fold(job.data, folds, fold))
        images = console.count(len(part.data.train), "training image")
        console.say(f"teacher: fold {fold + 1} of {count}, {images}, in {part.model_dir.path}")
        if (file := part.kept()) is None:
            learner, extra = _train(part)
            file = _save(part, learner, extra | {"fold": fold})
        files.append(file)
    members = [load_model(file.path)[0] for file in files]
    network = _combine(members, [spec_of(member.network) for member in members], [job.sees.image_size] * count)
    learner = TappedNetwork(Classifier(network, ZERO, ONE), ())
    outside = _accuracy_out_of_fold(members, folds, seen.train, job.options.device)
    console.say(f"teacher: out of fold, {outside:.4f} of the training images are right")
    valid = job.data.seen_by("teacher").valid
    answers = _ask(network, valid, ZERO, ONE, job.options.device).argmax(1).cpu().numpy()
    accuracy = float(np.mean(answers == valid.labels))
    done = ("seconds", "images_seen", "epochs")
    sums = {name: sum(file.info.extra.get(name, 0) for file in files) for name in done}
    return learner, sums | {"valid_accuracy": accuracy, "out_of_fold_accuracy": outside, "folds": count}


def with_folds(job: TrainingJob) -> TrainingJob:
    """A teacher's job with the ones of its folds as parts, each with all images; none without `teacher.folds`."""
    parts = [
        replace(job, model_dir=job.model_dir.of_fold(fold), settings=job.settings | {"fold": fold})
        for fold in range(job.recipe.teacher.folds)
    ]
    return replace(job, parts=tuple(parts))


def _accuracy_out_of_fold(members: Sequence[Classifier], folds: np.ndarray, pixels: Pixels, device: str) -> float:
    """The share of the training images that the teacher gets right which has not seen them."""
    return float(np.mean(answer_out_of_fold(members, folds, pixels, device).argmax(1) == pixels.labels))


Source = tuple[Recipe, Path]
"""A file to import, and the recipe for it."""


def teacher_settings(recipe: Recipe, dataset: Dataset) -> tuple[list[Source], dict[str, Any]]:
    """The files to import, none to train; and what decides the result: the same settings make the same teacher."""
    sources = provenance.find_sources(recipe)
    settings: dict[str, Any] = {
        "recipe_sha256": recipe.fingerprint("data", *(IMPORTED_BY if sources else TRAINED_BY)),
        "dataset_sha256": dataset.sha256,
        "weights": recipe.teacher.source,
    }
    if sources:
        shas = [sha256_file(path) for _, path in sources]
        settings["weights"] = shas[0] if len(shas) == 1 else shas
        if named := given_classes(recipe):
            settings["named"] = list(named)
        ((of_one, path), *more) = sources
        if not more and not is_onnx(path) and not is_answered(of_one):
            settings["network"] = dict(teacher_spec(of_one, provenance.describe(path)).settings)
    return sources, settings


def import_given(sources: Sequence[Source], classes: tuple[str, ...], combine: str) -> Imported:
    """The one file as a network, or several as one, for data of these classes."""
    found = [import_teacher(path, recipe, len(classes), classes) for recipe, path in sources]
    if len(found) == 1:
        return found[0]
    sizes = [recipe.data_of("teacher").image_size for recipe, _ in sources]
    members = [Classifier(one.network, one.mean, one.std) for one in found]
    network = _combine(members, [spec_of(one.network) for one in found], sizes, combine)
    return Imported(network, ZERO, ONE)


def _combine(
    members: Sequence[Classifier], specs: Sequence[NetworkSpec], sizes: Sequence[int], combine: str = "probabilities"
) -> Ensemble:
    """Several networks as one, each with its spec and its size, px."""
    described = [
        describe_member(spec.to_json(), *member.normalisation, size)
        for spec, member, size in zip(specs, members, sizes, strict=True)
    ]
    network = Ensemble(members, sizes, combine)
    vars(network)["spec"] = NetworkSpec(ENSEMBLE, {"combine": combine, "members": described})
    return network


def require_same_network(path: Path, recipe: Recipe) -> None:
    """ArtifactError if the recipe states another network for [teacher] than the one in `path`.

    What it leaves to the defaults is as the file has it.
    """
    info = read_info(path)
    if info.architecture == ANSWERS:
        require_one_answer(recipe)
    seen_by = {"architecture", "mean", "std", "enlarge", *recipe.teacher.settings}
    changed = [key for key in _changed_settings(info, recipe) if key in seen_by]
    if changed or _has_other_answers(info, recipe):
        changed = changed or ["weights"]
        raise ArtifactError(
            f"{path} was made from another recipe ({_in_teacher(changed)})",
            "make that teacher first, with toolkit teacher --force (in Python: force=True), or choose another"
            " directory",
        )


def _has_other_answers(info: ModelInfo, recipe: Recipe) -> bool:
    """Whether the recipe gives another file of answers than the one that the teacher was made of."""
    given = Path(recipe.teacher.source)
    return is_answer_file(given) and given.is_file() and sha256_file(given) != info.extra.get("weights")


def report_changed_training(path: Path, recipe: Recipe) -> None:
    """A line on stderr if the recipe states another training for the teacher that was trained into `path`."""
    info = read_info(path)
    was_trained = info.extra.get("weights", "") in ("", IMAGENET)
    if was_trained and (changed := _changed_settings(info, recipe)):
        console.say(
            f"teacher: {path} was trained with other settings ({_in_teacher(changed)}) and teaches as it is;"
            " toolkit teacher --force trains it again"
        )


def _changed_settings(info: ModelInfo, recipe: Recipe) -> list[str]:
    """Keys of [teacher] that the recipe states, and that are not as the file's network and its recipe have them."""
    network = {"architecture": info.architecture, "enlarge": info.network.enlarge, **info.network.settings}
    network |= {"mean": list(info.preprocess.mean), "std": list(info.preprocess.std)}
    recorded = info.recipe.get("teacher", {})
    return [
        key
        for key, value in recipe.teacher.model_dump(mode="json", exclude={"weights"}).items()
        if recipe.states(f"teacher.{key}")
        and key in recorded | network
        and value not in (recorded.get(key, ...), network.get(key, ...))
    ]


def _in_teacher(keys: list[str]) -> str:
    return ", ".join(f"teacher.{key}" for key in keys)


def _fit(learner: TappedNetwork, job: TrainingJob) -> dict[str, Any]:
    state = job.saved_state()
    section = job.recipe.teacher
    plan = Plan(
        role="teacher",
        section=section,
        image_size=job.sees.image_size,
        precision=state.precision if state else job.choose_precision(learner.classifier),
        seed=job.recipe.training.seed,
        device=job.options.device,
        compile=job.recipe.training.compile,
    )
    objective = learn_from_labels(section.label_smoothing, job.class_balance())
    return job.train(Training(learner, objective, job.views(), job.data.seen_by("teacher").valid, plan), state)


def _judge_import(
    sources: Sequence[Source], classifier: Classifier, job: TrainingJob, teacher: Imported
) -> dict[str, Any]:
    """The accuracy on this job's validation images, and the known facts about the training images."""
    dataset, trained_on, known = job.data.dataset, [], None
    for recipe, path in sources:
        if info := provenance.describe(path):
            trained_on.append(provenance.find_training_images(info))
        provenance.warn_of_differences(path, recipe, dataset)
        known = provenance.known_accuracy(path, recipe, dataset)
    if len(sources) > 1:
        known = None
    remark = "" if known is None else "; its file has its accuracy on the same validation images"
    console.say(f"teacher: imported {', '.join(str(path) for _, path in sources)}{remark}")
    _say_classes(classifier.network, dataset)
    accuracy: float | None = known
    if isinstance(classifier.network, Answers):
        accuracy = _measure_answers(teacher, job)
    elif known is None:
        accuracy = _measure_accuracy(classifier, job, teacher)
    return {"valid_accuracy": accuracy, "trained_on": trained_on[0] if len(sources) == 1 and trained_on else None}


def _say_classes(network: nn.Module, dataset: Dataset) -> None:
    """A line if its outputs are other classes than the data's."""
    spec = spec_of(network)
    if not spec.columns:
        return
    unknown = [dataset.classes[place] for place in spec.unknown]
    known = len(spec.columns) - len(unknown)
    line = f"teacher: {known} of its {spec.outputs} outputs are classes of the data, matched by name"
    if unknown:
        line += f"; it does not know {show(unknown)}, whose images are learnt from their labels alone"
    console.say(line)


def _ask(network: nn.Module, images: Pixels, mean: Channels, std: Channels, device: str) -> Tensor:
    """Logits (N, C) in fp32 for the images' evaluation views, normalised so."""
    asked = Classifier(network, mean, std)
    place(asked, device)
    return compute_logits(asked, images, "fp32", device)


def _measure_accuracy(classifier: Classifier, job: TrainingJob, teacher: Imported) -> float:
    """On this job's validation images; a warning says what seems to be wrong with the import."""
    valid, device = job.data.seen_by("teacher").valid, job.options.device

    def ask(images: Pixels, mean: Channels, std: Channels) -> Tensor:
        return _ask(classifier.network, images, mean, std, device)

    mean, std = (tuple(values.flatten().tolist()) for values in (classifier.mean, classifier.std))
    answers = ask(valid, mean, std)
    require_finite(answers, valid.names)
    logits = answers.cpu().numpy()
    hits = logits.argmax(1) == valid.labels
    accuracy = torch.from_numpy(hits).float().mean().item()
    if order := find_order(logits, valid.labels, job.data.dataset.classes):
        _warn_of_order(order, accuracy, job, teacher)
    elif not teacher.states_normalisation and (found := find_normalisation(ask, valid, mean, std)):
        console.say(
            f"warning: teacher: with another normalisation it has {found.accuracy:.4f} of the validation images right"
            f" instead of {found.before:.4f}; import it again with --force"
            f" --set teacher.mean={_as_setting(found.mean)} --set teacher.std={_as_setting(found.std)}"
        )
    elif is_near_chance(hits, valid.labels):
        console.say(
            f"warning: teacher: an accuracy of {accuracy:.4f} is no better than chance: the commonest class"
            f" alone gives {best_constant(valid.labels):.4f}; is this the right file, trained with these teacher.mean,"
            " teacher.std and data.image_size?"
        )
    return accuracy


def _measure_answers(teacher: Imported, job: TrainingJob) -> float | None:
    """Of the validation images that have an answer; None if none has. A warning says what seems to be wrong."""
    network = teacher.network
    assert isinstance(network, Answers)
    for pixels in (job.data.valid, job.data.train):
        known, logits = known_logits(network, pixels)
        if known.size == 0:
            console.say("teacher: its accuracy is not known, because no validation image has an answer")
            continue
        labels = pixels.labels[known]
        hits = logits.argmax(1) == labels
        accuracy = torch.from_numpy(hits).float().mean().item()
        which = "validation" if pixels is job.data.valid else "training"
        if order := find_order(logits, labels, job.data.dataset.classes):
            _warn_of_order(order, accuracy, job, teacher, which)
        elif is_near_chance(hits, labels):
            console.say(
                f"warning: teacher: {accuracy:.4f} of its answers for {which} images are right, no better than chance:"
                f" the commonest class alone gives {best_constant(labels):.4f}; are they of these images?"
            )
        return accuracy if pixels is job.data.valid else None
    return None


def _as_setting(channels: Channels) -> str:
    return "[" + ",".join(f"{value:.6g}" for value in channels) + "]"


def _warn_of_order(
    order: Order, accuracy: float, job: TrainingJob, teacher: Imported, split: str = "validation"
) -> None:
    """Say in which order the outputs seem to stand, and leave their names as a file for teacher.classes."""
    names = ", ".join(order.classes[:SHOWN_CLASSES]) + (", …" if len(order.classes) > SHOWN_CLASSES else "")
    if isinstance(teacher.network, Ensemble):
        way = "import each of them alone to see whose order is meant"
    else:
        path = job.model_dir.classes
        way = f"import it again with --force --set {shlex.quote(f'teacher.classes={path}')}"
        if distributed.is_main():
            with write_atomically(path) as temporary:
                temporary.write_text("".join(f"{name}\n" for name in _name_outputs(order, teacher)), encoding="utf-8")
    console.say(
        f"warning: teacher: its outputs seem to stand in another order: {names}; in that order it has"
        f" {order.accuracy:.4f} of the {split} images right instead of {accuracy:.4f}; {way}"
    )


def _name_outputs(order: Order, teacher: Imported) -> Sequence[str]:
    """The names of all outputs, if those that are classes of the data stand in this order."""
    columns = spec_of(teacher.network).columns
    if not columns or teacher.classes is None:
        return order.classes
    names = list(teacher.classes)
    for name, column in zip(order.classes, columns, strict=True):
        if column != UNKNOWN:
            names[column] = name
    return names


def _new_network(recipe: Recipe, num_classes: int) -> Imported:
    """An untrained network, or an ImageNet one with a new head; with the normalisation that goes with it."""
    section = recipe.teacher
    torch.manual_seed(recipe.training.seed)
    spec = teacher_spec(recipe, None)
    size = recipe.data_of("teacher").image_size
    network = spec.build(num_classes, size)
    mean, std = recipe.data.mean, recipe.data.std
    if section.source == IMAGENET:
        with torch.random.fork_rng([]):
            body = find_pretrained(spec, size)
        _load_body(network, body)
        mean, std = body.mean, body.std
    return Imported(network, section.mean or mean, section.std or std)


def _load_body(network: nn.Module, body: Pretrained) -> None:
    """Fill every layer whose shape fits with ImageNet weights; the new head stays as initialised."""
    own = network.state_dict()
    fitting = {name: value for name, value in body.tensors.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    console.say(f"teacher: {len(fitting)} of {len(own)} tensors from {body.origin}")
