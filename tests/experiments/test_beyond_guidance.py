"""The study of gains at guidance 4: its figures, by hand."""

import numpy as np
import pytest

from experiments.beyond_guidance.study import BATCH, TRAINING_PROMPTS, gold_of_best, lengths
from t2ifb.evaluation.scoring import ScoreSheet


def test_the_best_image_is_the_rewards_choice() -> None:
    gold, reward = np.array([0.1, 0.9, 0.5, 0.7]), np.array([2.0, 1.0, 0.0, 3.0])
    sheet = ScoreSheet(["a", "a", "b", "b"], {"gold": gold, "reward": reward})
    assert gold_of_best(sheet, 2) == pytest.approx((0.1 + 0.7) / 2)


def test_lengths_give_the_number_of_updates() -> None:
    settings = dict(each.split("=") for each in lengths(200, 50))
    experiences = float(settings["algorithm.epochs"]) * TRAINING_PROMPTS / BATCH
    assert round(experiences * 50) == int(settings["algorithm.validate_every"]) == 200
