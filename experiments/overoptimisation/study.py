"""What is gained and lost on the way from the base model, and what a guard should keep of it; README.md has the answer.

python -m experiments.overoptimisation.study            # trains what is missing, writes result.json, result.png
python -m experiments.overoptimisation.study --judge    # writes them from what is finished
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
"""First and last of the 20 steps that gradients are taken at."""
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
"""What those of the grid differ in from `+experiment=refl`: 60 updates of 24 gradients, three times its learning rate
to get far in them. No test prompts are looked at but for 16 at the end."""
GRID = {
    f"{window}, alpha/beta {ratio}": [f"algorithm.method.window=[{first},{last}]", f"algorithm.beta={beta}", *COMMON]
    for window, (first, last) in WINDOWS.items()
    for ratio, beta in RATIOS.items()
}
FAILING = "made to fail"
"""Runs of `+experiment=refl_overoptimised`."""
VARIANTS = {**GRID, FAILING: ["prompts.test.count=100"]}


def run_of(variant: str, seed: int) -> Run:
    """The run of a variant and a seed."""
    what = ["+experiment=refl_overoptimised"]
    if variant in GRID:
        what = ["+experiment=refl", f"reward.source={reported(seed).path}"]
    name = variant.replace("alpha/beta ", "ratio ")
    return Run(folder("overoptimisation", name, seed), (*what, f"seed={seed}", *VARIANTS[variant]))


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reported(which[1]), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Every variant whose runs are all finished, over the updates; and what each rule of a guard would have kept."""
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
    """How much more gold a ratio has after all updates than no KL divergence, on validation prompts, paired."""
    none, some = (done.get(f"{window}, alpha/beta {which}") for which in (NO_KL, ratio))
    return at_end(some, none)["gold"] if none and some else None


if __name__ == "__main__":
    main()
