"""Figure of the study."""

from pathlib import Path
from typing import Any

import numpy as np

from t2ifb.evaluation.plots import new_figure, save

SHOWN = {
    "gold, kept checkpoint": ("kept", "gold"),
    "gold, last update": ("last", "gold"),
    "reward, last update": ("last", "reward"),
    "√KL, last update": ("last", None),
}
"""Titles with state and scorer; None is the KL divergence."""


def draw(result: dict[str, Any], path: Path) -> None:
    """Gains on test prompts by alpha, beta (rows) and learning rate (columns).

    Args:
        result: Result of `compare`.
        path: The PNG to write.
    """
    settings = result["settings"]
    rows = sorted({(each["ratio"], each["alpha"], each["beta"]) for each in settings})
    columns = sorted({each["lr"] for each in settings})
    figure = new_figure(3.9 * len(SHOWN), 0.7 * len(rows) + 1.4)
    for axes, (title, (state, scorer)) in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN.items(), strict=True):
        values = np.full((len(rows), len(columns)), np.nan)
        for each in settings:
            place = rows.index((each["ratio"], each["alpha"], each["beta"])), columns.index(each["lr"])
            if scorer is None:
                values[place] = np.sqrt(each[state]["kl"]).mean()
                text = f"{values[place]:.1f}"
            else:
                gained = each[state]["gain"][scorer]["over_seeds"]
                values[place] = gained["mean"]
                text = f"{gained['mean']:+.3f}\n[{gained['low']:+.3f}, {gained['high']:+.3f}]"
            axes.text(place[1], place[0], text, ha="center", va="center", fontsize=7)
        most = np.nanmax(np.abs(values))
        axes.imshow(values, cmap="RdBu", vmin=-2 * most, vmax=2 * most, aspect="auto")  # pale colours behind dark text
        axes.set_title(title, size=10)
        axes.set_xticks(range(len(columns)), [f"{lr:g}" for lr in columns])
        axes.set_xlabel("learning rate")
        axes.set_yticks(range(len(rows)), [f"{alpha:g} / {beta:g} = {ratio:g}" for ratio, alpha, beta in rows])
    figure.axes[0].set_ylabel("alpha / beta")
    save(figure, path)
