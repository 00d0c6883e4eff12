"""The `toolkit` command and its commands by group. No heavy import at module level, so that --help is quick."""

import tempfile
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from toolkit import __version__, console
from toolkit.cli import preparation, results, stages
from toolkit.cli.options import OUTPUT
from toolkit.errors import ToolkitError, UsageError

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Before you begin": (preparation.doctor, preparation.data, preparation.plan),
    "The stages": (stages.run, stages.teacher, stages.distill, stages.export, stages.bench),
    "Afterwards": (results.compare, results.load_test, results.predict, results.demo),
}
"""The commands in the order and the groups of --help."""


class _Command(TyperCommand):
    """A command whose --help stands among the options of output, and not in a panel of its own."""

    def get_help_option(self, ctx: Any) -> Any:
        if option := super().get_help_option(ctx):
            option.rich_help_panel, option.metavar = OUTPUT, ""
        return option


class _Commands(TyperGroup):
    """The commands; a value that one of them does not take is an error in one line, as every other."""

    def get_help_option(self, ctx: Any) -> Any:
        if option := super().get_help_option(ctx):
            option.metavar = ""
        return option

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            problem = error.format_message().rstrip(".")
            problem = problem.replace(": Value error, ", ": ").replace(": Input should", ": it should")
            remedy = f"see toolkit {ctx.invoked_subcommand} --help"
            raise UsageError(problem[0].lower() + problem[1:], remedy) from None


app = typer.Typer(
    name="toolkit",
    cls=_Commands,
    help="Distil an image classifier into a small one, export it to ONNX with proof, benchmark it and show it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="All stages on the built-in data: toolkit run. "
    "Exit codes: 0 done, 1 an error you can fix, 2 wrong usage, 3 a gate not met.",
)

for _panel, _functions in PANELS.items():
    for _function in _functions:
        app.command(cls=_Command, rich_help_panel=_panel)(_function)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, metavar="", help="Print the version and stop.")
    ] = False,
) -> None:
    if version:
        console.out.print(f"kd-toolkit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        _require_temporary_folder()


def _require_temporary_folder() -> None:
    """ToolkitError if there is none: much of what is imported later would fail with a traceback."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise ToolkitError(
            "there is no folder for temporary files that this process may write to ($TMPDIR, /tmp)",
            "set TMPDIR to a folder you may write to; in a read-only container: docker run --read-only --tmpfs /tmp",
        ) from None
