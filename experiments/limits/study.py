"""Which part limits fine-tuning: the reward, the adapters, or the algorithm. See README.md.

python -m experiments.limits.study            # trains missing runs, writes result.json, result.png
python -m experiments.limits.study --judge    # writes them from finished runs
"""

from pathlib import Path
from typing import Any

from experiments.held_out import difference, tested
from experiments.limits.pictures import draw
from experiments.reward_models.study import reported
from experiments.runs import Run, conduct, finished, folder

HERE = Path(__file__).parent
BY_GOLD = ("head=interaction", "+build.noise=0", "+build.tie_width=0", "dataset.source=${data_folder}/shapes-2-by-gold")
"""Annotators without noise; the head that is best on validation rankings."""
VARIANTS = {
    "learned": "the report's reward model",
    "distilled": "an interaction head whose annotators are gold itself",
    "supervised": "no reward: clean renders of training prompts",
}
"""Training signal of each variant."""


def reward_of(variant: str, seed: int) -> Run:
    """Reward run that a variant is tuned on, or only monitored with."""
    if variant == "distilled":
        return Run(folder("limits", "reward_by_gold", seed), ("+experiment=reward_mlp", f"seed={seed}", *BY_GOLD))
    return reported(seed)


def run_of(variant: str, seed: int) -> Run:
    """Run of a variant and a seed."""
    overrides = ("+experiment=refl", f"seed={seed}", f"reward.source={reward_of(variant, seed).path}")
    module = "experiments.limits.supervised" if variant == "supervised" else "t2ifb.train"
    return Run(folder("limits", variant, seed), overrides, module)


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reward_of(*which), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Test results of every variant with finished runs: the kept state against the base model."""
    runs = {variant: [run_of(variant, seed) for seed in seeds] for variant in VARIANTS}
    done = finished(runs)
    result: dict[str, Any] = {"command": "python -m experiments.limits.study", "seeds": seeds, "variants": {}}
    for variant, some in done.items():
        found = tested(some, "kept")
        result["test_prompts"] = found.pop("prompts")
        summaries = [run.summary for run in some]
        rewards = [reward_of(variant, seed).summary for seed in seeds]
        result["variants"][variant] = {
            "what": VARIANTS[variant],
            "git_commits": sorted({str(summary["git_commit"]) for summary in summaries}),
            "reward_accuracy_on_its_own_annotators": [reward["test/accuracy"] for reward in rewards]
            if variant != "supervised"
            else None,
            "kept_step": [summary.get("best_step", summary["steps"]) for summary in summaries],
            "wall_seconds": [summary["wall_seconds"] for summary in summaries],
            **found,
        }
    result["against_learned"] = {
        variant: difference(some, done["learned"], "kept")
        for variant, some in done.items()
        if variant != "learned" and "learned" in done
    }
    return result


if __name__ == "__main__":
    main()
