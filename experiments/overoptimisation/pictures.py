"""The picture of the study."""

from pathlib import Path
from typing import Any

from experiments.course_pictures import SCORERS, distance, draw_lines, finish_grid
from t2ifb.evaluation.canvas import PALETTE, new_figure, save


def draw(result: dict[str, Any], path: Path) -> None:
    """Gains over the base model against the root of the KL divergence: a column a window, a line an alpha / beta.

    Args:
        result: Of `compare`.
        path: The PNG to write.
    """
    windows = result["windows"]
    figure = new_figure(4 * len(windows), 2.1 * len(SCORERS))
    grid = figure.subplots(len(SCORERS), len(windows), squeeze=False, sharey="row", sharex="col")
    for column, (window, (first, last)) in zip(grid.T, windows.items(), strict=True):
        some = {name: each for name, each in result["variants"].items() if name.startswith(f"{window},")}
        for (name, figures), color in zip(some.items(), PALETTE, strict=False):
            draw_lines(column, distance(figures), figures, name.split(", ")[1], color)
        column[-1].set_xlabel("√KL, in root nats")
        column[0].set_title(f"{window} window, steps {first} to {last}", size=10)
    finish_grid(figure, grid)
    save(figure, path)
