"""Common style of all figures in this package."""

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
"""Colours from the colour-blind safe palette of Okabe and Ito."""


def shortened(name: str, width: int) -> str:
    """Shorten a name to a number of characters. The end is kept because it distinguishes runs and files."""
    return name if len(name) <= width else "…" + name[1 - width :]


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(axes: Axes, legend: bool = True) -> None:
    """Apply the common frame, grid and legend."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically. Missing glyphs are logged once, not one by one."""
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
    logger.warning("Some characters of prompts or names are missing in the font and are drawn as boxes.")
