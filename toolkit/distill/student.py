"""The distillation stage: the student learns from labels and a frozen teacher, its control from labels alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset
from toolkit.data.mixed_views import MixedViews
from toolkit.data.preprocess import Preprocess
from toolkit.distill import distributed
from toolkit.distill.answering import replay_answers
from toolkit.distill.features import TappedNetwork, default_tap, tap_channels
from toolkit.distill.folds import OutOfFoldTeacher, folds_of
from toolkit.distill.job import TrainingData, TrainingJob, TrainingOptions, WeightsFile, prove_size
from toolkit.distill.logit_store import LogitStore
from toolkit.distill.objective import FEATURE_METHODS, learn_from_labels, learn_from_teacher
from toolkit.distill.plan import Plan
from toolkit.distill.precision import Arithmetic
from toolkit.distill.provenance import require_no_unknown_classes, require_same_classes
from toolkit.distill.quantized import choose_teacher, teacher_in
from toolkit.distill.teachers import LiveTeacher, MixedTeacher, Teacher, TeacherOfSomeClasses
from toolkit.distill.training import Training
from toolkit.errors import RecipeError
from toolkit.files import sha256_file
from toolkit.modeldir import ModelDir, Role
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.ensemble import Ensemble
from toolkit.networks.of_answers import Answers
from toolkit.networks.registry import NetworkSpec, has_file
from toolkit.networks.weights import ModelInfo, load_model, read_info
from toolkit.recipe import Recipe

OTHER_CLASSES = "give the teacher's training data, or train one here with `toolkit teacher --force`"
"""The remedy for a teacher with other classes than the data's."""


Folds = np.ndarray | None
"""The fold, int64 (N,), of each training image of a teacher that was trained in folds."""

Beside = Callable[[Arithmetic], AbstractContextManager[object]]
"""Work beside the training of a student in that arithmetic, from its first step until its file is written."""


def distill_student(
    recipe: Recipe,
    model_dir: ModelDir,
    data: TrainingData,
    options: TrainingOptions,
    teacher_dir: ModelDir | None = None,
    beside: Beside = nullcontext,
) -> WeightsFile:
    """Write student.safetensors, taught by teacher.safetensors of `teacher_dir` (default: the same directory).

    The epoch that is best on validation images is kept. An existing student from the same settings, data and teacher
    stays as it is. Raises WeightsError if the teacher's classes are not the data's.
    """
    teachers = teacher_dir or model_dir
    teacher_file = teachers.require(teachers.weights("teacher"))
    settings = student_settings(recipe, data.dataset, teacher_file, data.unlabelled_set_sha256)
    job = TrainingJob("student", recipe, model_dir, data, settings, options)
    if kept := job.kept():
        return kept
    state = job.saved_state()
    teacher, info = _load_teacher(job, teacher_file)
    learner, tapped_teacher = _tap(recipe, _new_student(job), teacher)
    precision = state.precision if state else job.choose_precision(learner.classifier)
    views = job.views()
    chosen = state.teacher_precision if state else None
    answering, teacher_precision = _open_teacher(job, tapped_teacher, views, chosen, folds_of(info, data.train))
    answering = _know_all_classes(answering, teacher, job, views)
    plan = _plan(job, "student", precision, teacher_precision)
    training = Training(
        learner, learn_from_teacher(recipe.distill, job.class_balance()), views, data.valid, plan, answering
    )
    with beside(precision):
        extra = job.train(training, state) | _unlabelled_facts(data)
        return job.save(learner, extra, Preprocess.from_recipe(recipe.data))


def train_control(
    recipe: Recipe,
    model_dir: ModelDir,
    data: TrainingData,
    options: TrainingOptions,
    precision: Arithmetic | None = None,
) -> WeightsFile:
    """Write control.safetensors: the same student, seed, views, epochs and schedule, from labels alone.

    The student's accuracy less the control's is what the teacher was worth. `precision` is the student's arithmetic;
    without it, that of the student's file.
    """
    job = _control_job(recipe, model_dir, data, options)
    if kept := job.kept():
        return kept
    state = job.saved_state()
    learner = TappedNetwork(_new_student(job), ())
    student = model_dir.weights("student")
    if state is None and precision is None and student.is_file():
        precision = read_info(student).extra.get("precision")
    # the student's arithmetic, so that the two differ in the teacher alone
    precision = state.precision if state else precision or job.choose_precision(learner.classifier)
    plan = _plan(job, "control", precision)
    objective = learn_from_labels(recipe.distill.label_smoothing, job.class_balance())
    extra = job.train(Training(learner, objective, job.views(), data.valid, plan), state)
    return job.save(learner, extra, Preprocess.from_recipe(recipe.data))


def has_control(recipe: Recipe, model_dir: ModelDir, data: TrainingData, options: TrainingOptions) -> bool:
    """Whether `train_control` will find an up-to-date one."""
    return _control_job(recipe, model_dir, data, options).is_up_to_date()


def student_settings(
    recipe: Recipe, dataset: Dataset, teacher_file: Path, unlabelled_set_sha256: str | None = None
) -> dict[str, Any]:
    """The settings that decide the result: the same ones make the same student."""
    return {
        "recipe_sha256": recipe.fingerprint("data", "student", "distill"),
        "dataset_sha256": dataset.sha256,
        "teacher_sha256": sha256_file(teacher_file),
        "unlabelled_set_sha256": unlabelled_set_sha256,
    }


def _unlabelled_facts(data: TrainingData) -> dict[str, Any]:
    """What the student's file says about the unlabelled images; nothing if there were none, as in earlier files."""
    if data.unlabelled is None:
        return {}
    return {"unlabelled_images": len(data.unlabelled), "unlabelled_set_sha256": data.unlabelled_set_sha256}


def control_settings(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """The settings that decide the control."""
    return {"recipe_sha256": recipe.control_fingerprint(), "dataset_sha256": dataset.sha256}


def _control_job(recipe: Recipe, model_dir: ModelDir, data: TrainingData, options: TrainingOptions) -> TrainingJob:
    return TrainingJob("control", recipe, model_dir, data, control_settings(recipe, data.dataset), options)


def _plan(job: TrainingJob, role: Role, precision: Arithmetic, teacher_precision: Arithmetic = "fp32") -> Plan:
    section = job.recipe.distill
    return Plan(
        role=role,
        section=section,
        image_size=job.recipe.data.image_size,
        precision=precision,
        teacher_precision=teacher_precision,
        seed=job.recipe.training.seed,
        device=job.options.device,
        compile=job.recipe.training.compile,
        teacher_views=section.teacher_views,
    )


def _new_student(job: TrainingJob) -> Classifier:
    recipe = job.recipe
    torch.manual_seed(recipe.training.seed)
    network = NetworkSpec.of(recipe.student).build(job.data.num_classes, recipe.data.image_size)
    network = distributed.synchronize_batch_norms(network, job.options.device)
    job.require_trainable(network)
    return Classifier(network, recipe.data.mean, recipe.data.std)


def _tap(recipe: Recipe, student: Classifier, teacher: Classifier) -> tuple[TappedNetwork, TappedNetwork]:
    """Student and teacher with the taps that the method wants; fitnets' projections belong to the student."""
    section, size = recipe.distill, recipe.data.image_size
    if not section.feature_method:
        return TappedNetwork(student, ()), TappedNetwork(teacher, ())
    if has_file(teacher.network):
        raise RecipeError(
            f"{section.feature_method} reads the teacher's layers, and an imported ONNX file shows none",
            f"use a method of logits: distill.method={section.logit_method or 'kd'}",
        )
    teacher_size = recipe.data_of("teacher").image_size
    student_taps = section.student_taps or (default_tap(student.network, size),)
    teacher_taps = section.teacher_taps or (default_tap(teacher.network, teacher_size),)
    console.say(f"{section.feature_method}: {', '.join(teacher_taps)} of the teacher → {', '.join(student_taps)}")
    tapped_teacher = TappedNetwork(teacher, teacher_taps, setting="distill.teacher_taps")
    channels = None
    if FEATURE_METHODS[section.feature_method].projected:
        channels = tap_channels(teacher.network, teacher_taps, teacher_size)
    return TappedNetwork(
        student, student_taps, project_to=channels, image_size=size, setting="distill.student_taps"
    ), tapped_teacher


def _load_teacher(job: TrainingJob, path: Path) -> tuple[Classifier, ModelInfo]:
    """The network in `path`, frozen. Raises WeightsError unless its classes are the data's."""
    teacher, info = load_model(path)
    require_same_classes(info.classes, job.data.dataset, path.name, OTHER_CLASSES)
    if not isinstance(teacher.network, Answers):
        _require_same_size(teacher, info, job.recipe.data_of("teacher").image_size, path.name)
    return teacher.requires_grad_(False), info


def _open_teacher(
    job: TrainingJob, tapped: TappedNetwork, views: TrainingViews | MixedViews, chosen: Arithmetic | None, folds: Folds
) -> tuple[Teacher, Arithmetic]:
    """The teacher, stored or live, and the arithmetic of its answers: `chosen` by an interrupted run, or else now.

    If it was trained in `folds`, each image is answered by the part that has not seen it, and unlabelled ones
    by all of them.
    """
    if isinstance(tapped.classifier.network, Answers):
        return replay_answers(job, tapped.classifier.network), "fp32"
    if job.data.for_teacher is not None:
        views = job.views_of_teacher()
    labelled = views.of_labelled if isinstance(views, MixedViews) else views
    precision = find_stored_answers(job, views, chosen)
    if precision is None:
        # answers for the labelled images alone may be stored: the others are computed in their arithmetic
        chosen = chosen or find_stored_answers(job, labelled, None)
        tapped, precision = _choose_arithmetic(job, tapped, labelled, chosen, folds)
    live = partial(_live, job, tapped, precision)
    if job.recipe.distill.stored_views:
        first, *others = _stores(job, views)
        stored: Teacher = first.open(partial(live, first.views, folds), precision)
        for store in others:
            assert isinstance(views, MixedViews)
            stored = MixedTeacher(stored, store.open(partial(live, store.views, None), precision), views.portions)
        return stored, precision
    if job.recipe.distill.teacher_views:
        console.say("a teacher's layers are not stored: it runs live, on the same views")
    if folds is not None and isinstance(views, MixedViews):
        return MixedTeacher(live(labelled, folds), live(views.of_unlabelled, None), views.portions), precision
    return live(views, folds), precision


def _live(
    job: TrainingJob, tapped: TappedNetwork, precision: Arithmetic, views: TrainingViews | MixedViews, folds: Folds
) -> Teacher:
    valid, own_views = job.data.seen_by("teacher").valid, job.data.for_teacher is not None
    whole = LiveTeacher(tapped, views, valid, precision, own_views=own_views)
    if folds is None:
        return whole
    network = tapped.classifier.network
    assert isinstance(network, Ensemble)
    assert isinstance(views, TrainingViews)
    members = [
        LiveTeacher(TappedNetwork(member), views, valid, precision, own_views=own_views)
        for member in network.classifiers
    ]
    return OutOfFoldTeacher(members, folds, whole)


def _choose_arithmetic(
    job: TrainingJob, tapped: TappedNetwork, views: TrainingViews, chosen: Arithmetic | None, folds: Folds
) -> tuple[TappedNetwork, Arithmetic]:
    """The teacher in that arithmetic, and which it is."""
    teacher = tapped.classifier
    if has_file(teacher.network):
        return tapped, "fp32"  # of what it takes and gives; inside, the file has its own
    if chosen is not None:
        answering, precision = teacher_in(chosen, teacher, views), chosen
    elif folds is not None:
        return tapped, job.choose_precision(teacher, training=False)
    else:
        choose_float = partial(job.choose_precision, teacher, training=False)
        answering, precision = choose_teacher(job.recipe, choose_float, teacher, views)
    return (TappedNetwork(answering) if answering is not teacher else tapped), precision


def _know_all_classes(
    answering: Teacher, teacher: Classifier, job: TrainingJob, views: TrainingViews | MixedViews
) -> Teacher:
    """The teacher; behind labels for images of classes that it does not know, if there are any."""
    unknown = registry.spec_of(teacher.network).unknown
    if not unknown:
        return answering
    require_no_unknown_classes(job.recipe)
    assert isinstance(views, TrainingViews), "unlabelled images need all classes"
    if isinstance(teacher.network, Answers):
        return answering  # labels are among its answers
    return TeacherOfSomeClasses(answering, unknown, job.recipe.distill.temperature, views, job.data.valid.labels)


def find_stored_answers(
    job: TrainingJob, views: TrainingViews | MixedViews, chosen: Arithmetic | None
) -> Arithmetic | None:
    """The arithmetic of stored logits that may be replayed: with it, nothing is chosen and no other store is filled.

    `views` are the teacher's.
    """
    section = job.recipe.distill
    if not section.stored_views:
        return None
    wishes = (chosen, section.teacher_precision, job.recipe.training.precision)
    precisions: list[Arithmetic] = [wish for wish in wishes if wish is not None and wish != "auto"][:1]
    found: Arithmetic | None = None
    for store in _stores(job, views):
        if (found := store.find(precisions or ("bf16", "int8", "fp32"))) is None:
            return None
        precisions = [found]
    return found


def _stores(job: TrainingJob, views: TrainingViews | MixedViews) -> list[LogitStore]:
    """Of the labelled images, and of the unlabelled ones if there are any, in as many views as are shown."""
    teacher_sha256, dataset_sha256 = job.settings["teacher_sha256"], job.settings["dataset_sha256"]
    valid, count = job.data.seen_by("teacher").valid, job.recipe.distill.stored_views
    if not isinstance(views, MixedViews):
        return [LogitStore(teacher_sha256, dataset_sha256, views, valid, count)]
    assert job.data.unlabelled_set_sha256 is not None
    others = views.of_unlabelled, None, views.portions.view_of(count - 1) + 1
    return [
        LogitStore(teacher_sha256, dataset_sha256, views.of_labelled, valid, count),
        LogitStore(teacher_sha256, job.data.unlabelled_set_sha256, *others),
    ]


def _require_same_size(teacher: Classifier, info: ModelInfo, image_size: int, file_name: str) -> None:
    """Warn if the teacher will see images of another size than in training. RecipeError if it cannot take them."""
    trained = info.preprocess.image_size
    if trained == image_size:
        return
    prove_size(
        teacher,
        image_size,
        f"{file_name}, trained at {trained} px, cannot take images of {image_size} px",
        f"use teacher.image_size={trained}, or train a teacher at {image_size} px with toolkit teacher --force",
    )
    console.say(f"warning: {file_name} was trained at {trained} px and teaches at {image_size} px")
