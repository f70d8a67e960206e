"""Lines of runs that differ in their seed, over what the run has cost: parts of the studies' pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.canvas import GRAY, PALETTE, finish, new_figure, save

SCORERS = {
    "gain in gold": "gold",
    "its alignment": "gold/alignment",
    "its fidelity": "gold/fidelity",
    "gain in reward": "reward",
    "ImageReward": "image_reward",
    "judges, in deviations": "judges",
}
"""Labels, and what they stand for in `held_out.courses`."""


def distance(figures: dict[str, Any]) -> NDArray[np.float64]:
    """(S,) √KL at each validation, the mean over seeds."""
    return np.asarray(np.sqrt(np.array(figures["kl"])).mean(1))


def seconds(figures: dict[str, Any]) -> NDArray[np.float64]:
    """(S,) seconds of training up to each validation, without validations, by the median over seeds."""
    known = [each for each in figures["seconds_per_update"] if each is not None]
    return np.array(figures["steps"]) * (np.median(known) if known else np.nan)


def draw_lines(
    column: Sequence[Axes], along: ArrayLike, figures: dict[str, Any], label: str, color: str, style: str = "-"
) -> None:
    """One line in each of some axes under each other, one for each of `SCORERS` from the first on, with its intervals.

    Args:
        column: The axes.
        along: (S,) place of each validation.
        figures: Of `held_out.courses`.
        label: For the legend.
        color: Of the lines.
        style: Of the lines.
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
    """Gains over the base model on validation prompts: a line a variant, a column for each measure of what it has cost.

    A variant with another setting, such as `draft, beta 1e-4`, has the colour of the one without, dashed.

    Args:
        along: What a column stands for, and how to find it in the figures of a variant.
        result: With `variants`, each of `held_out.courses`.
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
    """The base model's line, the names of the rows, and one legend for all."""
    for axes, title in zip(grid[:, 0], SCORERS, strict=False):
        axes.set_ylabel(title)
    for axes in grid.flat:
        axes.axhline(0, color=GRAY, lw=0.8)
        finish(axes, legend=False)
    figure.align_ylabels(grid[:, 0])
    named = {line.get_label(): line for axes in grid[0] for line in axes.get_legend_handles_labels()[0]}
    figure.legend(named.values(), named.keys(), frameon=False, ncols=len(named), loc="outside upper center")
