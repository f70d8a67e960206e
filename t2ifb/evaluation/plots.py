"""Plots that evaluate scorers, as PNG files, and the style that all plots share."""

import logging
import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from t2ifb.evaluation.metrics import Calibration
from t2ifb.evaluation.tables import CEILING, RANDOM, Row
from t2ifb.utils.files import atomic_write

logger = logging.getLogger(__name__)

PALETTE = BLUE, ORANGE, GREEN, PINK, GRAY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7F7F7F")
"""Colours from the colour-blind safe palette of Okabe and Ito."""


def shortened(name: str, width: int) -> str:
    """Shorten a name to a number of characters. The end is kept because it distinguishes runs and files."""
    return name if len(name) <= width else "…" + name[1 - width :]


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure, size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(axes: Axes, legend: bool = True) -> None:
    """Apply the common frame, grid and legend."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG atomically. Missing glyphs are logged once, not one by one."""
    with atomic_write(path) as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, format="png")
    glyphs = [warning for warning in caught if str(warning.message).startswith("Glyph ")]
    if glyphs:
        _say_missing()
    for warning in (warning for warning in caught if warning not in glyphs):
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@cache
def _say_missing() -> None:
    logger.warning("Some characters of prompts or names are missing in the font and are drawn as boxes.")


FEW = 10
"""Minimum number of images of a rank for a reliable mean."""


def learning_curves(metrics: Path, path: Path) -> None:
    """Training and validation loss and accuracy over optimiser steps.

    Args:
        metrics: `metrics.csv` of a run.
        path: The PNG to write.
    """
    table = pd.read_csv(metrics)
    figure = new_figure(10, 4)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color, width in (("train", BLUE, 1.0), ("val", ORANGE, 2.0)):
            points = table.reindex(columns=["step", f"{split}/{quantity}"]).dropna()
            if len(points):
                steps, values = points.to_numpy(np.float64).T
                label = "training" if split == "train" else "validation"
                axes.plot(steps, values, color=color, lw=width, alpha=0.9, label=label)
                if split == "val":
                    best = values.argmax() if quantity == "accuracy" else values.argmin()
                    axes.plot(steps[best], values[best], "o", color=color, label=f"best, {values[best]:.3f}")
        axes.set(xlabel="optimiser step", ylabel={"loss": "loss (eq. 4)", "accuracy": "preference accuracy"}[quantity])
        finish(axes)
    save(figure, path)


def reward_by_rank(scores: ArrayLike, ranks: ArrayLike, prompt_of_image: ArrayLike, path: Path) -> None:
    """Reward by rank: mean with standard error, after subtracting each prompt's mean.

    Args:
        scores: (N,) rewards.
        ranks: (N,) ranks, 1 is best.
        prompt_of_image: (N,), index of the prompt, from 0.
        path: The PNG to write.
    """
    score, rank, prompt = np.asarray(scores, float), np.asarray(ranks, int), np.asarray(prompt_of_image, int)
    centred = score - (np.bincount(prompt, score) / np.maximum(np.bincount(prompt), 1))[prompt]
    figure = new_figure(6, 4)
    axes = figure.subplots()
    levels = np.unique(rank)
    groups = [centred[rank == level] for level in levels]
    means = np.array([group.mean() for group in groups])
    errors = np.array([group.std(ddof=1) / np.sqrt(len(group)) if len(group) > 1 else 0 for group in groups])
    axes.axhline(0, color=GRAY, lw=0.8)
    axes.errorbar(levels, means, errors, fmt="o-", color=BLUE, capsize=3)
    for level, group in zip(levels, groups, strict=True):
        axes.text(level, 0.01, f"n={len(group)}", ha="center", size=7, color=GRAY, transform=axes.get_xaxis_transform())
    axes.set(xlabel="rank given by annotators (1 is best)", ylabel="reward minus its prompt's mean")
    axes.set_xticks(levels)
    common = np.array([len(group) >= FEW for group in groups])
    if common.any():  # ranks with few images do not set the scale
        low, high = (means - errors)[common].min(), (means + errors)[common].max()
        axes.set_ylim(min(low, 0) - 0.2 * (high - low), max(high, 0) + 0.1 * (high - low))
    finish(axes, legend=False)
    save(figure, path)


def calibration_plot(result: Calibration, path: Path) -> None:
    """Observed against predicted preference. The area of a point is proportional to its number of comparisons."""
    figure = new_figure(4.8, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GRAY, lw=1, ls="--", label="perfectly calibrated")
    sizes = 15 + 250 * result.count / max(1, result.count.max(initial=0))
    axes.plot(result.predicted, result.observed, color=BLUE, lw=1)
    axes.scatter(result.predicted, result.observed, s=sizes, color=BLUE, alpha=0.7)
    axes.set(xlabel="predicted probability σ(Δr)", ylabel="share preferred by annotators", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {result.error:.3f}", size=10)
    finish(axes)
    save(figure, path)


def ranking_sheet(
    rankings: Sequence[tuple[str, Sequence[Image.Image], Sequence[int]]], scores: Sequence[Sequence[float]], path: Path
) -> None:
    """Show rankings with their images from best to worst and the reward under each.

    A reward higher than that of a better-ranked image is orange.

    Args:
        rankings: Text, images and ranks of each prompt.
        scores: Rewards of each prompt's images, in the same order.
        path: The PNG to write.

    Raises:
        ValueError: No rankings are given.
    """
    if not rankings:
        raise ValueError("Expected at least one ranking to show, got none; check that the split has prompts.")
    columns = max(len(images) for _, images, _ in rankings)
    figure = new_figure(1.25 * columns + 2.6, 1.62 * len(rankings))
    grid = figure.subplots(len(rankings), columns + 1, squeeze=False, width_ratios=[2.1, *[1] * columns])
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (prompt, images, ranks), values in zip(grid, rankings, scores, strict=True):
        text = "\n".join(textwrap.wrap(prompt, 26, max_lines=6, placeholder=" …"))
        line[0].text(0, 0.5, text, va="center", size=8, parse_math=False, transform=line[0].transAxes)
        for axes, index in zip(line[1:], np.argsort(ranks, kind="stable"), strict=False):
            wrong = any(values[index] >= values[other] for other in range(len(ranks)) if ranks[other] < ranks[index])
            small = max(images[index].size) <= 128  # small images unsmoothed, large ones averaged
            axes.imshow(np.asarray(images[index]), interpolation="nearest" if small else "antialiased")
            axes.set_title(f"rank {ranks[index]}", size=8, pad=2)
            axes.text(
                0.5, -0.06, f"{values[index]:+.2f}", ha="center", va="top", size=9, transform=axes.transAxes,
                color=ORANGE if wrong else "black", weight="bold" if wrong else "normal",
            )  # fmt: skip
    figure.supxlabel("reward under each image; orange: at least that of an image ranked better", size=8)
    save(figure, path)


def accuracy_bars(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy of each scorer with its interval, as bars that start at chance.

    A diamond marks a published accuracy.

    Args:
        rows: Rows of the table; rows without a number are skipped.
        title: Title of the figure.
        path: The PNG to write.
    """
    shown = [row for row in rows if row.accuracy is not None or row.published is not None]
    figure = new_figure(7.5, 1.3 + 0.42 * len(shown))
    axes = figure.subplots()
    ends = [50.0]
    for place, row in enumerate(shown):
        values = [row.published] if row.published is not None else []
        if row.accuracy is not None:
            percent = row.accuracy.scaled(100)
            color = GRAY if row.name in (RANDOM, CEILING) else BLUE
            axes.barh(place, percent.mean - 50, left=50, color=color, alpha=0.85, height=0.62)
            errors = [[max(0.0, percent.mean - percent.low)], [max(0.0, percent.high - percent.mean)]]
            axes.errorbar(percent.mean, place, xerr=errors, color="black", capsize=3, lw=1)
            values += [percent.low, percent.high]
        if row.published is not None:
            label = None if any(other.published is not None for other in shown[:place]) else "published"
            axes.plot(row.published, place, "D", color=ORANGE, ms=6, label=label, zorder=3)
        text = f"{percent.mean if row.accuracy is not None else values[0]:.1f}"
        axes.annotate(text, (max(values), place), (6, 0), textcoords="offset points", va="center", size=8)
        ends += values
    finite = [end for end in ends if np.isfinite(end)]
    axes.axvline(50, color="black", lw=0.8)
    axes.set_xlim(max(0.0, min(finite) - 5), min(100.0, max(finite)) + 6)
    axes.set_yticks(range(len(shown)), [shortened(row.name, 32) for row in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("preference accuracy %, with 95 % interval over prompts; bars start at chance")
    axes.set_title(title, size=10, parse_math=False)
    finish(axes)
    axes.grid(False, axis="y")
    save(figure, path)


def agreement_map(names: Sequence[str], matrix: NDArray[np.float64], path: Path) -> None:
    """Share of comparisons on which each pair of scorers agrees, in per cent.

    Args:
        names: Names of S scorers.
        matrix: (S, S) in [0, 1].
        path: The PNG to write.
    """
    percent = 100 * matrix
    figure = new_figure(3.4 + 0.75 * len(names), 2.2 + 0.65 * len(names))
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="cividis", vmin=50, vmax=100)
    labels = [shortened(name, 24) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    for (row, column), value in np.ndenumerate(percent):
        color = "black" if value > 72 else "white"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", size=9, color=color)
    axes.set_title("comparisons on which two scorers agree, %", size=10)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, extend="min")
    save(figure, path)
