"""Accuracy of reward models that are trained on few comparisons, by what training starts from. See README.md.

python -m experiments.few_comparisons.study            # trains missing runs, writes result.json and result.png
python -m experiments.few_comparisons.study --judge    # from finished runs
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.runs import Run, conduct, finished, folder, origin

HERE = Path(__file__).parent
PROMPTS = (4, 8, 16, 32, 64, 128)
"""Training prompts, each with 13 comparisons on average."""
UPDATES, COMPARISONS, BATCH = 200, 13, 256
"""Updates of each run, mean comparisons of a prompt, and comparisons of a batch."""
STARTS: dict[str, tuple[str, ...]] = {
    "mlp": (),
    "interaction": ("head=interaction",),
    "bilinear, from CLIP Score": ("head=bilinear",),
    "ImageReward": ("encoder.init=image_reward:t2ifb/shapes/weights/image_reward",),
}
"""What training starts from: a head with random weights, or one that begins as a scorer."""
BEFORE = {"bilinear, from CLIP Score": "CLIP Score", "ImageReward": "ImageReward before training"}
"""Row of the scorer that a start begins as, in a run's table."""


def run_of(start: str, prompts: int, seed: int) -> Run:
    """Run of a start on so many training prompts, which the seed draws. Its last state counts: nothing is chosen."""
    epochs = max(1, round(UPDATES * BATCH / max(BATCH, COMPARISONS * prompts)))
    options = {"train_prompts": prompts, "epochs": epochs, "validations_per_epoch": 1 / epochs}
    quick = ("dataset.ceiling=null", "dataset.ceiling_parts=[]", "dataset.test_splits=[test]")
    arguments = ("+experiment=reward_mlp", f"seed={seed}", *STARTS[start], *quick)
    settings = (f"algorithm.{name}={value}" for name, value in options.items())
    return Run(folder("few_comparisons", f"{start}, {prompts}", seed), (*arguments, *settings))


def compare(seeds: list[int]) -> dict[str, Any]:
    """Test accuracy of each start, and training comparisons, by number of training prompts: a number for each seed."""
    done = finished({start: [run_of(start, n, seed) for n in PROMPTS for seed in seeds] for start in STARTS})
    every = [run for some in done.values() for run in some]

    def each(value: Callable[[dict[str, Any]], Any]) -> dict[str, dict[int, list[Any]]]:
        return {s: {n: [value(run_of(s, n, seed).summary) for seed in seeds] for n in PROMPTS} for s in done}

    tables = {start: done[start][0].summary["test/table"] for start in done}
    return {
        **origin("few_comparisons", seeds, every),
        "test_comparisons": every[0].summary["test/comparisons"],
        "comparisons": each(lambda summary: summary["data"]["comparisons"]),
        "accuracy": each(lambda summary: summary["test/accuracy"]),
        "before": {start: tables[start][row] for start, row in BEFORE.items() if start in done},
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Learning curves: mean over seeds, with the range of the seeds."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for start, by_prompts in result["accuracy"].items():
        comparisons = [COMPARISONS * int(prompts) for prompts in by_prompts]
        values = 100 * np.array(list(by_prompts.values()))
        (line,) = axis.plot(comparisons, values.mean(1), marker="o", label=start)
        axis.fill_between(comparisons, values.min(1), values.max(1), alpha=0.15, color=line.get_color())
        if start in result["before"]:
            axis.axhline(100 * result["before"][start], color=line.get_color(), linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks([COMPARISONS * prompts for prompts in PROMPTS], [str(COMPARISONS * n) for n in PROMPTS])
    axis.minorticks_off()
    axis.set_xlabel("training comparisons; dashed: before training")
    axis.set_ylabel("accuracy on test prompts, %")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train, compare, draw."""
    conduct(
        HERE, __doc__, STARTS, lambda start, seed: [run_of(start, n, seed) for n in PROMPTS], compare, draw
    )  # fmt: skip


if __name__ == "__main__":
    main()
