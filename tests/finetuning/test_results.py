"""Verdicts on a run, in words."""

import math
from typing import Any

import pytest

from t2ifb.evaluation.statistics import Interval
from t2ifb.finetuning.results import keeps_base, verdict_sentence

FELL, BY_CHANCE = Interval(-0.3, -0.5, -0.1), Interval(-0.3, -0.7, 0.1)


def row(step: int, reward: float, judges: float, **more: float) -> dict[str, Any]:
    figures = {"reward": reward, "judges": judges, "kl": float(step), "kl_without_last_two": step / 4} | more
    return {"step": step} | {f"val/{name}": value for name, value in figures.items()}


RISES_AND_FALLS = [row(0, 1.0, 0.0, gold=0.5), {"step": 5}, row(10, 2.0, 0.4, gold=0.7), row(20, 3.0, 0.1, gold=0.6)]


def test_a_run_that_rose_and_fell_is_over_optimised_if_it_fell_beyond_chance() -> None:
    asked: list[tuple[int, int]] = []

    def change(earlier: int, later: int) -> Interval:
        asked.append((earlier, later))
        return FELL

    text = verdict_sentence(RISES_AND_FALLS, 10, change)
    assert asked == [(10, 20)]
    assert text == (
        "Kept step 10: reward +1.000, judges +0.400, gold +0.200; KL 10.00 nats, 2.50 without the last two steps. "
        "From step 10 to 20: reward +1.000, judges -0.300, gold -0.100: over-optimisation."
    )
    assert "over-optimisation" not in verdict_sentence(RISES_AND_FALLS, 10, lambda *_: BY_CHANCE)


def test_a_reward_that_fell_too_is_no_over_optimisation() -> None:
    rows = [row(0, 1.0, 0.0), row(10, 2.0, 0.4), row(20, 1.5, 0.1)]
    assert "over-optimisation" not in verdict_sentence(rows, 10, lambda *_: FELL)


def test_a_run_that_ends_at_its_best_is_not_compared_with_itself() -> None:
    def change(earlier: int, later: int) -> Interval:
        raise AssertionError

    assert "From step" not in verdict_sentence(RISES_AND_FALLS[:3], 10, change)


@pytest.mark.parametrize(("judges", "base"), [(0.4, False), (0.0, True), (-0.1, True), (math.nan, False)])
def test_the_base_model_is_kept_unless_a_checkpoint_is_above_it(judges: float, base: bool) -> None:
    rows = [row(0, 1.0, 0.0), row(10, 2.0, judges)]
    assert keeps_base(rows, 10) == base
    text = verdict_sentence(rows, 10, lambda *_: FELL, "the reward")
    assert text.startswith("Kept the base model: no checkpoint is better by the reward." if base else "Kept step 10:")
    assert "judges" not in text  # their gain is the reward's


@pytest.mark.parametrize("lost", ["kl", "kl_without_last_two", "judges"])
def test_a_metric_that_was_nan_is_left_out_or_nan(lost: str) -> None:
    """`read_metrics` drops it from its row."""
    for place in (1, 2):
        rows = [row(0, 1.0, 0.0), row(10, 2.0, 0.4), row(20, 3.0, 0.1)]
        del rows[place][f"val/{lost}"]
        text = verdict_sentence(rows, 10, lambda *_: FELL)
        assert text.startswith("Kept step 10: reward +1.000")
        assert ("nan" in text) == (lost != "judges" and place == 1)


def test_without_a_validation_nothing_is_claimed() -> None:
    for rows in ([], RISES_AND_FALLS[:2]):
        assert verdict_sentence(rows, 0, lambda *_: FELL) == "No validation took place."
