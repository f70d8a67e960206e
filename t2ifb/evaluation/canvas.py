"""What all pictures of this package are drawn on."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from t2ifb.data.files import atomic_write

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
    """Write a PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
