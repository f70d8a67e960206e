"""Figures of fine-tuning results, as PNG files."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from t2ifb.evaluation.comparison import Gain
from t2ifb.evaluation.guidance_sweep import ScaleGain
from t2ifb.evaluation.plots import BLUE, GRAY, ORANGE, finish, new_figure, save, shortened


def gain_bars(rows: Mapping[str, Sequence[Gain]], path: Path) -> None:
    """Mean scores of the base model and tuned ones, one panel per scorer, with the interval of the difference.

    Args:
        rows: Gains by model, with the same scorers in the same order.
        path: The PNG to write.
    """
    scorers = [row.name for row in next(iter(rows.values()))]
    columns = min(4, len(scorers))
    figure = new_figure(3.1 * columns, (1.1 + 0.42 * len(rows)) * -(-len(scorers) // columns))
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
        labels = [shortened(model, 26) for model in found] if number % columns == 0 else [""] * len(found)
        axes.set_yticks(range(len(found)), labels, size=7, parse_math=False)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.use_sticky_edges = False  # keep the base model's line inside
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(shortened(name, 30), size=9, parse_math=False)
        finish(axes, legend=False)
        axes.grid(False, axis="y")
    for axes in panels[len(scorers) :]:
        axes.set_axis_off()
    figure.supxlabel(
        "dashed: the base model; bars: tuned, with the 95 % interval of the difference; orange: trained on this scorer",
        size=8,
    )
    save(figure, path)


def guidance_curves(rows: Sequence[ScaleGain], own: float, path: Path) -> None:
    """Gains over the base model at the run's own scale, against the guidance scale, one panel per scorer.

    Args:
        rows: Scores by scorer and scale.
        own: The run's own scale.
        path: The PNG to write.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    columns = min(4, len(names))
    figure = new_figure(3.1 * columns, 2.5 * -(-len(names) // columns))
    panels = list(figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        found = [row for row in rows if row.name == name]
        axes.axhline(0, color=GRAY, lw=0.8, ls="--")
        axes.axvline(own, color=GRAY, lw=0.8, ls=":")
        tuned = ORANGE if found[0].trained_on else BLUE
        for color, label, values in (
            (GRAY, "base", [row.base_gain for row in found]),
            (tuned, "tuned", [row.tuned_gain for row in found]),
        ):
            scales = [row.scale for row in found]
            axes.plot(scales, [each.mean for each in values], "o-", color=color, ms=3, lw=1.6, label=label)
            ends = [each.low for each in values], [each.high for each in values]
            axes.fill_between(scales, *ends, color=color, alpha=0.2, lw=0)
        axes.set_title(shortened(name, 30), size=9, parse_math=False)
        finish(axes, legend=name == names[0])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel(
        "guidance scale (dotted: the run's own); gain over the base model at the run's own scale, with 95 % intervals; "
        "orange: trained on this scorer",
        size=8,
    )
    save(figure, path)


def trade_off(names: Sequence[str], kl: ArrayLike, judges: ArrayLike, on_front: Sequence[bool], path: Path) -> None:
    """Judges' gain against KL divergence, one point per run.

    Args:
        names: Names of N runs.
        kl: (N,), in nats.
        judges: (N,), selection score of the guard, in standard deviations.
        on_front: (N,), whether neither another run nor the base model is better in both.
        path: The PNG to write.
    """
    distance, gained = np.sqrt(np.maximum(np.asarray(kl, float), 0)), np.asarray(judges, float)
    figure = new_figure(7.5, 5)
    axes = figure.subplots()
    front = np.flatnonzero(on_front)
    order = front[np.argsort(distance[front])]
    axes.axhline(0, color=GRAY, lw=0.8)
    axes.plot(distance, gained, "o", color=GRAY, ms=5, label="runs")
    axes.plot([0, *distance[order]], [0, *gained[order]], "o-", color=BLUE, ms=6, lw=1, label="Pareto front")
    axes.annotate("base model", (0, 0), (4, -10), textcoords="offset points", size=7)
    for number in order:
        at = (distance[number], gained[number])
        side = "right" if distance[number] > np.mean([distance.min(), distance.max()]) else "left"
        axes.annotate(names[number], at, (0, 6), textcoords="offset points", size=7, ha=side, parse_math=False)
    axes.set(xlabel="√KL to the base model, in root nats", ylabel="judges' gain, in standard deviations")
    finish(axes)
    save(figure, path)


def progress_sheet(
    prompts: Sequence[str], columns: Mapping[str, ArrayLike], path: Path, notes: Sequence[str] = ()
) -> None:
    """One row per prompt, with the image of each model from the same noise.

    Args:
        prompts: P texts.
        columns: Images (P, 3, H, W) uint8 by name.
        path: The PNG to write.
        notes: P texts below the prompts, or none.
    """
    figure = new_figure(2.4 + 1.3 * len(columns), 1.35 * len(prompts) + 0.2)
    grid = figure.subplots(len(prompts), len(columns) + 1, squeeze=False, width_ratios=[1.7, *[1] * len(columns)])
    for line, prompt, number in zip(grid, prompts, range(len(prompts)), strict=True):
        for axes in line:
            axes.set_axis_off()
        text = "\n".join([*textwrap.wrap(prompt, 24, max_lines=5, placeholder=" …"), *notes[number : number + 1]])
        line[0].text(0, 0.5, text, va="center", size=8, parse_math=False, transform=line[0].transAxes)
        for axes, (name, images) in zip(line[1:], columns.items(), strict=True):
            image = np.asarray(images)[number].transpose(1, 2, 0)
            axes.imshow(image, interpolation="nearest" if max(image.shape) <= 128 else "antialiased")
            if number == 0:
                title = "\n".join(textwrap.wrap(shortened(name, 54), 18))
                axes.set_title(title, size=7, parse_math=False)
    save(figure, path)


def tuning_curves(rows: Iterable[Mapping[str, float]], path: Path) -> None:
    """Held-out metrics over the updates: reward, judges' gain, gold with its components, KL divergence.

    Args:
        rows: Rows of `metrics.csv`, see `read_metrics`.
        path: The PNG to write.
    """
    table = list(rows)
    names = sorted({key for row in table for key in row if key.startswith("val/")})
    figure = new_figure(4 * min(4, len(names)), 2.6 * -(-len(names) // 4))
    panels = list(figure.subplots(-(-len(names) // 4), min(4, len(names)), squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        steps, values = np.array([(row["step"], row[name]) for row in table if name in row]).T
        axes.plot(steps, values, color=BLUE, lw=1.8, marker="o", ms=3)
        axes.axhline(values[0], color=GRAY, lw=0.8, ls="--")
        axes.set(xlabel="update", title=name.removeprefix("val/"))
        finish(axes, legend=False)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    save(figure, path)
