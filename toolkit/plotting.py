"""The common parts of a report's pictures: a figure without global state, a title, plain axes, PNG bytes."""

import io
import warnings

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"teacher": "#4c6a92", "student": "#d1652c", "control": "#7a8b58"}

INK, FAINT = "#2b2b2b", "#d9d9d9"

GREY = "#666666"
"""of texts and lines that explain"""


TITLE_INCHES = 0.7
"""from the upper edge, which title and subtitle take"""


def start_figure(width: float, height: float) -> Figure:
    """A white figure of width × height inches at 160 dots an inch, with no display behind it."""
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Figure, title: str, subtitle: str) -> None:
    """Both at the upper left, printed as they are: a `$` in a data set's name starts no formula."""
    height = figure.get_figheight()
    for text, inches, size, colour in ((title, 0.16, 13, INK), (subtitle, 0.46, 9, GREY)):
        figure.text(0.02, 1 - inches / height, text, va="top", fontsize=size, color=colour, parse_math=False)


def dress_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(True, which="major", color=FAINT, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def write_png(figure: Figure) -> bytes:
    """The same figure gives the same bytes: no date and no version are inside.

    Letters that the font lacks become boxes; class names may be in any script.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
