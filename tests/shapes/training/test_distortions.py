"""Damage to pictures, and its words."""

import torch

from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.distortions import ASPECTS, QUALITY_WORDS, Damage
from t2ifb.shapes.training.loop import generator, rendered


def test_no_damage_leaves_the_picture_and_more_damage_moves_it_further() -> None:
    images = rendered("train", 40, seed=0).images.float() / 255
    for aspect in range(len(ASPECTS)):
        distances = []
        for level in (0.0, 0.25, 0.5, 1.0):
            severity = torch.zeros(len(images), len(ASPECTS))
            severity[:, aspect] = level
            damaged = distortions.apply(images, Damage(severity), generator(1))
            assert damaged.shape == images.shape
            assert damaged.min() >= 0
            assert damaged.max() <= 1
            distances.append((damaged - images).abs().mean().item())
        assert distances[0] < 1e-5
        assert distances == sorted(distances), ASPECTS[aspect]


def test_words_follow_severity() -> None:
    for aspect, words in QUALITY_WORDS.items():
        said = [distortions.word(aspect, severity) for severity in torch.linspace(0, 1, 101).tolist()]
        assert list(dict.fromkeys(said)) == list(words)


def test_a_quarter_and_more_is_undamaged() -> None:
    damage = distortions.sample(2000, generator(0))
    assert 0.25 < (damage.overall == 0).float().mean() < 0.4
    assert damage.severity.min() >= 0
    assert damage.severity.max() <= 1
