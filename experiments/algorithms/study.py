"""ReFL, DRaFT and reward-weighted likelihood at equal training time. See README.md.

python -m experiments.algorithms.study            # trains missing runs, writes result.json, result.png
python -m experiments.algorithms.study --judge    # writes them from finished runs
"""

from functools import partial
from pathlib import Path
from typing import Any

from experiments.course_pictures import distance, draw_against, seconds
from experiments.held_out import courses, difference, tested
from experiments.reward_models.study import reported
from experiments.runs import Run, conduct, finished, folder, origin

HERE = Path(__file__).parent
UPDATES = {"refl": 64, "draft": 56, "reward_weighted": 76}
"""Updates of 16 prompts. They took 3.9, 4.6 and 3.3 seconds each, with two runs at a time on two cores, hence about
250 seconds in total. Each number is a multiple of 4, so that the last state is validated."""
PROMPTS = 4800
"""Number of training prompts."""
COMMON = ("algorithm.validation_prompts=32", "prompts.test.count=200")
"""Half of the usual evaluation prompts."""
LOOSE = "1e-4"
"""A hundredth of the default beta for DRaFT and reward-weighted likelihood.

Both penalise step 18, which has 73 % of the KL's weight and is outside the window of `refl`.
"""


def _arguments(experiment: str, *more: str) -> list[str]:
    updates = UPDATES[experiment]
    lengths = f"algorithm.epochs={updates * 16 / PROMPTS}", f"algorithm.validate_every={updates // 4}"
    return [f"+experiment={experiment}", *lengths, *COMMON, *more]


VARIANTS = {name: _arguments(name) for name in UPDATES}
VARIANTS |= {f"{name}, beta {LOOSE}": _arguments(name, f"algorithm.beta={LOOSE}") for name in UPDATES if name != "refl"}
"""Arguments of each variant."""


def run_of(variant: str, seed: int) -> Run:
    """Run of an algorithm and a seed."""
    overrides = (*VARIANTS[variant], f"seed={seed}", f"reward.source={reported(seed).path}")
    return Run(folder("algorithms", variant, seed), overrides)


draw = partial(draw_against, {"seconds of training, without validations": seconds, "√KL, in root nats": distance})


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reported(which[1]), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Results of every algorithm with finished runs, over the updates on validation prompts and on test prompts."""
    runs = {variant: [run_of(variant, seed) for seed in seeds] for variant in VARIANTS}
    done = finished(runs)
    return {
        **origin("algorithms", seeds, [run for some in done.values() for run in some]),
        "variants": {
            variant: {"overrides": VARIANTS[variant], **courses(some)}
            | {"kept_step": [run.summary["best_step"] for run in some]}
            | {"test": {state: tested(some, state) for state in ("kept", "last")}}
            for variant, some in done.items()
        },
        "against_refl": {
            variant: {state: difference(some, done["refl"], state) for state in ("kept", "last")}
            for variant, some in done.items()
            if variant != "refl" and "refl" in done
        },
    }


if __name__ == "__main__":
    main()
