"""The distillation stage: the student learns from labels and a frozen teacher, its control from labels alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset
from toolkit.data.preprocess import Preprocess
from toolkit.distill import distributed
from toolkit.distill.answering import replay_answers
from toolkit.distill.features import TappedNetwork, default_tap, tap_channels
from toolkit.distill.job import TrainingData, TrainingJob, TrainingOptions, WeightsFile, prove_size
from toolkit.distill.logit_store import LogitStore
from toolkit.distill.objective import FEATURE_METHODS, learn_from_labels, learn_from_teacher
from toolkit.distill.plan import Plan
from toolkit.distill.precision import Arithmetic
from toolkit.distill.provenance import require_same_classes
from toolkit.distill.quantized import choose_teacher, teacher_in
from toolkit.distill.teachers import LiveTeacher, Teacher, TeacherOfSomeClasses
from toolkit.distill.training import Training
from toolkit.errors import RecipeError
from toolkit.files import sha256_file
from toolkit.modeldir import ModelDir, Role
from toolkit.networks import registry
from toolkit.networks.class_map import UNKNOWN
from toolkit.networks.classifier import Classifier
from toolkit.networks.of_answers import Answers
from toolkit.networks.registry import NetworkSpec, has_file
from toolkit.networks.weights import ModelInfo, load_model, read_info
from toolkit.recipe import Recipe

OTHER_CLASSES = "give the teacher's training data, or train one here with `toolkit teacher --force`"
"""The remedy for a teacher with other classes than the data's."""


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
    settings = student_settings(recipe, data.dataset, teacher_file)
    job = TrainingJob("student", recipe, model_dir, data, settings, options)
    if kept := job.kept():
        return kept
    state = job.saved_state()
    teacher = _load_teacher(job, teacher_file)
    learner, tapped_teacher = _tap(recipe, _new_student(job), teacher)
    precision = state.precision if state else job.choose_precision(learner.classifier)
    views = job.views()
    answering, teacher_precision = _open_teacher(job, tapped_teacher, views, state.teacher_precision if state else None)
    answering = _know_all_classes(answering, teacher, job, views)
    plan = _plan(job, "student", precision, teacher_precision)
    training = Training(learner, learn_from_teacher(recipe.distill), views, data.valid, plan, answering)
    with beside(precision):
        extra = job.train(training, state)
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
    objective = learn_from_labels(recipe.distill.label_smoothing)
    extra = job.train(Training(learner, objective, job.views(), data.valid, plan), state)
    return job.save(learner, extra, Preprocess.from_recipe(recipe.data))


def has_control(recipe: Recipe, model_dir: ModelDir, data: TrainingData, options: TrainingOptions) -> bool:
    """Whether `train_control` will find an up-to-date one."""
    return _control_job(recipe, model_dir, data, options).is_up_to_date()


def student_settings(recipe: Recipe, dataset: Dataset, teacher_file: Path) -> dict[str, Any]:
    """The settings that decide the result: the same ones make the same student."""
    return {
        "recipe_sha256": recipe.fingerprint("data", "student", "distill"),
        "dataset_sha256": dataset.sha256,
        "teacher_sha256": sha256_file(teacher_file),
    }


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


def _load_teacher(job: TrainingJob, path: Path) -> Classifier:
    """The network in `path`, frozen. Raises WeightsError unless its classes are the data's."""
    teacher, info = load_model(path)
    require_same_classes(info.classes, job.data.dataset, path.name, OTHER_CLASSES)
    if not isinstance(teacher.network, Answers):
        _require_same_size(teacher, info, job.recipe.data_of("teacher").image_size, path.name)
    return teacher.requires_grad_(False)


def _open_teacher(
    job: TrainingJob, tapped: TappedNetwork, views: TrainingViews, chosen: Arithmetic | None
) -> tuple[Teacher, Arithmetic]:
    """The teacher, stored or live, and the arithmetic of its answers: `chosen` by an interrupted run, or else now."""
    recipe, teacher = job.recipe, tapped.classifier
    if isinstance(teacher.network, Answers):
        return replay_answers(job, teacher.network), "fp32"
    own_views = job.data.for_teacher is not None
    views = job.views_of_teacher() if own_views else views
    precision = find_stored_answers(job, views, chosen)
    if precision is None and has_file(teacher.network):
        precision = "fp32"  # of what it takes and gives; inside, the file has its own
    elif precision is None:
        if chosen is not None:
            answering, precision = teacher_in(chosen, teacher, views), chosen
        else:
            choose_float = partial(job.choose_precision, teacher, training=False)
            answering, precision = choose_teacher(recipe, choose_float, teacher, views)
        if answering is not teacher:
            tapped = TappedNetwork(answering)
    if recipe.distill.stored_views:
        return _store(job, views).open(tapped, precision), precision
    if recipe.distill.teacher_views:
        console.say("a teacher's layers are not stored: it runs live, on the same views")
    valid = job.data.seen_by("teacher").valid
    return LiveTeacher(tapped, views, valid, precision, own_views=own_views), precision


def _know_all_classes(answering: Teacher, teacher: Classifier, job: TrainingJob, views: TrainingViews) -> Teacher:
    """The teacher; behind labels for images of classes that it does not know, if there are any."""
    columns, section = registry.spec_of(teacher.network).columns, job.recipe.distill
    unknown = [place for place, column in enumerate(columns) if column == UNKNOWN]
    if not unknown:
        return answering
    if section.standardize:
        raise RecipeError(
            "distill.standardize needs a teacher that knows all classes of the data",
            "use distill.standardize=false",
        )
    if isinstance(teacher.network, Answers):
        return answering  # labels are among its answers
    return TeacherOfSomeClasses(answering, unknown, section.temperature, views, job.data.valid.labels)


def find_stored_answers(job: TrainingJob, views: TrainingViews, chosen: Arithmetic | None) -> Arithmetic | None:
    """The arithmetic of stored logits that may be replayed: with it, nothing is chosen and no other store is filled.

    `views` are the teacher's.
    """
    section = job.recipe.distill
    if not section.stored_views:
        return None
    wishes = (chosen, section.teacher_precision, job.recipe.training.precision)
    precisions: list[Arithmetic] = [wish for wish in wishes if wish is not None and wish != "auto"][:1]
    return _store(job, views).find(precisions or ("bf16", "int8", "fp32"))


def _store(job: TrainingJob, views: TrainingViews) -> LogitStore:
    shas = job.settings["teacher_sha256"], job.settings["dataset_sha256"]
    return LogitStore(*shas, views, job.data.seen_by("teacher").valid, job.recipe.distill.stored_views)


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
