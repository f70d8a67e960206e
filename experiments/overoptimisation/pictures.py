"""The picture of the study."""

from pathlib import Path
from typing import Any

import numpy as np

from t2ifb.evaluation.canvas import GRAY, PALETTE, finish, new_figure, save

ROWS = {
    "gain in gold": "gold",
    "its alignment": "gold/alignment",
    "its fidelity": "gold/fidelity",
    "gain in reward": "reward",
    "ImageReward": "image_reward",
}


def draw(result: dict[str, Any], path: Path) -> None:
    """Gains over the base model against the root of the KL divergence: a column a window, a line an alpha / beta.

    Args:
        result: Of `compare`.
        path: The PNG to write.
    """
    windows = result["windows"]
    figure = new_figure(4 * len(windows), 2.1 * (len(ROWS) + 1))
    grid = figure.subplots(len(ROWS) + 1, len(windows), squeeze=False, sharey="row", sharex="col")
    for column, (window, (first, last)) in zip(grid.T, windows.items(), strict=True):
        some = {name: each for name, each in result["variants"].items() if name.startswith(f"{window},")}
        for (name, figures), color in zip(some.items(), PALETTE, strict=False):
            distance = np.sqrt(np.array(figures["kl"])).mean(1)
            label = name.split(", ")[1]
            for axes, (title, scorer) in zip(column, ROWS.items(), strict=False):
                gained = [at["over_seeds"] for at in figures["gain"][scorer]]
                mean, low, high = (np.array([each[key] for each in gained]) for key in ("mean", "low", "high"))
                axes.plot(distance, mean, color=color, marker="o", ms=3, lw=1.5, label=label)
                axes.fill_between(distance, low, high, color=color, alpha=0.12, lw=0)
                axes.set_ylabel(title if window == next(iter(windows)) else "")
            column[-1].plot(distance, np.mean(figures["judges"], 1), color=color, marker="o", ms=3, lw=1.5)
        column[-1].set_ylabel("judges, in std." if window == next(iter(windows)) else "")
        column[-1].set_xlabel("√KL, in root nats")
        column[0].set_title(f"{window} window, steps {first} to {last}", size=10)
    for axes in grid.flat:
        axes.axhline(0, color=GRAY, lw=0.8)
        finish(axes, legend=False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside upper center")
    save(figure, path)
