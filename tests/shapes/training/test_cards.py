"""Figures of the world's models, and the cards that state them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from t2ifb.shapes.training.autoencoder import psnr
from t2ifb.shapes.training.cards import (
    autoencoder_figures,
    clip_figures,
    full_images,
    judge_figures,
    order_figures,
    pipeline_figures,
    write_card,
)
from t2ifb.shapes.training.judges import Ranked
from t2ifb.shapes.training.loop import rendered
from t2ifb.shapes.weights import CLIP, load_pipeline


def test_a_card_states_its_figures(tmp_path: Path) -> None:
    write_card(tmp_path, "A model", "It does things.", 1_234_567, {"gold": 0.98765, "PSNR (dB)": 31.2}, seed=7)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: apache-2.0\n")
    for words in ("# A model", "It does things.", "1,234,567", "seed 7", "no gold score was used"):
        assert words in text
    assert text.rstrip().endswith("| figure | value |\n|---|---|\n| gold | 0.988 |\n| PSNR (dB) | 31.200 |")


class ByNumber(nn.Module):
    """Scores an image by its first pixel, times a sign."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(images) == len(prompts) and images.max() <= 1
        return self.sign * images[:, 0, 0, 0]


@pytest.mark.parametrize(("sign", "accuracy"), [(1, 1.0), (-1, 0.0), (0, 0.0)])
def test_a_judge_is_measured_by_pairs_and_ratings(sign: int, accuracy: float) -> None:
    levels = torch.arange(300) % 7
    ranked = Ranked(
        images=(30 * levels)[:, None, None, None].expand(-1, 3, 64, 64).to(torch.uint8),
        prompts=[f"prompt {number // 5}" for number in range(300)],
        ranks=7 - levels,
        fidelity=1.0 + levels,
        ranking=torch.arange(300) // 5,
    )
    found = judge_figures(ByNumber(sign), ranked)
    assert found["preference accuracy"] == accuracy
    if sign:  # without any variance there is no correlation
        assert found["correlation with the fidelity rating"] == pytest.approx(sign, abs=1e-5)


@pytest.mark.parametrize(("sign", "share"), [(1, 1.0), (-1, 0.0)])
def test_a_judge_is_measured_by_the_order_of_full_images(sign: int, share: float) -> None:
    gold = torch.tensor([0.1, 0.5, 0.51, 0.9, 0.2, 0.2, 0.2, 0.2])
    brightness = gold.clone()
    brightness[2] = 0.4  # a tie for the annotators, so that its order does not matter
    images = brightness[:, None, None, None].expand(-1, 3, 64, 64)
    assert list(order_figures(ByNumber(sign), images, ["a prompt"] * 8, gold).values()) == [share]


def test_full_images_are_four_of_each_prompt() -> None:
    images, prompts = full_images(count=2, steps=2)
    assert images.shape == (8, 3, 64, 64) and 0 <= images.min() < images.max() <= 1
    assert [prompts.count(prompt) for prompt in dict.fromkeys(prompts)] == [4, 4]
    assert not torch.equal(images[0], images[1])


def test_the_shipped_autoencoder_is_as_good_as_its_reconstructions() -> None:
    model = load_pipeline(torch.float32).vae
    found = autoencoder_figures(model, count=12)
    assert found["PSNR (dB)"] == pytest.approx(psnr(model, rendered("test", 12, seed=1).images))
    assert found["PSNR (dB)"] > 25
    assert found["alignment"] > 0.95 and found["strict"] > 0.8
    assert found["gold"] == pytest.approx((found["alignment"] + found["fidelity"]) / 2, abs=1e-5)


def test_the_shipped_clip_tells_captions_and_damage() -> None:
    retrieved, right, damage = clip_figures(CLIP, count=40).values()
    assert retrieved > 0.6
    assert right > 0.6
    assert damage > 0.3


def test_samples_are_judged_at_each_guidance_scale() -> None:
    pipeline = load_pipeline(torch.float32)
    found = pipeline_figures(pipeline, count=2, steps=2)
    assert len(found) == 3 * 4
    assert all(0 <= value <= 1 for value in found.values())
    assert {name.partition(", ")[2] for name in found} == {"2 steps"}
    assert pipeline_figures(pipeline, count=2, steps=2) == found
