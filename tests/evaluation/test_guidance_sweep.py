"""The sweep over guidance scales chooses on validation and compares on test prompts, by hand-computed values."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.guidance_sweep import (
    BEST,
    BEST_OF,
    EQUAL,
    JUDGES,
    OWN,
    Draw,
    GuidanceSweep,
    Images,
    Scores,
    at_equal_cost,
    best_by,
    choose,
    in_words,
    judge_gain,
    sweep_guidance,
)

PROMPTS = 40
SPREAD = np.tile([-1.0, 1.0], PROMPTS // 2)[:, None]
"""Differences between prompts, with mean 0."""
SD = float(SPREAD.std(ddof=1))


def plane(base: dict[float, float], tuned: dict[float, float], gold: float = 0.0) -> Draw:
    """Scores of a judge by model and scale; half the steps cost 0.1. Gold adds `gold` times the scale.

    The reward of copy k is that of the judge plus k, and gold falls by k / 10.
    """

    def draw(wanted: Sequence[Images]) -> list[Scores]:
        found: list[Scores] = []
        for each in wanted:
            scale, copies = each.sampler.guidance_scale, np.arange(each.copies)
            level = {"base": base, "tuned": tuned}[each.model][scale]
            judge = level + SPREAD - 0.1 * (each.sampler.num_inference_steps < 20) + 0 * copies
            asked.append(each)
            found.append({"judge": judge, "reward": judge + copies, "gold": judge + gold * scale - copies / 10})
        return found

    asked: list[Images] = []
    draw.asked = asked  # type: ignore[attr-defined]
    return draw


def swept(draw: Draw, scales: Sequence[float] = (1, 4), own: float = 1, **settings: Any) -> GuidanceSweep:
    return sweep_guidance(draw, Sampler(20, own), scales, {"judge": 1.0}, **({"trained_on": ["reward"]} | settings))


def test_each_model_is_compared_at_its_own_best_scale() -> None:
    draw = plane(base={1: 0.0, 2: 0.3, 4: 0.5}, tuned={1: 0.4, 2: 0.2, 4: -0.2})
    found = swept(draw, [4, 2])
    assert (found.scales, found.base.guidance_scale, found.tuned.guidance_scale) == ([1.0, 2.0, 4.0], 4, 1)
    changes = {name: match.difference("gold").mean for name, match in found.matches.items()}
    assert changes[OWN] == pytest.approx(0.4)
    assert changes[BEST] == pytest.approx(0.4 - 0.5)
    assert changes[EQUAL] == pytest.approx(0.4 - (0.5 - 0.1))  # ten guided steps: better than 20 unguided ones
    assert changes[BEST_OF] == pytest.approx(-0.3)  # the reward prefers the last of four images
    assert found.matches[BEST].difference(JUDGES).mean == pytest.approx(-0.1 / SD)
    costs = {name: (match.base_evaluations, match.other_evaluations) for name, match in found.matches.items()}
    assert costs == {OWN: (20, 20), BEST: (40, 20), EQUAL: (20, 20), BEST_OF: (40, 160)}
    assert found.matches[EQUAL].base == "guidance 4, 10 steps" and found.matches[EQUAL].other == "no guidance"
    assert (found.validation_prompts, found.test_prompts) == (PROMPTS, PROMPTS)


def test_every_scorer_is_reported_at_every_scale() -> None:
    found = swept(plane(base={1: 0.0, 4: 0.5}, tuned={1: 0.4, 4: -0.2}))
    assert [(row.name, row.scale) for row in found.rows] == [
        (name, scale) for scale in (1, 4) for name in ("judge", "reward", "gold", JUDGES)
    ]
    (row,) = (row for row in found.rows if (row.name, row.scale) == ("gold", 4))
    assert (row.base, row.tuned) == (pytest.approx(0.5), pytest.approx(-0.2))
    figures = [each.mean for each in (row.difference, row.base_gain, row.tuned_gain)]
    assert figures == [pytest.approx(-0.7), pytest.approx(0.5), pytest.approx(-0.2)]
    assert {row.name for row in found.rows if row.trained_on} == {"reward"}


def test_gold_chooses_nothing() -> None:
    found = swept(plane(base={1: 0.5, 4: 0.0}, tuned={1: 0.5, 4: 0.4}, gold=9.0))
    assert (found.base.guidance_scale, found.tuned.guidance_scale) == (1, 1)


def test_scales_are_chosen_on_validation_prompts_only() -> None:
    levels = {"validation": {1: 0.0, 4: 1.0}, "test": {1: 1.0, 4: 0.0}}

    def draw(wanted: Sequence[Images]) -> list[Scores]:
        return [{"judge": levels[each.split][each.sampler.guidance_scale] + SPREAD} for each in wanted]

    found = swept(draw, trained_on=[])
    assert found.base.guidance_scale == found.tuned.guidance_scale == 4
    assert BEST_OF not in found.matches  # no reward


def test_the_unguided_base_model_stands_where_it_is_better_at_equal_cost() -> None:
    found = swept(plane(base={1: 0.45, 4: 0.5}, tuned={1: 0.4, 4: 0.0}))
    assert found.base.guidance_scale == 4
    assert found.matches[EQUAL].base == "no guidance"
    assert found.matches[EQUAL].difference("gold").mean == pytest.approx(-0.05)


def test_one_scale_needs_no_further_images() -> None:
    draw = plane(base={1: 0.0}, tuned={1: 0.1})
    found = swept(draw, [], images=1)
    assert found.scales == [1] and found.base == found.tuned == found.own
    assert [match.difference("gold").mean for match in found.matches.values()] == pytest.approx([0.1] * 3)
    assert len(draw.asked) == 4 and BEST_OF not in found.matches  # type: ignore[attr-defined]


def test_a_guided_run_is_compared_without_guidance_at_equal_cost() -> None:
    draw = plane(base={1: 0.2, 4: 0.5}, tuned={1: 0.4, 4: 0.7})
    found = swept(draw, [4], own=4)
    assert found.scales == [4]
    assert found.matches[EQUAL].difference("gold").mean == pytest.approx(0.4 - 0.4)
    assert len(draw.asked) == len(set(draw.asked))  # type: ignore[attr-defined]


def test_the_first_of_equal_scales_is_chosen_and_never_one_without_scores() -> None:
    nan = [np.nan]
    assert choose([[0.1, 0.3], [0.2, 0.2], [0.0, 0.1]]) == 0
    assert choose([[0.1], [0.2, np.nan], [0.2]]) == 1
    assert choose([nan, [-5.0], nan]) == 1
    assert choose([nan, nan, nan], otherwise=2) == 2


def test_judges_count_by_weight_in_the_base_models_deviations() -> None:
    before = {"one": np.array([[0.0], [2.0]]), "two": np.array([[1.0], [1.0]]), "three": np.array([[0.0], [9.0]])}
    after = {"one": np.array([[1.0], [np.nan]]), "two": before["two"] + 1, "three": before["three"]}
    found = judge_gain(before, after, {"one": 3.0, "two": 1.0, "three": 0.0})
    # The deviation of `one` is the root of 2. The scores of `two` have none, and keep their unit.
    assert found[0, 0] == pytest.approx((3 / 2**0.5 + 1) / 4, rel=1e-6) and np.isnan(found[1, 0])


def test_the_best_image_keeps_the_scores_of_all_scorers() -> None:
    scores = {"reward": np.array([[0.0, 2.0], [1.0, np.nan]]), "gold": np.array([[0.1, 0.2], [0.3, 0.4]])}
    first = {name: each[:, :1] for name, each in scores.items()}
    assert best_by(first, scores, ["reward"])["gold"].tolist() == [[0.2], [0.3]]
    scores["reward"][0] = [np.nan, 1.0]  # the first image has no score
    assert best_by(first, scores, ["reward"])["gold"].tolist() == [[0.2], [0.3]]


def test_equal_cost_is_counted_in_network_evaluations() -> None:
    assert [Sampler(20, scale).network_evaluations for scale in (1, 1.5, 7.5)] == [20, 40, 40]
    assert at_equal_cost(Sampler(20, 4), 20) == [Sampler(20, 1), Sampler(10, 4)]
    assert at_equal_cost(Sampler(20, 1), 20) == [Sampler(20, 1)]
    assert at_equal_cost(Sampler(5, 4), 5) == [Sampler(5, 1), Sampler(2, 4)]
    assert at_equal_cost(Sampler(3, 4), 3) == [Sampler(3, 1)]


def test_a_sampler_is_named_by_what_differs() -> None:
    own = Sampler(20, 1)
    names = [in_words(each, own) for each in (own, Sampler(20, 2.5), replace(own, num_inference_steps=10))]
    assert names == ["no guidance", "guidance 2.5", "no guidance, 10 steps"]


@pytest.mark.parametrize("scale", [0.5, float("nan")])
def test_a_scale_below_one_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="guidance_scales: .* is below 1, which is no guidance"):
        swept(plane(base={1: 0.0}, tuned={1: 0.0}), [scale])
