"""Figure of the study."""

from pathlib import Path
from typing import Any

from experiments.held_out import GOLD
from t2ifb.evaluation.plots import GRAY, PALETTE, new_figure, save


def draw(result: dict[str, Any], path: Path) -> None:
    """Gain in gold and its components by variant: each seed, and the mean over seeds with its interval.

    Args:
        result: Result of `compare`.
        path: The PNG to write.
    """
    variants = result["variants"]
    figure = new_figure(9, 3.4)
    axes = figure.subplots()
    for number, (name, color) in enumerate(zip(GOLD, PALETTE, strict=False)):
        for row, figures in enumerate(variants.values()):
            height = row + (number - 1) * 0.2
            gained = figures["gain"][name]
            mean, low, high = (gained["over_seeds"][key] for key in ("mean", "low", "high"))
            label = name.removeprefix("gold/") if row == 0 else None
            axes.errorbar(
                mean, height, xerr=[[mean - low], [high - mean]], fmt="o", color=color, ms=5, capsize=2, label=label
            )
            axes.plot([one["mean"] for one in gained["seeds"]], [height] * len(gained["seeds"]), "|", color=color, ms=8)
    axes.axvline(0, color=GRAY, lw=0.8)
    axes.set_yticks(range(len(variants)), [f"{name}:\n{figures['what']}" for name, figures in variants.items()])
    axes.invert_yaxis()
    axes.set_xlabel(f"gain over the base model on {result['test_prompts']} test prompts; ticks: single seeds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, axis="x")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)
