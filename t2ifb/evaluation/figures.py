"""Pictures that judge scorers, written as PNG files."""

import csv
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.gains import Gain
from t2ifb.evaluation.preference import Calibration
from t2ifb.evaluation.tables import CEILING, RANDOM, Row

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#7F7F7F"
"""From the colour-blind safe palette of Okabe and Ito."""
FEW = 10
"""Images of a rank below which its mean says little."""


def learning_curves(metrics: Path | Iterable[Mapping[str, Any]], path: Path) -> None:
    """Training and validation loss and accuracy over optimiser steps.

    Args:
        metrics: `metrics.csv` of a run, or its rows.
        path: The PNG to write.
    """
    if isinstance(metrics, Path):
        with metrics.open(encoding="utf-8", newline="") as file:
            metrics = list(csv.DictReader(file))
    rows = list(metrics)
    figure = _figure(10, 4)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color, width in (("train", BLUE, 1.0), ("val", ORANGE, 2.0)):
            points = [
                (float(r["step"]), float(r[key])) for r in rows if r.get(key := f"{split}/{quantity}") not in ("", None)
            ]
            if points:
                steps, values = np.array(points).T
                label = "training" if split == "train" else "validation"
                axes.plot(steps, values, color=color, lw=width, alpha=0.9, label=label)
                if split == "val":
                    best = values.argmax() if quantity == "accuracy" else values.argmin()
                    axes.plot(steps[best], values[best], "o", color=color, label=f"best, {values[best]:.3f}")
        axes.set(xlabel="optimiser step", ylabel={"loss": "loss (eq. 4)", "accuracy": "preference accuracy"}[quantity])
        _finish(axes)
    _save(figure, path)


def reward_by_rank(scores: ArrayLike, ranks: ArrayLike, prompt_of_image: ArrayLike, path: Path) -> None:
    """Reward by rank: mean with its standard error, after taking off each prompt's mean.

    Args:
        scores: (N,) rewards.
        ranks: (N,) ranks, 1 is best.
        prompt_of_image: (N,) number of the prompt, from 0.
        path: The PNG to write.
    """
    score, rank, prompt = np.asarray(scores, float), np.asarray(ranks, int), np.asarray(prompt_of_image, int)
    centred = score - (np.bincount(prompt, score) / np.maximum(np.bincount(prompt), 1))[prompt]
    figure = _figure(6, 4)
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
    if common.any():  # the few of a last rank do not set the scale
        low, high = (means - errors)[common].min(), (means + errors)[common].max()
        axes.set_ylim(min(low, 0) - 0.2 * (high - low), max(high, 0) + 0.1 * (high - low))
    _finish(axes, legend=False)
    _save(figure, path)


def calibration_plot(result: Calibration, path: Path) -> None:
    """Observed against predicted preference; the area of a point is its number of comparisons."""
    figure = _figure(4.8, 4.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GRAY, lw=1, ls="--", label="perfectly calibrated")
    sizes = 15 + 250 * result.count / max(1, result.count.max(initial=0))
    axes.plot(result.predicted, result.observed, color=BLUE, lw=1)
    axes.scatter(result.predicted, result.observed, s=sizes, color=BLUE, alpha=0.7)
    axes.set(xlabel="predicted probability σ(Δr)", ylabel="share preferred by annotators", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {result.error:.3f}", size=10)
    _finish(axes)
    _save(figure, path)


def ranking_sheet(
    rankings: Sequence[tuple[str, Sequence[Image.Image], Sequence[int]]], scores: Sequence[Sequence[float]], path: Path
) -> None:
    """Rankings with their images from best to worst, and the reward under each.

    A reward that is higher than that of an image with a better rank stands in orange.

    Args:
        rankings: For each prompt its text, its images and their ranks.
        scores: For each prompt the rewards of its images, in the same order.
        path: The PNG to write.

    Raises:
        ValueError: If there are no rankings.
    """
    if not rankings:
        raise ValueError("Expected at least one ranking to show, got none; check that the split has prompts.")
    columns = max(len(images) for _, images, _ in rankings)
    figure = _figure(1.25 * columns + 2.6, 1.62 * len(rankings))
    grid = figure.subplots(len(rankings), columns + 1, squeeze=False, width_ratios=[2.1, *[1] * columns])
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (prompt, images, ranks), values in zip(grid, rankings, scores, strict=True):
        text = "\n".join(textwrap.wrap(prompt, 26, max_lines=6, placeholder=" …"))
        line[0].text(0, 0.5, text, va="center", size=8, parse_math=False, transform=line[0].transAxes)
        for axes, index in zip(line[1:], np.argsort(ranks, kind="stable"), strict=False):
            wrong = any(values[index] >= values[other] for other in range(len(ranks)) if ranks[other] < ranks[index])
            small = max(images[index].size) <= 128  # pixels shown as they are; large images are averaged
            axes.imshow(np.asarray(images[index]), interpolation="nearest" if small else "antialiased")
            axes.set_title(f"rank {ranks[index]}", size=8, pad=2)
            axes.text(
                0.5, -0.06, f"{values[index]:+.2f}", ha="center", va="top", size=9, transform=axes.transAxes,
                color=ORANGE if wrong else "black", weight="bold" if wrong else "normal",
            )  # fmt: skip
    figure.supxlabel("reward under each image; orange: at least that of an image ranked better", size=8)
    _save(figure, path)


def accuracy_bars(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy of each scorer with its interval, from the top down, as what it has over chance.

    A diamond stands where a figure was published.

    Args:
        rows: Of the table; those without any figure are left out.
        title: Above the picture.
        path: The PNG to write.
    """
    shown = [row for row in rows if row.accuracy is not None or row.published is not None]
    figure = _figure(7.5, 1.3 + 0.42 * len(shown))
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
    axes.set_yticks(range(len(shown)), [_label(row.name, 32) for row in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("preference accuracy %, with its 95 % interval over prompts; bars begin at chance")
    axes.set_title(title, size=10, parse_math=False)
    _finish(axes)
    axes.grid(False, axis="y")
    _save(figure, path)


def agreement_map(names: Sequence[str], matrix: NDArray[np.float64], path: Path) -> None:
    """Share of comparisons that each two scorers order alike, in per cent.

    Args:
        names: S scorers.
        matrix: (S, S) in [0, 1].
        path: The PNG to write.
    """
    percent = 100 * matrix
    figure = _figure(3.4 + 0.75 * len(names), 2.2 + 0.65 * len(names))
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="cividis", vmin=50, vmax=100)
    labels = [_label(name, 24) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(names)), labels, parse_math=False)
    for (row, column), value in np.ndenumerate(percent):
        color = "black" if value > 72 else "white"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", size=9, color=color)
    axes.set_title("comparisons that two scorers order alike, %", size=10)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8, extend="min")
    _save(figure, path)


def _label(name: str, width: int) -> str:
    return textwrap.shorten(name, width, placeholder=" …") or name[:width]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes, legend: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def gain_bars(rows: Mapping[str, Sequence[Gain]], path: Path) -> None:
    """Mean score of the base model and of each tuned one, a panel a scorer; bars carry the difference's interval.

    Args:
        rows: By model, the same scorers in the same order.
        path: The PNG to write.
    """
    scorers = [row.name for row in next(iter(rows.values()))]
    columns = min(4, len(scorers))
    figure = _figure(3.1 * columns, (1.1 + 0.42 * len(rows)) * -(-len(scorers) // columns))
    panels = list(figure.subplots(-(-len(scorers) // columns), columns, squeeze=False).flat)
    for number, (axes, name) in enumerate(zip(panels, scorers, strict=False)):
        found = {model: some[number] for model, some in rows.items()}
        base = next(iter(found.values())).base
        axes.axvline(base, color=GRAY, lw=1.0, ls="--")
        for place, row in enumerate(found.values()):
            ends = [row.difference.mean - row.difference.low, row.difference.high - row.difference.mean]
            color = ORANGE if row.trained_on else BLUE
            axes.barh(place, row.tuned - base, left=base, color=color, alpha=0.8, height=0.6)
            if np.isfinite(ends).all():
                errors = [[max(0.0, end)] for end in ends]
                axes.errorbar(row.tuned, place, xerr=errors, color="black", capsize=2, lw=1)
        labels = [_label(model, 26) for model in found] if number % columns == 0 else [""] * len(found)
        axes.set_yticks(range(len(found)), labels, size=7, parse_math=False)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.use_sticky_edges = False  # the base model's line stays inside
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(_label(name, 30), size=9, parse_math=False)
        _finish(axes, legend=False)
        axes.grid(False, axis="y")
    for axes in panels[len(scorers) :]:
        axes.set_axis_off()
    figure.supxlabel(
        "dashed: the base model; bars: tuned, with the 95 % interval of the difference; orange: trained on this scorer",
        size=8,
    )
    _save(figure, path)


def trade_off(names: Sequence[str], kl: ArrayLike, judges: ArrayLike, on_front: Sequence[bool], path: Path) -> None:
    """What the judges gained against the KL divergence that it took, a point a run.

    Args:
        names: N runs.
        kl: (N,) nats.
        judges: (N,) mean gain in standard deviations.
        on_front: N, whether no other run is better in both.
        path: The PNG to write.
    """
    distance, gained = np.sqrt(np.maximum(np.asarray(kl, float), 0)), np.asarray(judges, float)
    figure = _figure(7.5, 5)
    axes = figure.subplots()
    front = np.flatnonzero(on_front)
    order = front[np.argsort(distance[front])]
    axes.axhline(0, color=GRAY, lw=0.8)
    axes.plot(distance, gained, "o", color=GRAY, ms=5, label="runs")
    axes.plot(distance[order], gained[order], "o-", color=BLUE, ms=6, lw=1, label="Pareto front")
    for number in order:
        at = (distance[number], gained[number])
        axes.annotate(names[number], at, (5, 4), textcoords="offset points", size=7, parse_math=False)
    axes.set(xlabel="√KL to the base model, in root nats", ylabel="judges' mean gain, in standard deviations")
    _finish(axes)
    _save(figure, path)


def progress_sheet(prompts: Sequence[str], columns: Mapping[str, ArrayLike], path: Path) -> None:
    """A line for each prompt with the image of each model from the same noise.

    Args:
        prompts: P texts.
        columns: By name (P, 3, H, W) uint8.
        path: The PNG to write.
    """
    figure = _figure(2.4 + 1.3 * len(columns), 1.35 * len(prompts) + 0.2)
    grid = figure.subplots(len(prompts), len(columns) + 1, squeeze=False, width_ratios=[1.7, *[1] * len(columns)])
    for line, prompt, number in zip(grid, prompts, range(len(prompts)), strict=True):
        for axes in line:
            axes.set_axis_off()
        text = "\n".join(textwrap.wrap(prompt, 24, max_lines=5, placeholder=" …"))
        line[0].text(0, 0.5, text, va="center", size=8, parse_math=False, transform=line[0].transAxes)
        for axes, (name, images) in zip(line[1:], columns.items(), strict=True):
            image = np.asarray(images)[number].transpose(1, 2, 0)
            axes.imshow(image, interpolation="nearest" if max(image.shape) <= 128 else "antialiased")
            if number == 0:
                axes.set_title(name, size=9)
    _save(figure, path)


def tuning_curves(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Held-out figures over the updates: reward, judges' gain, gold with its parts, KL divergence.

    Args:
        rows: Of `metrics.csv`.
        path: The PNG to write.
    """
    table = list(rows)
    names = sorted({key for row in table for key in row if key.startswith("val/")})
    figure = _figure(4 * min(4, len(names)), 2.6 * -(-len(names) // 4))
    panels = list(figure.subplots(-(-len(names) // 4), min(4, len(names)), squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        points = [(float(r["step"]), float(r[name])) for r in table if r.get(name) not in ("", None)]
        steps, values = np.array(points).T
        axes.plot(steps, values, color=BLUE, lw=1.8, marker="o", ms=3)
        axes.axhline(values[0], color=GRAY, lw=0.8, ls="--")
        axes.set(xlabel="update", title=name.removeprefix("val/"))
        _finish(axes, legend=False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    _save(figure, path)
