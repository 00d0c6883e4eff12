"""The recipe: all settings of a run. It is read from TOML, changed with overrides, and known by its fingerprint.

A TOML file has one table per section, and the command line changes settings with `--set section.key=value`. They are
declared in toolkit/settings.py, and their defaults hold without a file. The settings in FOLLOW_PICTURES are chosen from
the pictures instead, if nobody states them (toolkit/data/defaults.py). The recipes that ship with the toolkit
(`fashion-mnist`, the default, and `food11`, the notebook's settings) are `recipe.toml` files under `models/`.
"""

import contextlib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError, model_validator

from toolkit import console, shipped
from toolkit.architectures import owners_of, settings_of
from toolkit.errors import RecipeError, did_you_mean, shorten
from toolkit.settings import (
    FOOD_11,
    IMAGENET,
    OF_TEACHING,
    BenchRecipe,
    DataRecipe,
    DistillRecipe,
    ExportRecipe,
    NetworkRecipe,
    Section,
    StageRecipe,
    StudentRecipe,
    TeacherRecipe,
    TrainingRecipe,
    has_own_network,
)

DEFAULT_RECIPE = "fashion-mnist"
"""The recipe that is used, unless --recipe, --data or a model directory says otherwise."""

NOTEBOOK_RECIPE = "food11"

NOT_IN_FINGERPRINT = {
    "data.source",
    "data.layout",
    "data.workers",
    "teacher.weights",
    "teacher.classes",
    "distill.control",
    "data.unlabelled",
}
"""Settings that change no result: places and layout of files, whose SHA-256 with their labels counts instead, speed of
reading, other trainings."""

MOVED = {f"distill.{key}": f"training.{key}" for key in ("seed", "precision", "compile")}
"""The former place of a setting of both training stages, from before there was [training] → its present place."""

NEWER_SETTINGS = {
    "data.share": 1,
    "teacher.enlarge": None,
    "teacher.image_size": None,
    "teacher.classes": "",
    "teacher.folds": 0,
    "teacher.combine": "probabilities",
    "data.crop_scale": [1, 1],
    "data.crop_ratio": [0.75, 1.3333],
    "data.color_jitter": [0, 0, 0, 0],
    "data.grey": 0,
    "data.blur": 0,
    "data.blur_sigma": [0.0005, 0.009],
    "data.erasing": 0,
    "data.augment": "none",
    "data.augment_operations": 2,
    "data.augment_magnitude": 9,
    "teacher.cutmix": 0,
    "distill.cutmix": 0,
    "distill.unlabelled_ratio": 1,
    **{f"{section}.class_weights": "none" for section in ("teacher", "distill")},
    **{f"{section}.logit_adjustment": 0 for section in ("teacher", "distill")},
}
"""Settings that came later → the value that changes nothing: files of earlier versions stay up to date."""

FOLLOW_PICTURES = ("data.image_size", "data.resize", "data.crop_padding", "teacher.epochs", "distill.epochs")
"""Settings that are chosen from the training images if nobody states them; their defaults suit photographs."""

Overrides = Iterable[str] | Mapping[str, Any]
"""Settings for `Recipe.with_overrides`."""


class Recipe(Section):
    """All settings of a run. Immutable; `with_overrides` makes a changed copy."""

    data: DataRecipe = DataRecipe()
    training: TrainingRecipe = TrainingRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    distill: DistillRecipe = DistillRecipe()
    export: ExportRecipe = ExportRecipe()
    bench: BenchRecipe = BenchRecipe()

    @model_validator(mode="before")
    @classmethod
    def _move_settings(cls, values: Any) -> Any:
        return move_settings(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _layers_can_be_seen(self) -> Self:
        if self.training.compile != "off" and self.distill.feature_method:
            raise ValueError("a method of layers reads the networks as they run: set training.compile to off")
        return self

    @model_validator(mode="after")
    def _sizes_grow(self) -> Self:
        for name, role in (("teacher", "teacher"), ("distill", "student")):
            section, full_size = self.stage_of(role), self.data_of(role).image_size
            if section.start_image_size > full_size:
                owner = "data" if full_size == self.data.image_size else "teacher"
                raise ValueError(
                    f"{name}.start_image_size = {section.start_image_size} must not exceed"
                    f" {owner}.image_size = {full_size}"
                )
        return self

    @model_validator(mode="after")
    def _folds_are_trained(self) -> Self:
        if self.teacher.folds == 1:
            raise ValueError("teacher.folds = 1 would leave all images out: use 0, or 2 and more")
        if self.teacher.folds and (self.teacher.members or self.teacher.source not in ("", IMAGENET)):
            raise ValueError("teacher.folds is for teachers that are trained here: leave out teacher.weights, or folds")
        if self.teacher.folds and self.distill.feature_method:
            raise ValueError("a method of layers reads one teacher: set teacher.folds to 0")
        return self

    @model_validator(mode="after")
    def _teacher_size_can_be_made(self) -> Self:
        if self.data_of("teacher") is not self.data and self.data.resize == 0:
            raise ValueError("teacher.image_size needs pictures that are resized: set data.resize")
        return self

    @model_validator(mode="after")
    def _unlabelled_images_can_teach(self) -> Self:
        section = self.distill
        if self.data.unlabelled and "dkd" in section.method_parts:
            raise ValueError("dkd needs the label of every image: with data.unlabelled, use distill.method=kd or dist")
        if self.data.unlabelled and not section.learns_from_teacher:
            zero = "distill.alpha" if section.logit_method else "distill.feature_weight"
            raise ValueError(f"data.unlabelled needs the teacher's answers in the loss: set {zero} above 0")
        if self.data.unlabelled and not round(section.unlabelled_ratio * section.batch_size):
            raise ValueError(
                f"distill.unlabelled_ratio = {section.unlabelled_ratio:g}: no step of {section.batch_size} gets an"
                f" unlabelled image: set it to {1 / section.batch_size:.2g} or more, or leave data.unlabelled out"
            )
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> Self:
        """Check `values`; RecipeError names the key path and what is allowed, `origin` is where they came from."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _first_problem(error, origin, values) from None

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """The recipe in `path`; a teacher's file beside it becomes a path from the current directory."""
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin with a mark
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise RecipeError(f"cannot read the recipe {path}: {reason}", "give --recipe a TOML file") from None
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            paths = ", and write paths with / or in single quotes" if "\\" in text else ""
            raise RecipeError(f"{path} is not valid TOML: {error}", f"correct that line{paths}") from None
        _find_weights_beside(path, values)
        return cls.from_dict(_move_given(values, str(path)), str(path))

    def states(self, setting: str) -> bool:
        """Whether a file or an override gave `section.key`; otherwise its default holds."""
        section, _, key = setting.partition(".")
        return key in getattr(self, section).model_fields_set

    def stage_of(self, role: str) -> StageRecipe:
        """The section that a role is trained by: the student's and its control's is [distill]."""
        return self.teacher if role == "teacher" else self.distill

    def data_of(self, role: str) -> DataRecipe:
        """[data] as a role sees it. The teacher may see the same part of each picture with more or fewer pixels."""
        size = self.teacher.image_size
        if role != "teacher" or size is None or size == self.data.image_size:
            return self.data
        times = size / self.data.image_size
        scaled = {name: round(getattr(self.data, name) * times) for name in ("resize", "crop_padding")}
        return self.data.model_copy(update={"image_size": size} | scaled)

    def value_of(self, setting: str) -> Any:
        """The value of `section.key`."""
        section, _, key = setting.partition(".")
        return getattr(getattr(self, section), key)

    def with_overrides(self, overrides: Overrides) -> Self:
        """A copy with every override applied; settings that were left to their defaults stay so.

        An override is the text `section.key=value`, whose value is read as TOML, a bare word as a string; or the path
        `section.key` with a value of Python's, in a mapping. The last value of a setting holds. Another architecture
        leaves the settings of the former behind, and so do weights that bring a network of their own.
        """
        is_mapping = isinstance(overrides, Mapping)
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(_read_override, overrides)
        given: dict[str, dict[str, Any]] = {}
        for path, value in pairs:
            section, _, key = path.partition(".")
            given.setdefault(section, {})[key] = value
        origin = "settings" if is_mapping else "--set"
        values = self.model_dump(mode="json", exclude_unset=True)
        stated = set()
        for section, table in _move_given(given, origin).items():
            values.setdefault(section, {}).update(table)
            stated |= {f"{section}.{key}" for key in table}
        own_network = "teacher.weights" in stated and has_own_network(values["teacher"]["weights"])
        if own_network and "teacher.architecture" not in stated:
            values["teacher"].pop("architecture", None)
        self._leave_behind(values, stated)
        return self.from_dict(values, origin)

    def _leave_behind(self, values: dict[str, Any], stated: set[str]) -> None:
        """Take settings of networks out of `values` that nobody has stated, or that another architecture replaces."""
        for name, network in (("student", self.student), ("teacher", self.teacher)):
            table = values.get(name, {})
            stays = network.architecture_in(table) == network.architecture
            kept = network.stated_settings if stays else {}
            for key in network.settings.keys() - kept.keys():
                if f"{name}.{key}" not in stated:
                    table.pop(key, None)

    def fingerprint(self, *parts: str) -> str:
        """SHA-256 of the named sections and `section.key`s, without what cannot change a result (paths, workers).

        Settings that have moved are hashed in their first place, and are part of that section too, so that earlier
        results stay up to date.
        """
        first_places = {new: old for old, new in MOVED.items()}
        values = {}
        if "student" in parts:
            values = {f"student.{key}": value for key, value in StudentRecipe.once_for_all.items()}
        for section, table in self.model_dump(mode="json").items():
            for key, value in table.items():
                setting = f"{section}.{key}"
                place = first_places.get(setting, setting)
                if {section, setting, place.partition(".")[0]} & {*parts} and setting not in NOT_IN_FINGERPRINT:
                    values[place] = value
        for setting, unused in NEWER_SETTINGS.items():
            if values.get(setting, ...) == unused:
                del values[setting]  # the setting did not exist then
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def control_fingerprint(self) -> str:
        """The fingerprint of the student without a teacher: without the settings that only concern teaching."""
        keys = [f"distill.{key}" for key in type(self.distill).model_fields if key not in OF_TEACHING]
        return self.fingerprint("data", "student", "training", *keys)


def move_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values by section, with every setting in its present place; ValueError if one is given twice."""
    moved = {section: dict(table) if isinstance(table, dict) else table for section, table in values.items()}
    for old, new in MOVED.items():
        section, key = old.split(".")
        target, name = new.split(".")
        if _holds(moved, old) and isinstance(moved.setdefault(target, {}), dict):
            value = moved[section].pop(key)
            if moved[target].setdefault(name, value) != value:
                raise ValueError(f"{old} is {new} now: give one of them")
    return moved


def builtin_names() -> list[str]:
    """Names of the recipes that ship with the toolkit."""
    return sorted(shipped.recipe_files())


@contextlib.contextmanager
def reporting_moved_in(reported: set[str] | None) -> Iterator[None]:
    """The line about settings that have moved is said if `reported` is empty, which then holds them; None: never."""
    token = _reported_in_workspace.set(reported)
    try:
        yield
    finally:
        _reported_in_workspace.reset(token)


def load_builtin(name: str) -> Recipe:
    return Recipe.from_toml(shipped.recipe_files()[name])


def _find_weights_beside(recipe: Path, values: dict[str, Any]) -> None:
    """Turn `teacher.weights` and `teacher.classes` into paths of what lies beside `recipe`, if they name that."""
    teacher = values.get("teacher")
    if not isinstance(teacher, dict):
        return  # checked later, with everything else

    def beside(name: Any) -> Any:
        is_name = not isinstance(name, str) or name in ("", IMAGENET, FOOD_11, *shipped.weights_files())
        return name if is_name or not (path := recipe.parent / name).exists() else str(path)

    for key in ("weights", "classes"):
        if isinstance(given := teacher.get(key), list):
            teacher[key] = [beside(name) for name in given]
        elif key in teacher:
            teacher[key] = beside(given)


def _holds(values: Mapping[str, Any], setting: str) -> bool:
    section, _, key = setting.partition(".")
    return isinstance(values.get(section), dict) and key in values[section]


_reported_as_moved: set[str] = set()
"""Settings that were given in their former place and that a line has named: one line per command."""
_reported_in_workspace: ContextVar[set[str] | None] = ContextVar("_reported_in_workspace")
"""The same in a workspace of Python's, which has one line of its own; None: it is quiet."""


def _move_given(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`move_settings` for values that a user wrote: a line names the former places. RecipeError if one is twice."""
    try:
        moved = move_settings(values)
    except ValueError as error:
        raise RecipeError(f"{origin}: one setting has two values", str(error)) from None
    _report_moved([setting for setting in MOVED if _holds(values, setting)])
    return moved


def _report_moved(found: Sequence[str]) -> None:
    reported = _reported_in_workspace.get(_reported_as_moved)
    if found and reported is not None and not reported:
        names = ", ".join(f"{setting} is {MOVED[setting]} now" for setting in found)
        console.say(f"recipe: {names}, as teacher and student share it; the old name still works")
        reported.update(found)


def _read_override(text: str) -> tuple[str, Any]:
    """`section.key=value` → ("section.key", value)"""
    path, separator, value = text.partition("=")
    section, dot, key = path.strip().partition(".")
    if not separator or not dot:
        raise RecipeError(f"--set {text!r} is not section.key=value", "write it like --set distill.temperature=4")
    return f"{section}.{key.strip()}", _toml_value(value.strip())


def _toml_value(text: str) -> Any:
    """Text that is neither TOML nor a table of JSON is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        with contextlib.suppress(ValueError):
            return json.loads(text) if text.startswith("{") else text
        return text


def _first_problem(error: ValidationError, origin: str, values: dict[str, Any]) -> RecipeError:
    problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    path = shorten(".".join(keys))
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        settings, and_settings = _known_settings(keys[:-1], values)
        prefix = "".join(f"{key}." for key in keys[:-1])
        owners = owners_of(keys[-1]) if and_settings else []
        guess = (
            f"{keys[-1]} belongs to {' and '.join(owners)}; "
            if owners
            else did_you_mean(keys[-1], [*known, *settings], prefix=prefix)
        )
        return RecipeError(f"{origin}: unknown key {path}", f"{guess}valid here: {', '.join(known)}{and_settings}")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # settings that contradict each other
        return RecipeError(f"{origin}: {path or 'the recipe'} is not allowed", message)
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
        return RecipeError(f"{origin}: {path} is missing", f"this architecture has no default for it: set {path}")
    if problem["type"] == "tuple_type":
        message = "input should be a list"
    got = shorten(json.dumps(problem["input"], default=str))
    if problem["type"] == "string_unicode":  # a path on Linux may hold any bytes, a recipe holds text
        return RecipeError(f"{origin}: {path} = {got} is not UTF-8 text", "rename that folder or file, or link to it")
    return RecipeError(f"{origin}: {path} = {got} is not allowed", f"{message[0].lower()}{message[1:]}")


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for key in path:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _known_settings(path: Sequence[str], values: dict[str, Any]) -> tuple[list[str], str]:
    """The settings of the architecture that the section at `path` names, and words that list them."""
    section = Recipe.model_fields[path[0]].annotation if len(path) == 1 else None
    if not (isinstance(section, type) and issubclass(section, NetworkRecipe)):
        return [], ""
    architecture = section.architecture_in(values[path[0]])
    settings = list(settings_of(architecture).model_fields)
    if settings:
        return settings, f", and for {architecture}: {', '.join(settings)}"
    name = shorten(str(architecture))
    return [], f"; {name} has no settings (a network of your own must be registered first: docs/networks.md)"
