"""What all pictures of this package are drawn on."""

import logging
import warnings
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from t2ifb.data.files import atomic_write

logger = logging.getLogger(__name__)

PALETTE = BLUE, ORANGE, GREEN, PINK, GRAY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F")
"""From the colour-blind safe palette of Okabe and Ito."""


def shortened(name: str, width: int) -> str:
    """A name, shortened to a width in letters; its end is kept, which tells runs and files apart."""
    return name if len(name) <= width else "…" + name[1 - width :]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(axes: Axes, legend: bool = True) -> None:
    """Frame, grid and legend as everywhere."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all; letters that the font lacks are said once, not one by one."""
    with atomic_write(path) as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format="png")
    glyphs = [warning for warning in caught if str(warning.message).startswith("Glyph ")]
    if glyphs:
        _say_missing()
    for warning in (warning for warning in caught if warning not in glyphs):
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@cache
def _say_missing() -> None:
    logger.warning("Some letters of prompts or names are not in the font of the pictures and are drawn as boxes.")
