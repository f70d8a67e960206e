"""The picture of the study."""

from pathlib import Path
from typing import Any

from experiments.course_pictures import SCORERS, draw_lines, finish_grid, seconds
from t2ifb.evaluation.canvas import PALETTE, new_figure, save


def draw(result: dict[str, Any], path: Path) -> None:
    """Gains over the base model against updates and against seconds of training.

    Args:
        result: Of `compare`.
        path: The PNG to write.
    """
    figure = new_figure(9, 2.1 * len(SCORERS))
    grid = figure.subplots(len(SCORERS), 2, squeeze=False, sharey="row", sharex="col")
    for (variant, figures), color in zip(result["variants"].items(), PALETTE, strict=False):
        for column, along in zip(grid.T, (figures["steps"], seconds(figures)), strict=True):
            draw_lines(column, along, figures, variant, color)
    grid[-1, 0].set_xlabel("updates")
    grid[-1, 1].set_xlabel("seconds of training, validations left out")
    finish_grid(figure, grid)
    save(figure, path)
