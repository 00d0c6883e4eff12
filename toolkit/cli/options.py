"""The options that several commands share: their names and their help."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from toolkit.modeldir import FilePrecision
from toolkit.names import RUNTIME_NAMES


def _check_place(value: str) -> str:
    """Before anything is looked for; whether it works here is found out where it is used."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value


RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="FILE", help="A recipe.toml, or fashion-mnist, food11, food11-fast."),
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="NAME_OR_DIR", help="A named data set or a directory of images.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The model directory to write (default: models/<name>).")
]
DeviceOption = Annotated[str, typer.Option("--device", callback=_check_place, help="auto, cpu, cuda or cuda:N.")]
ProviderOption = Annotated[
    str, typer.Option("--provider", callback=_check_place, help="onnxruntime runs on: auto, cpu, cuda or cuda:N.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Same as --set distill.seed=N.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a recipe setting; repeatable.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what another run left in the model directory.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="An unreadable image is an error, not left out.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run stopped; give it the same flags.")
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Also write DIR/tensorboard (needs kd-toolkit\\[tensorboard]).")
]
SeedsOption = Annotated[
    int,
    typer.Option("--seeds", min=1, max=100, help="Train student and control from N seeds, for mean ± deviation."),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.1,
        metavar="M",
        help="Fit the work into M minutes: fewer epochs and, if need be, views, pixels, images.",
    ),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option("--max-drop", min=0, max=1, metavar="D", help="Top-1 accuracy that may be lost (0.01 is one point)."),
]
MaxSlowdownOption = Annotated[
    float | None, typer.Option("--max-slowdown", min=1, metavar="R", help="How many times as slow a row may be.")
]
RuntimesOption = Annotated[
    str | None,
    typer.Option("--runtimes", metavar="NAMES", help=f"Of {', '.join(RUNTIME_NAMES)}: a,b,c."),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option("--baseline", metavar="REPORT", help="Exit 3 where a row is worse than in this report.json."),
]
CompareOption = Annotated[
    Path | None, typer.Option("--compare", metavar="OTHER_DIR", help="Put two directories' reports side by side.")
]
ClientsOption = Annotated[
    int | None, typer.Option("--clients", min=1, max=1024, metavar="N", help="Drive one ONNX file from N threads.")
]
SecondsOption = Annotated[
    float, typer.Option("--seconds", min=0.1, max=3600, metavar="S", help="With --clients: for how long.")
]
RoleOption = Annotated[Literal["teacher", "student"], typer.Option("--model", help="With --clients: whose file.")]
PrecisionOption = Annotated[FilePrecision, typer.Option("--precision", help="With --clients: in which precision.")]
DeepOption = Annotated[
    bool, typer.Option("--deep", help="Also put the machine to work for some 20 s: copies, products, training, ONNX.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]
ModelDirArgument = Annotated[Path, typer.Argument(metavar="[MODEL_DIR]", help="A directory that distill wrote.")]
