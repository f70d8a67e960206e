"""What a written picture has to be, and what a figure shows."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from PIL import Image


def assert_picture(path: Path, min_colors: int = 3) -> None:
    """The file is a picture with something on it."""
    with Image.open(path) as image:
        assert min(image.size) > 100
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) >= min_colors


def points(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """The points of the one line with a label."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    x, y = line.get_data()
    return np.asarray(x, float).tolist(), np.asarray(y, float).tolist()


def texts(axes: Axes) -> list[str]:
    """The texts that stand in a panel, in the order in which they were added."""
    return [text.get_text() for text in axes.texts]


def ticks(axes: Axes, which: str) -> list[str]:
    """The labels of an axis."""
    return [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]
