"""A recipe that fits into so many minutes: it gives up epochs first, then views, then sizes, then training images.

Epochs keep the recipe's proportion between teacher and student, and every schedule runs to its end. Only if fewer than
FEWEST_EPOCHS would be left, the next thing is given up too, one after another.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit import console
from toolkit.data.dataset import Split
from toolkit.errors import RecipeError
from toolkit.forecast.estimate import Speeds, estimate
from toolkit.forecast.facts import Facts
from toolkit.forecast.forecast import Forecast
from toolkit.modeldir import Role
from toolkit.recipe import Recipe

AIM = 0.9
"""share of the minutes that the plan fills: no forecast is exact"""
FEWEST_EPOCHS = 5
"""or the recipe's own, if that has fewer; with less, other things are given up too"""

STORED_VIEWS = 4
START_SHARE = 0.6
"""share of the full size at which training begins"""
SIZE_SHARES = (0.75, 0.5)
SMALLEST_SIZE, SIZE_STEP = 32, 16
"""px; the student halves its images four times"""
IMAGE_SHARES = (0.5, 0.25, 0.1)

Settings = Mapping[str, Any]
"""section.key → value"""


@dataclass(frozen=True)
class RecipeChoice:
    """`recipe` with `overrides` applied, as --set takes them; `gave_up` says in words what they replace."""

    recipe: Recipe
    overrides: tuple[str, ...]
    gave_up: tuple[str, ...]
    forecast: Forecast


def fit(
    recipe: Recipe, facts: Facts, speeds: Speeds, minutes: float, spent_s: Callable[[], float] = lambda: 0.0
) -> RecipeChoice:
    """The recipe that takes AIM of `minutes`, of which `spent_s` are gone; unchanged if it fits already.

    The search estimates speeds of other sizes from those of the recipe's own size; only its result is measured. Raises
    RecipeError if not even one epoch fits; it names the shortest time that is enough.
    """

    def left_s() -> float:
        return minutes * 60 * AIM - spent_s()

    planned = estimate(recipe, facts, speeds)
    if planned.seconds <= left_s():
        return RecipeChoice(recipe, (), (), planned)
    ways = list(_give_up(recipe, facts))
    roughly = _RoughSpeeds(speeds, recipe)
    first = _find_first([_Trial(recipe, facts, roughly, settings) for settings, _ in ways], left_s())
    best, best_epochs, least_s = None, 0, math.inf
    for settings, gave_up in ways[first:]:
        trial = _Trial(recipe, facts, speeds, settings)
        least_s = min(least_s, trial.at(1).seconds)
        epochs = trial.most_epochs(left_s())
        if epochs > best_epochs:
            best, best_epochs = (trial, gave_up), epochs
        if epochs and trial.are_enough(epochs):
            break
    if best is None:
        raise _too_little(minutes, left_s(), least_s)
    trial, gave_up = best
    settings = trial.settings_of(best_epochs)
    overrides = tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    sentences = (*_describe_epochs(recipe, settings), *gave_up)
    return RecipeChoice(recipe.with_overrides(overrides), overrides, sentences, trial.at(best_epochs))


def _too_little(minutes: float, left_s: float, least_s: float) -> RecipeError:
    least = math.ceil((least_s + minutes * 60 * AIM - left_s) / AIM / 6) / 10
    return RecipeError(
        f"--minutes {minutes:g}: {console.duration(max(left_s, 0))} are left for the work, but one epoch of each takes"
        f" {console.duration(least_s)} even with the smallest images, fewest views and fewest images",
        f"give at least --minutes {least:g}, or a smaller network",
    )


def _find_first(trials: "Sequence[_Trial]", seconds: float) -> int:
    """The first trial that leaves enough epochs, else the one that leaves most, else the last."""
    epochs = [trial.most_epochs(seconds) for trial in trials]
    enough = (number for number, trial in enumerate(trials) if epochs[number] and trial.are_enough(epochs[number]))
    return next(enough, epochs.index(max(epochs)) if any(epochs) else len(trials) - 1)


class _RoughSpeeds:
    """Speeds of any size from those of the recipe's own size, in proportion to the pixels."""

    def __init__(self, speeds: Speeds, recipe: Recipe) -> None:
        self._speeds, self._recipe = speeds, recipe
        self.decode_s, self.save_s, self.weights_bytes = speeds.decode_s, speeds.save_s, speeds.weights_bytes

    def train_s(self, recipe: Recipe, role: Role, side: int) -> float:
        full = self._recipe.data.image_size
        return self._speeds.train_s(self._recipe, role, full) * (side / full) ** 2

    def view_s(self, recipe: Recipe, role: Role) -> float:
        return self._speeds.view_s(self._recipe, role) * self._share(recipe)

    def validate_s(self, recipe: Recipe, role: Role) -> float:
        return self._speeds.validate_s(self._recipe, role) * self._share(recipe)

    def teach_s(self, recipe: Recipe) -> float:
        return self._speeds.teach_s(self._recipe) * self._share(recipe)

    def answer_s(self, recipe: Recipe, role: Role, batch: int) -> float:
        return self._speeds.answer_s(self._recipe, role, batch) * self._share(recipe)

    def _share(self, recipe: Recipe) -> float:
        return (recipe.data.image_size / self._recipe.data.image_size) ** 2


class _Trial:
    """The recipe with some settings given up, and any number of epochs."""

    def __init__(self, recipe: Recipe, facts: Facts, speeds: Speeds, settings: Settings) -> None:
        self._recipe, self._speeds, self._settings = recipe, speeds, settings
        self._facts = _facts_of(recipe, facts, settings)
        self._trains_teacher = trains_teacher(facts)
        self._main = recipe.teacher.epochs if facts.command == "teacher" else recipe.distill.epochs
        """The epochs that are counted: the student's, and the teacher's in proportion."""

    def most_epochs(self, seconds: float) -> int:
        """The most epochs that fit, 0 if none does; by bisection, because each adds time."""
        low, high = 0, self._main
        while low < high:
            middle = (low + high + 1) // 2
            if self.at(middle).seconds <= seconds:
                low = middle
            else:
                high = middle - 1
        return low

    def are_enough(self, epochs: int) -> bool:
        chosen = self.settings_of(epochs)
        owned = {"teacher.epochs": self._recipe.teacher.epochs, "distill.epochs": self._recipe.distill.epochs}
        return all(chosen[name] >= min(FEWEST_EPOCHS, own) for name, own in owned.items() if name in chosen)

    def at(self, epochs: int) -> Forecast:
        overrides = [f"{name}={json.dumps(value)}" for name, value in self.settings_of(epochs).items()]
        return estimate(self._recipe.with_overrides(overrides), self._facts, self._speeds)

    def settings_of(self, epochs: int) -> Settings:
        settings = dict(self._settings)
        if self._facts.command != "teacher":
            settings["distill.epochs"] = epochs
        if self._trains_teacher:
            settings["teacher.epochs"] = max(1, round(self._recipe.teacher.epochs * epochs / self._main))
        return settings


def trains_teacher(facts: Facts) -> bool:
    """Whether the command trains a teacher: none is given, and none is up to date."""
    return not facts.given_teacher and ("teacher", facts.seeds[0]) not in facts.there


def _give_up(recipe: Recipe, facts: Facts) -> Iterator[tuple[Settings, tuple[str, ...]]]:
    """More and more settings, the most costly last, with a sentence for each."""
    settings: dict[str, Any] = {}
    sentences: list[str] = []
    yield dict(settings), tuple(sentences)
    for more, sentence in _steps(recipe, facts):
        settings |= more
        # of one kind, only the last one holds
        sentences = [earlier for earlier in sentences if earlier.partition(":")[0] != sentence.partition(":")[0]] + [
            sentence
        ]
        yield dict(settings), tuple(sentences)


def _steps(recipe: Recipe, facts: Facts) -> Iterator[tuple[Settings, str]]:
    size, distill = recipe.data.image_size, recipe.distill
    student = facts.command != "teacher"
    if student and distill.logit_method and not distill.feature_method:
        had = f"{distill.teacher_views} stored views" if distill.teacher_views else "a live teacher"
        for views in (STORED_VIEWS, 1):
            if not distill.teacher_views or views < distill.teacher_views:
                yield {"distill.teacher_views": views}, f"views: {console.count(views, 'stored view')} instead of {had}"
    start = _round_size(size * START_SHARE)
    if SMALLEST_SIZE <= start < size:
        names = [*(["teacher"] if trains_teacher(facts) else []), *(["distill"] if student else [])]
        growing = {f"{name}.start_image_size": start for name in names if not getattr(recipe, name).start_image_size}
        if growing:
            yield growing, f"first sizes: images grow from {start} px"
    if trains_teacher(facts):  # another teacher was trained at its own size
        yield from _smaller_sizes(recipe, student)
    is_there = ("teacher", facts.seeds[0]) in facts.there
    for share in (
        IMAGE_SHARES if facts.command == "distill" or not is_there else ()
    ):  # an existing teacher keeps its images
        if share < recipe.data.share:
            yield {"data.share": share}, f"images: {share:.0%} of the training images"


def _smaller_sizes(recipe: Recipe, student: bool) -> Iterator[tuple[Settings, str]]:
    size, resize = recipe.data.image_size, recipe.data.resize
    for share in SIZE_SHARES:
        smaller = _round_size(size * share)
        if smaller < SMALLEST_SIZE:
            return
        settings = {"data.image_size": smaller, "data.resize": math.ceil(resize * smaller / size)}
        for name in ("teacher", *(("distill",) if student else ())):
            start = getattr(recipe, name).start_image_size or _round_size(size * START_SHARE)
            settings[f"{name}.start_image_size"] = min(smaller, max(SMALLEST_SIZE, _round_size(start * share)))
        yield settings, f"size: {smaller} px instead of {size} px"


def _round_size(side: float) -> int:
    return int(side // SIZE_STEP) * SIZE_STEP


def _facts_of(recipe: Recipe, facts: Facts, settings: Settings) -> Facts:
    """The work by those settings: results of other settings are made again, except the teacher."""
    changed = facts.with_nothing_done()
    images, decode = dict(facts.images), dict(facts.to_decode)
    if (share := settings.get("data.share")) is not None:
        images["train"] = max(1, round(images["train"] * share / recipe.data.share))
        decode["train"] = round(facts.to_decode.get("train", 0) * share / recipe.data.share)
    if "data.resize" in settings:
        side = settings["data.resize"] or settings["data.image_size"]
        wanted: tuple[Split, ...] = ("train", "valid", "test") if facts.command == "run" else ("train", "valid")
        decode = {split: images[split] * side * side * 4 for split in wanted}  # 4 bytes a px: 3:4 in RGB
        changed = replace(changed, unlabelled_bytes=facts.unlabelled * side * side * 4)
    return replace(changed, images=images, to_decode={split: size for split, size in decode.items() if size})


def _describe_epochs(recipe: Recipe, settings: Settings) -> Iterator[str]:
    for name, whose in (("teacher", "the teacher"), ("distill", "student and control")):
        epochs, had = settings.get(f"{name}.epochs"), getattr(recipe, name).epochs
        if epochs is not None and epochs != had:
            yield f"epochs of {whose}: {epochs} instead of {had}"
