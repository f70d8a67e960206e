"""Figure of the study."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.reward_models.comparisons import KINDS
from t2ifb.evaluation.plots import PALETTE, finish, new_figure, save

SETS = ("test", "compositional")


def draw(result: dict[str, Any], path: Path) -> None:
    """Accuracy by variant, learning curves, and accuracy off the distribution.

    Args:
        result: Result of `judge_all`.
        path: The PNG to write.
    """
    variants = result["variants"]
    whole = [name for name in variants if "prompts" not in name or int(name.split()[1]) > result["prompts"]]
    figure = new_figure(13, 2.6 + 0.5 * len(whole))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1.25))
    _dots(left, variants, whole, SETS, "preference accuracy %")
    left.set_title("agreement with the annotators", size=10, pad=40)
    _curves(middle, result)
    _dots(right, variants, whole, list(KINDS), "agreement with gold %")
    right.set_title("off the distribution: damaged test images", size=10, pad=40)
    right.set_yticklabels([])
    figure.supxlabel("dots: mean over the seeds with its 95 % interval over prompts; ticks: single seeds", size=9)
    save(figure, path)


def _dots(axes: Axes, variants: dict[str, Any], names: list[str], sets: Any, label: str) -> None:
    """One row per variant: the mean over seeds with its interval, and each seed as a small dot."""
    for number, (name_of_set, color) in enumerate(zip(sets, PALETTE, strict=False)):
        for row, name in enumerate(names):
            figures = variants[name][name_of_set]
            height = row + (number - (len(sets) - 1) / 2) * 0.22
            mean, low, high = (100 * figures["over_seeds"][key] for key in ("mean", "low", "high"))
            errors = [[mean - low], [high - mean]]
            label_ = name_of_set if row == 0 else None
            axes.errorbar(mean, height, xerr=errors, fmt="o", color=color, ms=5, capsize=2, lw=1, label=label_)
            axes.plot(100 * np.array(figures["accuracy"]), [height] * len(figures["accuracy"]), "|", color=color, ms=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="x")
    _legend_above(axes, len(sets))


def _curves(axes: Axes, result: dict[str, Any]) -> None:
    """Accuracy over training prompts."""
    variants = result["variants"]
    colors = iter(PALETTE)
    for head in sorted({name.split(",")[0] for name in variants if "prompts" in name}):
        if head not in variants:
            continue
        points = {int(n.split()[1]): v for n, v in variants.items() if n.startswith(f"{head}, ") and "prompts" in n}
        curve = sorted([*points.items(), (result["prompts"], variants[head])], key=lambda point: point[0])
        counts = [count for count, _ in curve]
        color = next(colors)
        for split, style in zip(SETS, ("-", "--"), strict=True):
            figures = [100 * np.array([v[split]["over_seeds"][k] for k in ("mean", "low", "high")]) for _, v in curve]
            mean, low, high = np.array(figures).T
            axes.errorbar(
                counts, mean, yerr=[mean - low, high - mean], ls=style, marker="o", ms=4, capsize=2, lw=1.2,
                color=color, label=f"{head}, {split}",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("training prompts")
    axes.set_ylabel("preference accuracy %")
    axes.set_title("how much data", size=10, pad=40)
    finish(axes, legend=False)
    _legend_above(axes, 2)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
