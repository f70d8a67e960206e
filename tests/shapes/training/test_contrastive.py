"""The contrastive loss is small for towers that know their pairs, and large for those that confuse them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.training import contrastive, pictures
from t2ifb.shapes.training.contrastive import CaptionedPictures
from t2ifb.shapes.training.distortions import ASPECTS, QUALITY_WORDS, Damage
from t2ifb.shapes.training.loop import rendered

SCENES = 12
PERFECT = {levels[0] for levels in QUALITY_WORDS.values()}


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaptionedPictures:
    """Undamaged pictures of few scenes, each twice, in small batches."""
    scenes, layouts, images = rendered("train", SCENES, seed=0)
    whole = Damage(torch.zeros(2 * SCENES, len(ASPECTS)))
    seen = pictures.Pictures(scenes, layouts, torch.cat([images, images]), whole)
    monkeypatch.setattr(pictures, "make", lambda *_: seen)
    monkeypatch.setattr(contrastive, "SCENES_A_BATCH", 6)
    return CaptionedPictures(tmp_path, seed=0, scenes=SCENES)


class Knowing(nn.Module):
    """Towers that recognise each picture and each true caption, with one direction for each scene."""

    def __init__(self, lesson: CaptionedPictures, wrong_by: int = 0) -> None:
        super().__init__()
        self.lesson, self.wrong_by = lesson, wrong_by

    def reader(self, *_: Any) -> Tensor:
        return torch.zeros(())

    def embed_images(self, images: Tensor) -> Tensor:
        known = self.lesson.seen.images.float() / 255
        number = torch.stack([(known - image).abs().mean((1, 2, 3)).argmin() % SCENES for image in images])
        return torch.eye(SCENES + 1)[(number + self.wrong_by) % SCENES]

    def embed_captions(self, captions: list[str]) -> Tensor:
        numbers = []
        for caption in captions:
            prompt, _, phrase = caption.partition(" background")
            true = f"{prompt} background" in self.lesson.prompts and set(phrase.strip(", ").split(", ")) <= PERFECT | {
                ""
            }
            numbers.append(self.lesson.prompts.index(f"{prompt} background") if true else SCENES)
        return torch.eye(SCENES + 1)[numbers]

    def scale(self) -> Tensor:
        return torch.tensor(1000.0)  # limited to 100


def test_towers_that_know_their_pairs_have_a_small_loss(lesson: CaptionedPictures) -> None:
    for step in range(3):
        right, wrong = (lesson.loss(Knowing(lesson, by), step).item() for by in (0, 1))  # type: ignore[arg-type]
        assert 0 <= right < np.log(4)  # a scene that is drawn twice can be confused with itself only
        assert 10 < wrong < 101


class Linear(nn.Module):
    """Towers that can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3 * 64 * 64, 8), nn.Embedding(128, 8)

    def reader(self, embeddings: Tensor, *_: Any) -> Tensor:
        return embeddings.square().mean()

    def embed_images(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.image(images.flatten(1)), dim=1)

    def embed_captions(self, captions: list[str]) -> Tensor:
        return torch.stack(
            [
                nn.functional.normalize(self.text(torch.tensor([ord(c) % 128 for c in t])).mean(0), dim=0)
                for t in captions
            ]
        )

    def scale(self) -> Tensor:
        return torch.tensor(10.0)


def test_a_step_repeats_itself_and_both_towers_learn(lesson: CaptionedPictures) -> None:
    towers = Linear()
    losses = [lesson.loss(towers, step) for step in (3, 3, 4)]  # type: ignore[arg-type]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    for weight in (towers.image.weight, towers.text.weight):
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


def test_a_nearly_right_caption_is_wrong_in_content_or_in_one_word_about_quality() -> None:
    scene = Scene.parse("a red circle on a gray background")
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        caption = contrastive._nearly_right(scene, "poor, blurry", rng)
        prompt, _, phrase = caption.partition(" background, ")
        words = phrase.split(", ")
        changed = [before != after for before, after in zip(("poor", "blurry"), words, strict=True)]
        content = Scene.parse(f"{prompt} background").meaning() != scene.meaning()
        assert content + sum(changed) == 1
        for level, word in zip(("overall", "edges"), words, strict=True):
            assert word in QUALITY_WORDS[level]
        kinds.add((content, *changed))
    assert len(kinds) == 3
    assert contrastive._nearly_right(scene, "", rng).endswith(" background")


def test_captions_that_do_not_contradict_each_other_are_no_negatives() -> None:
    prompts = ["a", "a", "a", "b"]
    phrases = ["poor", "", "good", "poor"]
    expected = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert contrastive._compatible(prompts, phrases).int().tolist() == expected
