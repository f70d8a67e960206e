"""The sentence on a sweep over guidance scales is true in every case, and its tables have the values of the sweep."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.guidance_sweep import BEST, EQUAL, JUDGES, OWN, GuidanceSweep, sweep_guidance
from t2ifb.evaluation.guidance_verdict import card, deciding, headline, sentence, show_sweep, write_sweep
from t2ifb.evaluation.statistics import Interval
from tests.evaluation.pictures import assert_picture
from tests.evaluation.test_guidance_sweep import plane

UP, DOWN, NONE = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05), Interval(0.01, -0.02, 0.04)
MISSING = Interval(np.nan, np.nan, np.nan)


def swept(base: dict[float, float], tuned: dict[float, float], scales: Sequence[float] = (1, 4)) -> GuidanceSweep:
    return sweep_guidance(plane(base, tuned), Sampler(20, 1), scales, {"judge": 1.0}, ["reward"], images=2)


@pytest.mark.parametrize(
    ("own", "best", "scales", "expected"),
    [
        (UP, UP, (1, 4, 4), "The gain holds against the base model at guidance 4"),
        (UP, NONE, (1, 4, 1), "The gain disappears against the base model at guidance 4"),
        (UP, MISSING, (1, 4, 1), "The gain disappears against the base model at guidance 4"),
        (UP, DOWN, (1, 4, 1), "The gain disappears against the base model at guidance 4, which is better than the"),
        (UP, NONE, (1, 1, 4), "The gain disappears at guidance 4, which the scorers prefer for the tuned model"),
        (UP, DOWN, (1, 1, 4), "The gain turns into a loss at guidance 4, which the scorers prefer"),
        (NONE, UP, (1, 4, 4), "The tuned model is better than the base model at guidance 4, though not at its own"),
        (NONE, NONE, (1, 4, 4), "No gain can be shown against the base model at guidance 4"),
        (DOWN, NONE, (1, 2.5, 4), "No gain can be shown against the base model at guidance 2.5"),
        (NONE, DOWN, (1, 4, 4), "The tuned model is worse than the base model at guidance 4"),
        (DOWN, DOWN, (4, 4, 4), "The tuned model is worse than the base model at guidance 4"),
        (MISSING, MISSING, (1, 1, 1), "No gain can be shown against the base model at guidance 1"),
    ],
)
def test_the_headline_says_what_is_true(
    own: Interval, best: Interval, scales: tuple[float, float, float], expected: str
) -> None:
    assert headline(own, best, *scales).startswith(expected)


def test_the_sentence_has_the_figures_of_both_comparisons() -> None:
    found = sentence(swept(base={1: 0.0, 4: 0.5, 6: 0.2}, tuned={1: 0.4, 4: -0.2, 6: -0.4}, scales=[1, 4, 6]))
    assert found == (
        "The gain disappears against the base model at guidance 4, which is better than the tuned model: gold "
        "+0.400 [+0.400, +0.400] at guidance 1, -0.100 [-0.100, -0.100] with each at its best scale (tuned 1, base 4); "
        "40 test prompts."
    )


def test_a_best_scale_at_the_edge_limits_the_verdict() -> None:
    found = sentence(swept(base={1: 0.0, 4: 0.5}, tuned={1: 0.4, 4: 0.7}))
    assert found.startswith("The gain holds against the base model at guidance 4: gold +0.400")
    assert found.endswith("40 test prompts, no scale above 4 tried.")


def test_one_scale_is_called_one() -> None:
    assert sentence(swept(base={1: 0.0}, tuned={1: 0.1}, scales=[])) == (
        "The gain holds against the base model at guidance 1: gold +0.100 [+0.100, +0.100] at guidance 1, the best "
        "scale of both models; 40 test prompts, no other scale tried."
    )


def test_without_gold_the_judges_decide_and_without_judges_the_reward() -> None:
    sentences: list[str] = []

    def without(*names: str) -> list[str]:
        draw = plane({1: 0.0}, {1: 0.1})

        def fewer(wanted):  # type: ignore[no-untyped-def]
            return [{name: each for name, each in found.items() if name not in names} for found in draw(wanted)]

        judges = {"judge": 1.0} if "judge" not in names else {"reward": 1.0}
        sweep = sweep_guidance(fewer, Sampler(20, 1), [], judges, ["reward"])
        sentences.append(sentence(sweep))
        return [deciding(sweep)]

    assert [*without(), *without("gold"), *without("gold", "judge")] == ["gold", JUDGES, "reward"]
    assert ["(trained on)" in text for text in sentences] == [False, False, True]


def test_tables_and_figure_are_written_with_every_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = swept(base={1: 0.0, 4: 0.5}, tuned={1: 0.4, 4: -0.2})
    content = json.loads(json.dumps(write_sweep(found, tmp_path, "_1_run")))
    assert content["best_scale"] == {"base": 4, "tuned": 1} and content["sentence"] == sentence(found)
    assert content["comparisons"][OWN]["gains"]["gold"]["difference"]["mean"] == pytest.approx(0.4)
    scales = pd.read_csv(tmp_path / "guidance_scales_1_run.csv")
    assert scales.scorer.tolist() == ["judge", "reward", "gold", JUDGES] * 2
    assert scales.base_gain[scales.scorer == "gold"].tolist() == pytest.approx([0.0, 0.5])
    matches = pd.read_csv(tmp_path / "guidance_comparisons_1_run.csv")
    one = matches[(matches.scorer == "gold") & (matches.comparison == EQUAL)].iloc[0]
    assert (one.base_settings, one.base_evaluations, one.other_evaluations) == ("guidance 4, 10 steps", 20, 20)
    assert_picture(tmp_path / "guidance_scales_1_run.png", 4)
    show_sweep(found, "the run")
    printed = capsys.readouterr().out
    assert printed.startswith(sentence(found)) and "40 / 80" in printed  # best of 2
    assert BEST in card(found) and "reward (trained on)" in card(found)
    assert "Scales were chosen by the held-out scorers on 40 validation prompts." in card(found)
    assert "Scales were chosen by the reward" in card(replace(found, judges={"reward": 1.0}))
