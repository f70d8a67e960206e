"""Figure of the study."""

from pathlib import Path
from typing import Any

from experiments.course_pictures import SCORERS, distance, draw_lines, finish_grid
from t2ifb.evaluation.plots import PALETTE, new_figure, save


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw gains over the base model against √KL: one column per window, one line per alpha / beta.

    Args:
        result: Result of `compare`.
        path: The PNG to write.
    """
    windows = result["windows"]
    columns = {name: f"{name} window, steps {first} to {last}" for name, (first, last) in windows.items()}
    columns["made to fail"] = "made to fail"
    figure = new_figure(3.3 * len(columns), 2.1 * len(SCORERS))
    grid = figure.subplots(len(SCORERS), len(columns), squeeze=False, sharey="row", sharex="col")
    for column, (beginning, title) in zip(grid.T, columns.items(), strict=True):
        some = {name: each for name, each in result["variants"].items() if name.partition(",")[0] == beginning}
        colors = PALETTE if beginning in windows else PALETTE[-1:]
        for (name, figures), color in zip(some.items(), colors, strict=False):
            draw_lines(column, distance(figures), figures, name.partition(", ")[2] or beginning, color)
        column[-1].set_xlabel("√KL, in root nats")
        column[0].set_title(title, size=10)
    finish_grid(figure, grid)
    save(figure, path)
