"""The work that is to do and the work that is done: all facts that a forecast needs besides speeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from toolkit import control_process
from toolkit.architectures import ANSWERS
from toolkit.data.dataset import Split
from toolkit.data.mixed_views import Portions
from toolkit.data.pixels import bytes_to_decode, unlabelled_bytes_to_decode
from toolkit.data.preprocess import Preprocess
from toolkit.data.unlabelled import known_copies
from toolkit.distill import distributed, provenance
from toolkit.distill.answers import is_answered
from toolkit.distill.job import TrainingData, TrainingJob, TrainingOptions
from toolkit.distill.student import control_settings, find_stored_answers, student_settings
from toolkit.distill.teacher import require_same_network, teacher_settings, with_folds
from toolkit.machine.limits import available_cores
from toolkit.modeldir import ModelDir, Role
from toolkit.networks.weights import read_info
from toolkit.recipe import Recipe
from toolkit.settings import FOOD_11
from toolkit.stage_setup import StageSetup, with_control

Command = Literal["teacher", "distill", "run"]
SeededRole = tuple[Role, int]
"""A role and its seed."""


@dataclass(frozen=True)
class Facts:
    """Facts of one command on one data set and model directory.

    `answered`: the teacher is a file of answers. `known_accuracy`: a given teacher's file states its accuracy. `cores`:
    those that this process may use. `to_decode` holds bytes of the splits that are not in the cache yet; `decoders`
    threads decode them. `there` are the networks that are up to date, `stored` the seeds whose teacher logits are
    stored, `epochs_done` the epochs of an interrupted run. `room_for_two`: student and control may train side by side
    (control_process.py). `unlabelled`: images without labels, of which so many bytes are not decoded yet.
    """

    command: Command
    images: Mapping[Split, int]
    num_classes: int
    seeds: tuple[int, ...] = (0,)
    control: bool = True
    given_teacher: bool = False
    answered: bool = False
    known_accuracy: bool = False
    processes: int = 1
    decoders: int = 1
    cores: int = 1
    on_gpu: bool = False
    room_for_two: bool = False
    to_decode: Mapping[Split, int] = field(default_factory=dict)
    there: frozenset[SeededRole] = frozenset()
    stored: frozenset[int] = frozenset()
    epochs_done: Mapping[SeededRole, int] = field(default_factory=dict)
    unlabelled: int = 0
    unlabelled_bytes: int = 0

    def portions(self, recipe: Recipe) -> Portions | None:
        """How unlabelled images join the student's batches; None without any."""
        if not self.unlabelled:
            return None
        section, least = recipe.distill, 2 * self.processes
        return Portions(section.unlabelled_ratio, self.images["train"], self.unlabelled, section.batch_size, least)

    def paired(self, recipe: Recipe) -> tuple[int, ...]:
        """Seeds whose student and control will train side by side, with half of the threads each."""
        if not (self.control and self.room_for_two and recipe.distill.stored_views):
            return ()
        return tuple(seed for seed in self.seeds if not self.there & {("student", seed), ("control", seed)})

    def with_nothing_done(self) -> "Facts":
        """The same work by another recipe for the student: of the work that is done, only the teacher stays."""
        kept = frozenset(network for network in self.there if network[0] == "teacher")
        return replace(self, there=kept, stored=frozenset(), epochs_done={})


def find_facts(setup: StageSetup, command: Command) -> Facts:
    """Look at data, cache and model directory; make nothing, decode no image.

    Raises WeightsError if the teacher to be imported does not know the classes of the data, and ArtifactError if the
    teacher of the directory is another network than the recipe states.
    """
    recipe, splits = setup.recipe, setup.dataset.splits
    if command == "teacher" or not setup.model_dir.weights("teacher").exists():
        provenance.require_fitting(recipe, setup.dataset)  # to find its file may need a download
    wanted: tuple[Split, ...] = ("train", "valid", "test") if command == "run" else ("train", "valid")
    sizes = {split: _bytes_to_decode(setup, split) for split in wanted}
    facts = Facts(
        command=command,
        images={split: len(images) for split, images in splits.items()},
        num_classes=len(setup.dataset.classes),
        seeds=tuple(range(recipe.training.seed, recipe.training.seed + setup.seeds)),
        control=with_control(setup, by_default=command == "run"),
        given_teacher=provenance.is_given(recipe),
        answered=_has_answers(setup, command),
        known_accuracy=_states_accuracy(setup),
        processes=distributed.world_size(),
        decoders=recipe.data.workers or available_cores(),
        cores=available_cores(),
        on_gpu=setup.device != "cpu",
        room_for_two=control_process.has_room(setup.device, setup.recipe.student.architecture),
        to_decode={split: size for split, size in sizes.items() if size},
    )
    if command != "teacher":
        facts = _with_unlabelled(setup, facts)
    there, done = _look_at_teacher(setup, command)
    if command == "teacher" or ("teacher", recipe.training.seed) not in there:
        return replace(facts, there=there, epochs_done=done)
    stored: set[int] = set()
    for seed in facts.seeds:
        decoded = not facts.to_decode and not facts.unlabelled_bytes
        more_there, more_done, is_stored = _look_at_seed(setup, seed, decoded=decoded)
        there, done = there | more_there, done | more_done
        stored |= {seed} if is_stored else set()
    return replace(facts, there=there, epochs_done=done, stored=frozenset(stored))


def _has_answers(setup: StageSetup, command: Command) -> bool:
    """Whether the teacher that is there, or that will be made, is a file of answers."""
    file = setup.model_dir.weights("teacher")
    if command == "distill" and file.is_file():
        return read_info(file).architecture == ANSWERS
    return is_answered(setup.recipe)


def _with_unlabelled(setup: StageSetup, facts: Facts) -> Facts:
    """With the unlabelled images, without those that are left out if it is known which these are."""
    if (unlabelled := setup.unlabelled) is None:
        return facts
    table = known_copies(setup.dataset, unlabelled)
    images = unlabelled.images if table is None else table.kept(unlabelled.images)
    seen = {Preprocess.from_recipe(setup.recipe.data_of(role)) for role in ("student", "teacher")}
    size_bytes = sum(unlabelled_bytes_to_decode(images, unlabelled.sha256, preprocess) for preprocess in seen)
    return replace(facts, unlabelled=len(images), unlabelled_bytes=size_bytes)


def _bytes_to_decode(setup: StageSetup, split: Split) -> int:
    """For the student and, if it sees them at another size, for the teacher."""
    seen = {Preprocess.from_recipe(setup.recipe.data_of(role)) for role in ("student", "teacher")}
    return sum(bytes_to_decode(setup.dataset, split, preprocess) for preprocess in seen)


def _states_accuracy(setup: StageSetup) -> bool:
    """Whether the given teacher states its accuracy, so that nobody has to measure it; downloads nothing."""
    recipe = setup.recipe
    if not provenance.is_given(recipe) or recipe.teacher.weights == FOOD_11:
        return False
    source = provenance.find_weights(recipe)
    return source is not None and provenance.known_accuracy(source, recipe, setup.dataset) is not None


Progress = tuple[frozenset[SeededRole], dict[SeededRole, int]]


def _look_at_teacher(setup: StageSetup, command: Command) -> Progress:
    recipe = setup.recipe
    network: SeededRole = ("teacher", recipe.training.seed)
    if command == "distill" and (file := setup.model_dir.weights("teacher")).exists():
        require_same_network(file, recipe)
        provenance.require_known_folds(file, recipe, setup.dataset)
        return frozenset({network}), {}  # it teaches, however it was trained
    _, settings = teacher_settings(recipe, setup.dataset)
    job = with_folds(_training_job(setup, recipe, setup.model_dir, network, settings))
    whole = _look_at(network, job)
    if whole[0] or not job.parts:
        return whole
    looked = [_look_at(network, part) for part in job.parts]
    done = sum(recipe.teacher.epochs if there else epochs.get(network, 0) for there, epochs in looked)
    return frozenset(), {network: done} if done else {}


def _look_at_seed(
    setup: StageSetup, seed: int, *, decoded: bool
) -> tuple[frozenset[SeededRole], dict[SeededRole, int], bool]:
    """The networks of a seed that are there, their epochs, and whether the teacher's logits are stored."""
    recipe = setup.recipe.with_overrides([f"training.seed={seed}"])
    directory = setup.model_dir if seed == setup.recipe.training.seed else setup.model_dir.of_seed(seed)
    teacher_file = setup.model_dir.weights("teacher")
    student: SeededRole = ("student", seed)
    control: SeededRole = ("control", seed)
    unlabelled_set_sha256 = setup.unlabelled.sha256 if setup.unlabelled else None
    settings = student_settings(recipe, setup.dataset, teacher_file, unlabelled_set_sha256)
    taught = _training_job(setup, recipe, directory, student, settings)
    alone = _training_job(setup, recipe, directory, control, control_settings(recipe, setup.dataset))
    there, done = _look_at(student, taught)
    control_there, control_done = _look_at(control, alone)
    is_stored = False
    has_answers = read_info(teacher_file).architecture == ANSWERS
    if decoded and student not in there and recipe.distill.stored_views and not has_answers:
        taught = replace(taught, data=setup.training_data)
        is_stored = find_stored_answers(taught, taught.views_of_teacher(), None) is not None
    return there | control_there, done | control_done, is_stored


def _training_job(
    setup: StageSetup, recipe: Recipe, directory: ModelDir, network: SeededRole, settings: dict[str, object]
) -> TrainingJob:
    """The job as the stage itself sees it; its images are not decoded yet."""
    options = TrainingOptions(setup.device, setup.force, setup.resume)
    unread: TrainingData = TrainingData(setup.dataset, None, None)  # type: ignore[arg-type]
    return TrainingJob(network[0], recipe, directory, unread, settings, options)


def _look_at(network: SeededRole, training: TrainingJob) -> Progress:
    if training.is_up_to_date():
        return frozenset({network}), {}
    done = training.checkpoint.epochs_done() if training.options.resume else 0
    return frozenset(), ({network: done} if done else {})
