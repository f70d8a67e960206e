"""Gains and losses with growing distance from the base model, and selection rules of a guard. See README.md.

python -m experiments.overoptimisation.study            # trains missing runs, writes result.json, result.png
python -m experiments.overoptimisation.study --judge    # writes them from finished runs
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.held_out import at_end, courses, difference, tested
from experiments.overoptimisation.guard import RULES, kept
from experiments.overoptimisation.pictures import draw
from experiments.reward_models.study import reported
from experiments.runs import Run, conduct, finished, folder, origin

HERE = Path(__file__).parent
WINDOWS = {"early": (2, 7), "middle": (8, 13), "late": (14, 19)}
"""First and last of the 20 steps at which gradients are taken."""
NO_KL = "infinite"
RATIOS = {"1": 1.0, "10": 0.1, "100": 0.01, NO_KL: 0.0}
"""beta by alpha / beta, where alpha is 1."""
COMMON = [
    "optimizer.lr=3e-3",
    "algorithm.batch_size=8",
    "algorithm.epochs=0.1",
    "algorithm.validate_every=15",
    "algorithm.validation_prompts=48",
    "prompts.test.count=16",
]
"""Changes of the grid from `+experiment=refl`: 60 updates of 24 gradients, and three times its learning rate, for a
large distance. Only 16 test prompts are used, at the end."""
GRID = {
    f"{window}, alpha/beta {ratio}": [f"algorithm.algorithm.window=[{first},{last}]", f"algorithm.beta={beta}", *COMMON]
    for window, (first, last) in WINDOWS.items()
    for ratio, beta in RATIOS.items()
}
FAILING = "made to fail"
"""Name of the runs of `+experiment=refl_overoptimised`."""
VARIANTS = {**GRID, FAILING: ["prompts.test.count=100"]}


def run_of(variant: str, seed: int) -> Run:
    """Run of a variant and a seed."""
    what = ["+experiment=refl_overoptimised"]
    if variant in GRID:
        what = ["+experiment=refl", f"reward.source={reported(seed).path}"]
    name = variant.replace("alpha/beta ", "ratio ")
    return Run(folder("overoptimisation", name, seed), (*what, f"seed={seed}", *VARIANTS[variant]))


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reported(which[1]), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Results of every variant with finished runs, over the updates, and the checkpoints kept by each rule."""
    done = finished({variant: [run_of(variant, seed) for seed in seeds] for variant in VARIANTS})
    every = [run for some in done.values() for run in some]
    kinds = {
        kind: [run for variant in of_kind if variant in done for run in done[variant]]
        for kind, of_kind in {"grid": list(GRID), FAILING: [FAILING]}.items()
    }
    failing = kinds[FAILING]
    return {
        **origin("overoptimisation", seeds, every),
        "windows": WINDOWS,
        "variants": {variant: {"overrides": VARIANTS[variant]} | courses(some) for variant, some in done.items()},
        "against_no_kl": {
            window: {ratio: against_no_kl(done, window, ratio) for ratio in RATIOS if ratio != NO_KL}
            for window in WINDOWS
        },
        "guards": {
            rule: {kind: found for kind, some in kinds.items() if some and (found := kept(some, choose)) is not None}
            for rule, choose in RULES.items()
        },
        "kept_against_last": difference(failing, failing, "kept", "last")["gold"] if failing else None,
        "made_to_fail": {
            f"seed {run.summary['seed']}": {
                "sentence": run.summary["sentence"],
                "test": {state: tested([run], state) for state in ("kept", "last")},
            }
            for run in failing
        },
    }


def against_no_kl(done: Mapping[str, list[Run]], window: str, ratio: str) -> dict[str, Any] | None:
    """Difference in gold after all updates between a ratio and no KL divergence, paired on validation prompts."""
    none, some = (done.get(f"{window}, alpha/beta {which}") for which in (NO_KL, ratio))
    return at_end(some, none)["gold"] if none and some else None


if __name__ == "__main__":
    main()
