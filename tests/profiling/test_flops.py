"""How long a run is, and what it computes."""

from types import SimpleNamespace
from typing import Any

import pytest

from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.algorithm import Work
from t2ifb.profiling.flops import FlopEstimate, Length
from t2ifb.profiling.memory_tracker import Operations


@pytest.mark.parametrize(
    ("prompts", "epochs", "every", "batch", "updates"),
    [
        (10, 1.0, 5, 1, 10), (10, 1.0, 5, 4, 3), (10, 2.0, 4, 4, 8), (10, 0.01, 100, 1, 1), (11, 2.0, 5, 2, 15),
        (4, 3.0, 100, 2, 6),
    ],
)  # fmt: skip
def test_a_run_ends_with_a_validation(prompts: int, epochs: float, every: int, batch: int, updates: int) -> None:
    length = Length(prompts, tests=1, epochs=epochs, validate_every=every, batch_size=batch)
    assert length.updates() == updates


def test_operations_add_up() -> None:
    """Six rows for twelve steps of rollouts, and a validation of three images with two steps and two calls each."""
    step, sample, judge = Operations(half=10.0, single=0.0), Operations(half=5.0, single=2.0), Operations(0.0, 1.0)
    tuning = SimpleNamespace(
        work=Work(steps=12.0, images=0, rows=6), algorithm=SimpleNamespace(updates_per_experience=1),
        sampling=SimpleNamespace(num_inference_steps=2),
    )  # fmt: skip
    costs = {"update": SimpleNamespace(denoising=step, sample=sample, scoring=judge)}
    costs["judging"] = SimpleNamespace(denoising=step, sample=judge)
    run: Any = SimpleNamespace(tuning=tuning, images=3, **costs)
    found = FlopEstimate.of(run, Length(prompts=9, tests=7, epochs=1, validate_every=2, batch_size=3))
    assert (found.updates, found.validations) == (4, 2)
    assert (found.gradient.half, found.gradient.single) == (5 + 2 * 10, 2)
    assert (found.update.half, found.update.single) == (6 * 25, 6 * 2)
    assert found.training.half == 4 * 150
    assert (found.validation.half, found.validation.single) == (3 * 2 * 2 * 10, 3)
    base, policy = 20, 40  # two steps with one call and with two
    assert found.judging.half == 3 * base + 2 * 120 + 7 * (base + 2 * policy)
    assert found.judging.single == 3 * 1 + 2 * 3 + 7 * 3
    assert found.run.half == found.training.half + found.judging.half


def test_sampling_and_scoring_are_shared_by_the_updates_of_an_experience() -> None:
    """Two prompts and four updates per experience; each update has five rows."""
    step, row, image = Operations(half=10.0), Operations(half=3.0), Operations(single=1.0)
    tuning = SimpleNamespace(
        work=Work(steps=80.0, images=4, rows=20), algorithm=SimpleNamespace(updates_per_experience=4),
        sampling=SimpleNamespace(num_inference_steps=2),
    )  # fmt: skip
    update = SimpleNamespace(denoising=step, sample=row, scoring=image)
    run: Any = SimpleNamespace(tuning=tuning, images=3, update=update, judging=update)
    found = FlopEstimate.of(run, Length(prompts=6, tests=1, epochs=1, validate_every=100, batch_size=2))
    assert found.updates == 12
    assert found.update.half == pytest.approx(80 * 10 / 4 + 5 * 3)
    assert found.update.single == pytest.approx(4 / 4)


def test_the_comparison_over_guidance_scales_is_counted() -> None:
    """Both models are drawn on both splits at guidance 1 and 4; test images at 4 are the report's and not drawn again.

    The base model is also drawn with half of the steps, and twice more per prompt for the best of three.
    """
    step, image = Operations(half=10.0), Operations(single=1.0)
    tuning = SimpleNamespace(
        work=Work(steps=0.0, images=0, rows=1), algorithm=SimpleNamespace(updates_per_experience=1),
        sampling=Sampler(4, 4.0), guidance_scales=[1.0], best_of=3,
    )  # fmt: skip
    costs = SimpleNamespace(denoising=step, sample=image, scoring=image)
    run: Any = SimpleNamespace(tuning=tuning, images=1, update=costs, judging=costs)
    without, counted = (
        FlopEstimate.of(run, Length(prompts=1, tests=1, epochs=1, validate_every=1, compared=compared)).judging
        for compared in (0, 5)
    )
    guided, unguided = 4 * 10, 4 * 5
    added = 2 * guided + (2 + 2) * unguided + 2 * guided / 2 + 2 * guided
    assert counted.half - without.half == 5 * added
    assert counted.single - without.single == 5 * (2 + 4 + 2 + 2)
