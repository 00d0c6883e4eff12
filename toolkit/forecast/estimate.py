"""The time of every stage, as a sum: the number of operations times the time of one.

Training is measured (speeds.py). Export and benchmark are modelled from measured forward passes, from their own
structure, and from the start-up times of processes and libraries.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from toolkit import console
from toolkit.bench.measure import timing
from toolkit.data.dataset import spread
from toolkit.distill.logit_store import ELEMENT_BYTES
from toolkit.distill.plan import image_size_of
from toolkit.distill.provenance import has_onnx
from toolkit.distill.quantized import INT8_SHARE, WORTH_S, may_answer_in_int8, views_to_answer
from toolkit.forecast.facts import Facts
from toolkit.forecast.forecast import Forecast, ForecastStage
from toolkit.modeldir import Role
from toolkit.recipe import Recipe
from toolkit.runtimes.opening import RUNTIMES
from toolkit.settings import StageRecipe
from toolkit.stage_setup import TRAINING_SAMPLE

MEASURED_SIZES = 3
"""Most sizes of growing images that are measured; between them time grows with the number of pixels."""

ONNX_SHARE, ONNX_SHARE_OF_ONE = 0.6, 0.3
"""onnxruntime's share of torch's time in fp32, for a batch (0.3 to 0.7 was seen) and for one image (0.1 to 0.3)"""
ONNX_START_S, TORCH_START_S, COMPILE_S = 0.6, 2.5, 60.0
"""s of a core until a new process has imported the runtime; until torch.compile has compiled a network"""
GRAPH_S = 2.0
"""s to turn a network into a graph, and to check it"""
REPORT_S = 3.0
"""s of a benchmark that are not measurement: opening files, counting, drawing, writing"""
QUIET_S = 0.05
"""s that a turn waits until the threads of the previous one are quiet"""
IMPORT_S = 0.5
"""s to read a given teacher and to write it into the model directory"""
INT8_MAKING_IMAGES, INT8_MAKING_S = 600, 4.0
"""Making a teacher in int8 takes as long as so many answers of the float one, plus so many seconds."""

CONTROL_START_S = 3.5
"""s until a control beside the student takes its first step (3.1 s of CPU time, default recipe, AMD EPYC)"""

THERE = "exists"
GIVEN = "given"
BESIDE = "beside the student"


class Speeds(Protocol):
    """s per image in this process, by a recipe: sizes, networks, batches and arithmetic come from it."""

    def decode_s(self, recipe: Recipe) -> float:
        """Decoding and resizing, on one core."""

    def train_s(self, recipe: Recipe, role: Role, side: int) -> float:
        """A step on images of `side` px: view, forward, backward, optimiser; without the teacher."""

    def view_s(self, recipe: Recipe, role: Role) -> float:
        """A view of full size, for the student's training."""

    def validate_s(self, recipe: Recipe, role: Role) -> float:
        """Forward at full size in fp32, with the threads and batches of `role`'s training."""

    def teach_s(self, recipe: Recipe) -> float:
        """The teacher's forward at full size, in the float arithmetic of its answers to the student."""

    def answer_s(self, recipe: Recipe, role: Role, batch: int) -> float:
        """Forward at full size in fp32, as benchmark and export use it."""

    def save_s(self, recipe: Recipe, role: Role) -> float:
        """An epoch's checkpoint, in s."""

    def weights_bytes(self, recipe: Recipe, role: Role) -> int:
        """A network's file."""


def estimate(recipe: Recipe, facts: Facts, speeds: Speeds, measured: str = "") -> Forecast:
    """The forecast of `facts.command` by `recipe`."""
    adder = _Adder(recipe, facts, speeds)
    stages: list[ForecastStage | None] = [adder.decode(), adder.unlabelled(), adder.teacher()]
    if facts.command != "teacher":
        stages += [adder.logits(), adder.student("student")]
        stages += [adder.control()] if facts.control else []
    if facts.command == "run":
        stages += [adder.export(), adder.bench()]
    return Forecast(tuple(stage for stage in stages if stage is not None), measured)


class _Adder:
    """Each method is one stage; None if the recipe has no such stage."""

    def __init__(self, recipe: Recipe, facts: Facts, speeds: Speeds) -> None:
        self._recipe, self._facts, self._speeds = recipe, facts, speeds
        self._train, self._valid, self._test = (facts.images[split] for split in ("train", "valid", "test"))
        self._full, self._teachers = recipe.data.image_size, recipe.data_of("teacher").image_size
        self._portions = facts.portions(recipe)

    def decode(self) -> ForecastStage:
        stage = ForecastStage("decode", self._train + self._valid + self._test * (self._facts.command == "run"))
        missing = sum(self._facts.images[split] for split in self._facts.to_decode)
        if not missing:
            return replace(stage, note=THERE)
        times = 1 + (self._teachers != self._full)
        seconds = missing * times * self._speeds.decode_s(self._recipe) / self._facts.decoders
        return replace(stage, seconds=seconds, disk_bytes=sum(self._facts.to_decode.values()))

    def unlabelled(self) -> ForecastStage | None:
        """Unlabelled images are read twice, also to find copies of the labelled ones, which are read for that too."""
        if not self._facts.unlabelled:
            return None
        stage = ForecastStage("unlabelled", self._facts.unlabelled)
        if not self._facts.unlabelled_bytes:
            return replace(stage, note=THERE)
        times = 1 + (self._teachers != self._full)
        reads = self._facts.unlabelled * (1 + times) + self._train + self._valid + self._test
        seconds = reads * self._speeds.decode_s(self._recipe) / self._facts.decoders
        return replace(stage, seconds=seconds, disk_bytes=self._facts.unlabelled_bytes)

    def teacher(self) -> ForecastStage:
        facts, speeds, recipe = self._facts, self._speeds, self._recipe
        if self._is_there("teacher", self._facts.seeds[0]):
            return ForecastStage("teacher", self._valid if facts.given_teacher else self._train, note=THERE)
        if facts.answered:
            images = self._train + self._valid
            return ForecastStage(
                "teacher", images, seconds=IMPORT_S, disk_bytes=images * facts.num_classes * ELEMENT_BYTES, note=GIVEN
            )
        size_bytes = speeds.weights_bytes(recipe, "teacher")
        if facts.given_teacher:
            asked = 0 if facts.known_accuracy else self._valid
            seconds = IMPORT_S + asked * speeds.answer_s(recipe, "teacher", recipe.teacher.batch_size)
            return ForecastStage("teacher", self._valid, (self._teachers,) * 2, 0, seconds, size_bytes, GIVEN)
        stage = self._training("teacher", recipe.teacher, facts.seeds[:1], size_bytes)
        if not (folds := recipe.teacher.folds):
            return stage
        done = facts.epochs_done.get(("teacher", facts.seeds[0]), 0)
        note = f"{folds} folds" + (f", {done} of {folds * recipe.teacher.epochs} epochs done" if done else "")
        return replace(stage, seconds=self._folds_s(done), disk_bytes=2 * folds * size_bytes, note=note)

    def logits(self) -> ForecastStage | None:
        """The store of the teacher's logits; a live teacher's answers are part of the student's steps."""
        views = self._recipe.distill.stored_views
        seeds = [seed for seed in self._facts.seeds if not self._is_there("student", seed)]
        if not views or not seeds or self._facts.answered:
            return None
        shown = self._train * views
        if self._portions:
            shown += self._portions.unlabelled * (self._portions.view_of(views - 1) + 1)
        stage = ForecastStage("teacher logits", shown, (self._teachers,) * 2)
        seeds = [seed for seed in seeds if seed not in self._facts.stored]
        if not seeds:
            return replace(stage, note=THERE)
        rows = shown + self._valid
        view_s = shown * self._speeds.view_s(self._recipe, "teacher")
        seconds = (view_s + self._asked_s(rows)) / self._facts.processes
        size_bytes = rows * self._facts.num_classes * ELEMENT_BYTES
        return _of_seeds(stage, len(seeds), seconds * len(seeds), size_bytes * len(seeds))

    def student(self, role: Role) -> ForecastStage:
        seeds = [seed for seed in self._facts.seeds if not self._is_there(role, seed)]
        if not seeds:
            return ForecastStage(role, self._train, note=THERE)
        size_bytes = self._speeds.weights_bytes(self._recipe, "student")
        return self._training(role, self._recipe.distill, seeds, size_bytes)

    def control(self) -> ForecastStage:
        """Beside the student, only the time that the control takes longer counts; its process has to start first."""
        stage, done = self.student("control"), self._facts.epochs_done
        if not (paired := self._facts.paired(self._recipe)):
            return stage
        section = self._recipe.distill

        def left_s(role: Role, seed: int) -> float:
            return self._epochs_s(role, section, range(done.get((role, seed), 0), section.epochs))

        spared = sum(min(left_s("student", seed), CONTROL_START_S + left_s("control", seed)) for seed in paired)
        note = ", ".join(filter(None, (stage.note, BESIDE)))
        return replace(stage, seconds=max(0.0, stage.seconds + CONTROL_START_S * len(paired) - spared), note=note)

    def export(self) -> ForecastStage:
        images = min(self._recipe.export.images, self._valid)
        roles = self._exported()
        answers = sum(self._speeds.answer_s(self._recipe, role, 64) for role in roles)
        seconds = len(roles) * (GRAPH_S + ONNX_START_S) + images * answers * (1 + ONNX_SHARE)
        size_bytes = sum(self._speeds.weights_bytes(self._recipe, role) for role in roles)
        return ForecastStage("export", images, (self._full,) * 2, 0, seconds, size_bytes)

    def bench(self) -> ForecastStage:
        recipe = self._recipe.bench
        images = min(recipe.images or self._test, self._test)
        rows = list(self._rows())
        batches = sorted({1, *recipe.batch_sizes})
        side_by_side = 1 if self._facts.on_gpu else min(self._facts.cores, len(rows))
        seconds = REPORT_S + sum(start_s for _, _, start_s in rows) / side_by_side
        whole = [self._speeds.decode_s(self._recipe)]
        for role, in_onnx, _ in rows:
            one, many = (self._answer_s(role, batch, in_onnx=in_onnx) for batch in (1, max(batches)))
            seconds += images * many + one + max(batches) * many
            for batch in batches:
                run_s = one if batch == 1 else batch * many
                seconds += timed_s(run_s, -(-recipe.samples // batch), recipe.seconds)
            whole += [whole[0] + one] if in_onnx else []
        seconds += sum(timed_s(run_s, recipe.samples, recipe.seconds) for run_s in whole)
        again = (len(self._facts.seeds) - 1) * self._facts.control * 2 * images
        seconds += again * self._speeds.answer_s(self._recipe, "student", max(batches))
        sample = min(TRAINING_SAMPLE, self._train)
        asked: list[Role] = ["teacher", "student", *(["control"] if self._facts.control else [])]  # type: ignore[list-item]
        if self._facts.answered:
            asked = []  # without a teacher nobody asks for what it knew
        seconds += sum(sample * self._answer_s(role, max(batches), in_onnx=role != "control") for role in asked)
        return ForecastStage("bench", images, (self._full,) * 2, 0, seconds, note=console.count(len(rows), "row"))

    def _answer_s(self, role: Role, batch: int, *, in_onnx: bool) -> float:
        share = (ONNX_SHARE_OF_ONE if batch == 1 else ONNX_SHARE) if in_onnx else 1.0
        return share * self._speeds.answer_s(self._recipe, role, batch)

    def _rows(self) -> Iterable[tuple[Role, bool, float]]:
        """For each row of the report its network, whether it is an ONNX file, and s to start it once."""
        exported = self._exported()
        measured = exported + exported[-1:] * self._facts.control
        for number, role in enumerate(measured):
            for runtime in self._recipe.bench.runtimes:
                if RUNTIMES[runtime].reads == "weights":
                    if role == "teacher" and has_onnx(self._recipe):
                        continue  # torch cannot run it
                    starting = TORCH_START_S + (2 * COMPILE_S if RUNTIMES[runtime].compiles else 0)
                    yield from [(role, False, starting)] * len(RUNTIMES[runtime].precisions(on_gpu=self._facts.on_gpu))
                elif number < len(exported):  # the control is not exported
                    yield role, True, ONNX_START_S

    def _exported(self) -> list[Role]:
        return ["student"] if self._facts.answered else ["teacher", "student"]

    def _training(self, role: Role, section: StageRecipe, seeds: Sequence[int], size_bytes: int) -> ForecastStage:
        done = [self._facts.epochs_done.get((role, seed), 0) for seed in seeds]
        seconds = sum(self._epochs_s(role, section, range(first, section.epochs)) for first in done)
        full = self._recipe.data_of(role).image_size
        sizes = (image_size_of(0, section, full), full)
        stage = ForecastStage(role, self._images_per_epoch(role), sizes, section.epochs)
        stage = _of_seeds(stage, len(seeds), seconds, size_bytes * len(seeds))
        notes = [stage.note] if stage.note else []
        if role == "student" and self._portions:
            notes.append(f"{self._portions.ratio:g} unlabelled per labelled image")
        notes = [f"resumes after epoch {done[0]}"] if done[0] else notes
        return replace(stage, note=", ".join(notes))

    def _images_per_epoch(self, role: Role) -> int:
        return self._train + (self._portions.per_epoch if role == "student" and self._portions else 0)

    def _folds_s(self, done: int) -> float:
        """s of the teachers of all folds after so many epochs of them together; each sees all folds but one."""
        section = self._recipe.teacher
        whole = self._epochs_s("teacher", section, range(section.epochs))
        return max(0.0, whole * (section.folds - 1) * (1 - done / (section.epochs * section.folds)))

    def _epochs_s(self, role: Role, section: StageRecipe, epochs: range) -> float:
        recipe, speeds = self._recipe, self._speeds
        full = recipe.data_of(role).image_size
        sides = [image_size_of(epoch, section, full) for epoch in epochs]
        train_s = interpolate(sides, lambda side: speeds.train_s(recipe, role, side))
        shown = self._images_per_epoch(role)
        seconds = sum(shown * train_s[side] for side in sides) / self._facts.processes
        seconds += len(sides) * self._valid * speeds.validate_s(recipe, role) / self._facts.processes
        seconds += len(sides) * speeds.save_s(recipe, role)
        if role == "student" and not self._recipe.distill.stored_views and not self._facts.answered:
            grown = sum(side != self._teachers for side in sides)  # for these the teacher needs a view of its own
            seconds += grown * shown * speeds.view_s(recipe, "teacher") / self._facts.processes
            seconds += self._asked_s(len(sides) * shown + self._valid) / self._facts.processes
        return seconds

    def _asked_s(self, answers: int) -> float:
        """s that the teacher needs for so many answers, in int8 if that is likely."""
        one = self._speeds.teach_s(self._recipe)
        distill = self._recipe.distill
        if distill.teacher_precision == "int8":
            return answers * one * INT8_SHARE + INT8_MAKING_IMAGES * one + INT8_MAKING_S
        device = "cuda" if self._facts.on_gpu else "cpu"
        if may_answer_in_int8(self._recipe, device) and self._train * views_to_answer(distill) * one >= WORTH_S:
            return answers * one * INT8_SHARE + INT8_MAKING_IMAGES * one + INT8_MAKING_S
        return answers * one

    def _is_there(self, role: Role, seed: int) -> bool:
        return (role, seed) in self._facts.there


def timed_s(run_s: float, samples: int, seconds: float) -> float:
    """s that bench/timing.py takes for one row: warm-up, waiting and settling in every round, and the timed runs."""
    window = 2 * timing.WINDOW
    warm_up = run_s + min(1.5 * window * run_s, max(seconds / 10, run_s))
    settling = timing.ROUNDS * (QUIET_S + max(timing.SETTLE_MS / 1e3, run_s))
    timed = max(min(max(samples, timing.ROUNDS) * run_s, seconds), min(timing.MIN_SECONDS, seconds), run_s)
    return warm_up + settling + timed


def interpolate(sides: Sequence[int], measure: Callable[[int], float]) -> dict[int, float]:
    """`measure(side)` for each of `sides` (px): measured for at most 3 of them, linear in the pixels in between."""
    different = sorted(set(sides))
    if not different:
        return {}
    known = {different[place]: measure(different[place]) for place in spread(len(different), MEASURED_SIZES)}
    pixels, values = [side**2 for side in known], list(known.values())
    return {side: float(np.interp(side**2, pixels, values)) for side in different}


def _of_seeds(stage: ForecastStage, seeds: int, seconds: float, size_bytes: int) -> ForecastStage:
    note = console.count(seeds, "seed") if seeds > 1 else ""
    return replace(stage, seconds=seconds, disk_bytes=size_bytes, note=note)
