"""Curves of runs with several seeds over their costs, for the studies' figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.plots import GRAY, PALETTE, finish, new_figure, save

SCORERS = {
    "gain in gold": "gold",
    "its alignment": "gold/alignment",
    "its fidelity": "gold/fidelity",
    "gain in reward": "reward",
    "ImageReward": "image_reward",
    "judges, in deviations": "judges",
}
"""Labels and their keys in `held_out.courses`."""


def distance(figures: dict[str, Any]) -> NDArray[np.float64]:
    """√KL at each validation, mean over seeds, (S,)."""
    return np.asarray(np.sqrt(np.array(figures["kl"])).mean(1))


def seconds(figures: dict[str, Any]) -> NDArray[np.float64]:
    """Seconds of training until each validation, without validations, median over seeds, (S,)."""
    known = [each for each in figures["seconds_per_update"] if each is not None]
    return np.array(figures["steps"]) * (np.median(known) if known else np.nan)


def draw_lines(
    column: Sequence[Axes], along: ArrayLike, figures: dict[str, Any], label: str, color: str, style: str = "-"
) -> None:
    """Draw one line with intervals in each axes of a column, in the order of `SCORERS`.

    Args:
        column: The axes.
        along: (S,), x value of each validation.
        figures: Result of `held_out.courses`.
        label: Legend label.
        color: Line colour.
        style: Line style.
    """
    for axes, scorer in zip(column, SCORERS.values(), strict=False):
        if scorer == "judges":
            mean = np.mean(figures["judges"], 1)
        else:
            gained = [at["over_seeds"] for at in figures["gain"][scorer]]
            mean, low, high = (np.array([each[key] for each in gained]) for key in ("mean", "low", "high"))
            axes.vlines(along, low, high, color=color, alpha=0.35, lw=1.5)
        axes.plot(along, mean, color=color, ls=style, marker="o", ms=3, lw=1.5, label=label)


def draw_against(
    along: Mapping[str, Callable[[dict[str, Any]], ArrayLike]], result: dict[str, Any], path: Path
) -> None:
    """Draw gains over the base model on validation prompts: one line per variant, one column per cost.

    A variant with an additional setting, such as `draft, beta 1e-4`, has the same colour, dashed.

    Args:
        along: Label of each column, and the function that computes it from a variant's results.
        result: Result with `variants`, each from `held_out.courses`.
        path: The PNG to write.
    """
    figure = new_figure(9, 2.1 * len(SCORERS))
    grid = figure.subplots(len(SCORERS), len(along), squeeze=False, sharey="row", sharex="col")
    families = list(dict.fromkeys(variant.partition(", ")[0] for variant in result["variants"]))
    for column, (label, place) in zip(grid.T, along.items(), strict=True):
        for variant, figures in result["variants"].items():
            family, _, more = variant.partition(", ")
            draw_lines(column, place(figures), figures, variant, PALETTE[families.index(family)], "--" if more else "-")
        column[-1].set_xlabel(label)
    finish_grid(figure, grid)
    save(figure, path)


def finish_grid(figure: Figure, grid: NDArray[Any]) -> None:
    """Add the base model's line, row labels and a common legend."""
    for axes, title in zip(grid[:, 0], SCORERS, strict=False):
        axes.set_ylabel(title)
    for axes in grid.flat:
        axes.axhline(0, color=GRAY, lw=0.8)
        finish(axes, legend=False)
    figure.align_ylabels(grid[:, 0])
    named = {line.get_label(): line for axes in grid[0] for line in axes.get_legend_handles_labels()[0]}
    figure.legend(named.values(), named.keys(), frameon=False, ncols=len(named), loc="outside upper center")
