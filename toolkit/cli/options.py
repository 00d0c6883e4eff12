"""The options that several commands share: their names, their help and the panel of --help that they stand in."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from toolkit.modeldir import FilePrecision
from toolkit.names import ANSWER_SUFFIXES, RUNTIME_NAMES
from toolkit.networks import trust

DEFAULT_MODEL_DIR = Path("models/fashion-mnist")

RECIPE, WHERE, HOW, OUTPUT = "Recipe and data", "Where", "How", "Output"
"""Panels of --help that several commands have."""

Flags = dict[str, Any]
"""Options that prepare_training passes on to the setup."""


def add_seed(seed: int | None, overrides: list[str] | None) -> list[str]:
    """The overrides of the recipe that --seed and --set ask for; --set has the last word."""
    return [*([f"training.seed={seed}"] if seed is not None else []), *(overrides or [])]


def add_answers(answers: Path | None, overrides: list[str]) -> list[str]:
    """The overrides with the one that --answers asks for."""
    return [*([f"teacher.weights={json.dumps(str(answers))}"] if answers is not None else []), *overrides]


def add_weights(weights: list[str] | None, overrides: list[str]) -> list[str]:
    """The overrides with the one that --weights asks for; given several times, it names several teachers."""
    if not weights:
        return overrides
    given = weights[0] if len(weights) == 1 else weights
    return [f"teacher.weights={json.dumps(given)}", *overrides]


def add_unlabelled(folders: list[str] | None, overrides: list[str] | None) -> list[str]:
    """The overrides of the recipe that --unlabelled and --set ask for; --set has the last word."""
    return [*([f"data.unlabelled={json.dumps(folders)}"] if folders else []), *(overrides or [])]


def flag(name: str, panel: str, help: str) -> Any:
    """An option without a value. Its column of types stays empty in --help: that it is a bool says nothing."""
    return typer.Option(name, metavar="", rich_help_panel=panel, help=help)


def _check_place(value: str) -> str:
    """A check before anything is read; whether the place works on this machine shows when it is used."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise typer.BadParameter(f"{value!r} is not one of auto, cpu, cuda, cuda:N")
    return value


_in_recipe = partial(typer.Option, rich_help_panel=RECIPE)
_place = partial(typer.Option, rich_help_panel=WHERE, metavar="DEVICE", callback=_check_place)

ModelDirArgument = Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A directory that distill wrote.")]

RecipeOption = Annotated[
    str | None,
    _in_recipe("--recipe", metavar="FILE", help="A recipe.toml, or fashion-mnist, food11, food11-fast, photographs."),
]
DataOption = Annotated[
    str | None, _in_recipe("--data", metavar="NAME_OR_DIR", help="A named data set or a directory of images.")
]
UnlabelledOption = Annotated[
    list[str] | None,
    _in_recipe(
        "--unlabelled",
        metavar="DIR",
        help="A folder of images without labels, taught by the teacher alone; repeatable.",
    ),
]
SetOption = Annotated[
    list[str] | None, _in_recipe("--set", metavar="SECTION.KEY=VALUE", help="Override a recipe setting; repeatable.")
]
SeedOption = Annotated[int | None, _in_recipe("--seed", metavar="N", min=0, help="The same as --set training.seed=N.")]
SeedsOption = Annotated[
    int,
    _in_recipe(
        "--seeds", metavar="N", min=1, max=100, help="Train student and control from N seeds, for mean ± deviation."
    ),
]

_out = partial(typer.Option, "--out", metavar="DIR", rich_help_panel=WHERE)
OutOption = Annotated[Path | None, _out(help="The model directory to write (default: models/<name>).")]
DeviceOption = Annotated[str, _place("--device", help="Where torch runs: auto, cpu, cuda or cuda:N.")]
ProviderOption = Annotated[str, _place("--provider", help="Where onnxruntime runs: auto, cpu, cuda or cuda:N.")]

MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.1,
        metavar="M",
        rich_help_panel=HOW,
        help="Fit the work into M minutes: fewer epochs and, if need be, views, pixels, images.",
    ),
]
ResumeOption = Annotated[
    bool, flag("--resume", HOW, "Go on with an interrupted run from where it stopped; give it the same flags.")
]
ForceOption = Annotated[bool, flag("--force", HOW, "Replace what another run left in the model directory.")]
StrictOption = Annotated[bool, flag("--strict", HOW, "Stop at an unreadable image; without this flag it is left out.")]
NoFindingsOption = Annotated[
    bool,
    flag("--strict", HOW, "End with exit code 1 if there is any finding, be it a hidden file or an alpha channel."),
]


def _allow_code(value: bool) -> bool:
    trust.allow([] if value else None)
    return value


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        metavar="",
        rich_help_panel=HOW,
        callback=_allow_code,
        help="Allow a network named package.module:function to run that package's code.",
    ),
]

TensorboardOption = Annotated[
    bool, flag("--tensorboard", OUTPUT, "Also write DIR/tensorboard (needs kd-toolkit\\[tensorboard]).")
]
JsonOption = Annotated[bool, flag("--json", OUTPUT, "Print JSON on stdout, and nothing else there.")]

DeepOption = Annotated[
    bool, flag("--deep", HOW, "Also run short tests, for some 20 s: copies, matrix products, training, ONNX.")
]
WeightsOption = Annotated[
    list[str] | None,
    _in_recipe(
        "--weights",
        metavar="FILE_OR_NAME",
        help="Import a file or fashion-mnist (it ships), or fine-tune imagenet; repeated: the mean of several.",
    ),
]


def _check_answers(value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in ANSWER_SUFFIXES:
        raise typer.BadParameter(f"{value} is not one of {', '.join(ANSWER_SUFFIXES)}")
    return value


AnswersOption = Annotated[
    Path | None,
    _in_recipe(
        "--answers",
        metavar="FILE",
        callback=_check_answers,
        help="The teacher's answers in a file, .npz or .parquet, in place of a teacher.",
    ),
]
SaveAnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--save-answers",
        metavar="FILE",
        rich_help_panel=OUTPUT,
        callback=_check_answers,
        help="Also write the teacher's answers, as .npz or .parquet.",
    ),
]

# export
FILES = "Files to write"
OnnxOption = Annotated[bool, flag("--onnx", FILES, "Write ONNX files in fp32: always done, with this flag or without.")]
Fp16Option = Annotated[bool, flag("--fp16", FILES, "Also in half precision.")]
Int8Option = Annotated[bool, flag("--int8", FILES, "Also in int8, calibrated on training images.")]
_max_drop = partial(typer.Option, "--max-drop", min=0, max=1, metavar="D")
Int8DropOption = Annotated[
    float | None,
    _max_drop(rich_help_panel=FILES, help="Top-1 accuracy that int8 may lose (0.01 is one point)."),
]
ExportOutOption = Annotated[Path | None, _out(help="Folder for what a weights file becomes (default: its own folder).")]
TritonOption = Annotated[
    Path | None,
    typer.Option("--triton", metavar="DIR", rich_help_panel=FILES, help="Also fill a Triton model repository."),
]

# bench
MEASURE = "Runtimes and gate"
_measured = partial(typer.Option, rich_help_panel=MEASURE)
RuntimesOption = Annotated[
    str | None,
    _measured("--runtimes", metavar="A,B,C", help=f"Some of {', '.join(RUNTIME_NAMES)}."),
]
BaselineOption = Annotated[
    Path | None,
    _measured("--baseline", metavar="REPORT", help="End with exit code 3 if a row is worse than in this report.json."),
]
MaxSlowdownOption = Annotated[
    float | None,
    _measured("--max-slowdown", min=1, metavar="R", help="How many times as slow as in the baseline a row may be."),
]
MaxDropOption = Annotated[
    float | None, _max_drop(rich_help_panel=MEASURE, help="Top-1 accuracy that may be lost (0.01 is one point).")
]
HiddenCompareOption = Annotated[Path | None, typer.Option("--compare", metavar="OTHER_DIR", hidden=True)]

# load-test; bench has them too, hidden
LOAD = "Load"
_load = partial(typer.Option, rich_help_panel=LOAD)
_clients = partial(_load, "--clients", min=1, max=1024, metavar="N", help="Threads; each asks for one image at a time.")
_seconds = partial(_load, "--seconds", min=0.1, max=3600, metavar="S", help="Duration of the load, in s.")
_role = partial(_load, "--model", help="The network to load: teacher or student.")
_precision = partial(_load, "--precision", help="In which precision.")

Exported = Literal["teacher", "student"]

ClientsOption = Annotated[int, _clients()]
SecondsOption = Annotated[float, _seconds()]
RoleOption = Annotated[Exported, _role()]
PrecisionOption = Annotated[FilePrecision, _precision()]
HiddenClientsOption = Annotated[int | None, _clients(hidden=True)]
HiddenSecondsOption = Annotated[float | None, _seconds(hidden=True)]
HiddenRoleOption = Annotated[Exported | None, _role(hidden=True)]
HiddenPrecisionOption = Annotated[FilePrecision | None, _precision(hidden=True)]
