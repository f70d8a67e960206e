"""ReFL, DRaFT and reward-weighted likelihood in the same time. README.md has question and answer.

python -m experiments.algorithms.study            # trains what is missing, writes result.json, result.png
python -m experiments.algorithms.study --judge    # writes them from what is finished
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
"""Updates of 16 prompts: they took 3.9, 4.6 and 3.3 seconds each, two runs at a time on two cores, so about 250 seconds
in all. Each is a multiple of 4, so that the last state is validated too."""
PROMPTS = 4800
"""Training prompts."""
COMMON = ("algorithm.validation_prompts=32", "prompts.test.count=200")
"""Half of the prompts that each is usually judged by."""
LOOSE = "1e-4"
"""A hundredth of the usual beta for DRaFT and reward-weighted likelihood.

Both penalise step 18, which has 73 % of the KL's weight; the window of `refl` does not hold it.
"""


def _arguments(experiment: str, *more: str) -> list[str]:
    updates = UPDATES[experiment]
    lengths = f"algorithm.epochs={updates * 16 / PROMPTS}", f"algorithm.validate_every={updates // 4}"
    return [f"+experiment={experiment}", *lengths, *COMMON, *more]


VARIANTS = {name: _arguments(name) for name in UPDATES}
VARIANTS |= {f"{name}, beta {LOOSE}": _arguments(name, f"algorithm.beta={LOOSE}") for name in UPDATES if name != "refl"}
"""What each is run with."""


def run_of(variant: str, seed: int) -> Run:
    """The run of an algorithm and a seed."""
    overrides = (*VARIANTS[variant], f"seed={seed}", f"reward.source={reported(seed).path}")
    return Run(folder("algorithms", variant, seed), overrides)


draw = partial(draw_against, {"seconds of training, validations left out": seconds, "√KL, in root nats": distance})


def main() -> None:
    """Train, compare, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (reported(which[1]), run_of(*which)), compare, draw)


def compare(seeds: list[int]) -> dict[str, Any]:
    """Every algorithm whose runs are all finished: over the updates on validation prompts, and on test prompts."""
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
