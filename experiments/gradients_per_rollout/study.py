"""Several gradients per rollout compared with one gradient per rollout. See README.md.

python -m experiments.gradients_per_rollout.study            # trains missing runs, writes result.json, result.png
python -m experiments.gradients_per_rollout.study --judge    # writes them from finished runs
"""

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from experiments.course_pictures import draw_against, seconds
from experiments.held_out import at_end, courses
from experiments.reward_models.study import reported
from experiments.runs import Run, conduct, finished, folder, origin

HERE = Path(__file__).parent
GRADIENTS, UPDATES, PROMPTS = 20, 60, 4800
"""Gradients per update, updates per run, training prompts."""


def settings(gradients_per_rollout: int) -> list[str]:
    """Settings with equal numbers of gradients and updates, and fewer rollouts for more gradients per rollout."""
    batch = GRADIENTS // gradients_per_rollout
    return [
        f"algorithm.algorithm.gradients_per_rollout={gradients_per_rollout}",
        f"algorithm.batch_size={batch}",
        f"algorithm.epochs={UPDATES * batch / PROMPTS}",
        "prompts.test.count=16",
    ]


VARIANTS = {f"m = {m}": settings(m) for m in (1, 2, 5, 10)}
"""Changes of each variant from `+experiment=refl`. Only 16 test prompts are used, at the end."""


def run_of(variant: str, seed: int) -> Run:
    """Run of a variant and a seed."""
    overrides = ("+experiment=refl", f"seed={seed}", f"reward.source={reported(seed).path}", *VARIANTS[variant])
    return Run(folder("gradients_per_rollout", variant.replace(" = ", ""), seed), overrides)


draw = partial(draw_against, {"updates": itemgetter("steps"), "seconds of training, without validations": seconds})


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reported(which[1]), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Results of every variant with finished runs, over the updates."""
    runs = {variant: [run_of(variant, seed) for seed in seeds] for variant in VARIANTS}
    done = finished(runs)
    every = [run for some in done.values() for run in some]
    return {
        **origin("gradients_per_rollout", seeds, every),
        "gradients_an_update": GRADIENTS,
        "variants": {variant: {"overrides": VARIANTS[variant]} | courses(some) for variant, some in done.items()},
        "against_own_rollouts": {
            variant: at_end(some, done["m = 1"])
            for variant, some in done.items()
            if variant != "m = 1" and "m = 1" in done
        },
    }


if __name__ == "__main__":
    main()
