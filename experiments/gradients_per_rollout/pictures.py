"""The picture of the study."""

from pathlib import Path
from typing import Any

import numpy as np

from t2ifb.evaluation.canvas import GRAY, PALETTE, finish, new_figure, save

ROWS = {"gain in gold": "gold", "gain in reward": "reward", "judges, in standard deviations": None}


def draw(result: dict[str, Any], path: Path) -> None:
    """Gold, reward and judges against updates and against seconds of training.

    Args:
        result: Of `compare`.
        path: The PNG to write.
    """
    figure = new_figure(9, 2.6 * len(ROWS))
    grid = figure.subplots(len(ROWS), 2, squeeze=False, sharey="row", sharex="col")
    for (variant, figures), color in zip(result["variants"].items(), PALETTE, strict=False):
        updates = np.array(figures["steps"])
        for column, along in zip(grid.T, (updates, updates * np.mean(figures["seconds_per_update"])), strict=True):
            for axes, (title, scorer) in zip(column, ROWS.items(), strict=True):
                if scorer is None:
                    axes.plot(along, np.mean(figures["judges"], 1), color=color, marker="o", ms=3, label=variant)
                else:
                    gained = [at["over_seeds"] for at in figures["gain"][scorer]]
                    mean, low, high = (np.array([each[key] for each in gained]) for key in ("mean", "low", "high"))
                    axes.plot(along, mean, color=color, marker="o", ms=3, label=variant)
                    axes.fill_between(along, low, high, color=color, alpha=0.12, lw=0)
                axes.set_ylabel(title if axes in grid[:, 0] else "")
    grid[-1, 0].set_xlabel("updates")
    grid[-1, 1].set_xlabel("seconds of training, validations left out")
    for axes in grid.flat:
        axes.axhline(0, color=GRAY, lw=0.8)
        finish(axes, legend=False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside upper center")
    save(figure, path)
