"""Figures of the rounds."""

from pathlib import Path
from typing import Any

from t2ifb.iteration.results import best_round, figures_of


def figures(metrics: Path, *before: dict[str, Any], agreement: dict[str, float] | None = None) -> dict[str, Any]:
    metrics.write_text("step,val/judges,val/gold,train/loss\n0,0.0,0.5,\n1,,,2.0\n2,0.1,0.6,\n")
    collected = {"rankings": 7, "reward_agreement": agreement}
    tuning = {"network_evaluations": 30, "validation": {"judges": 0.1, "gold": 0.6}, "kept": "tuned"}
    tuning["judge_weights"] = {"clip_score": 1.0}
    reward = {"validation": {"accuracy": 0.75, "loss": 0.5}}
    return figures_of(1 + len(before), collected, reward, tuning, metrics, 12, list(before))


def test_rankings_add_up_and_scores_are_those_of_base_and_kept_checkpoint(tmp_path: Path) -> None:
    first = figures(tmp_path / "metrics.csv")
    second = figures(tmp_path / "metrics.csv", first, agreement={"mean": 0.6, "low": 0.5, "high": 0.7})
    assert first["reward_agreement"] is None
    assert second == {
        "round": 2,
        "new_rankings": 7,
        "rankings": 14,
        "reward_agreement": 0.6,
        "reward_accuracy": 0.75,
        "network_evaluations": 30,
        "drawing_evaluations": 12,
        "base_validation": {"judges": 0.0, "gold": 0.5},
        "validation": {"judges": 0.1, "gold": 0.6},
        "judge_weights": {"clip_score": 1.0},
        "kept": "tuned",
    }


def test_the_best_round_is_that_of_the_highest_selection_score() -> None:
    scores = (0.1, 0.3, 0.3, -1.0)
    rounds = [{"round": n, "validation": {"judges": value}} for n, value in enumerate(scores, 1)]
    # Each round has another reward, so the last round counts without judges.
    for weights, best in (({"clip_score": 1.0}, (2, True)), ({"reward": 1.0}, (4, False))):
        assert best_round([figures | {"judge_weights": weights} for figures in rounds]) == best
