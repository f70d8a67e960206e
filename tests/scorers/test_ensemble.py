from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.scorers import Ensemble, RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.ensemble import pessimistic
from t2ifb.scorers.heads import MLPHead
from tests.scorers.parts import tiny_clip

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three reward models, two of them on one encoder."""
    folder = tmp_path_factory.mktemp("ensemble")
    sources = [CLIPSource(f"local-dir:{tiny_clip(folder / f'clip{seed}', seed)}", device="cpu") for seed in (0, 1)]
    places = []
    for number, source in enumerate([sources[0], sources[0], sources[1]]):
        torch.manual_seed(number)
        places.append(folder / f"reward{number}")
        RewardModel(source.load(), MLPHead(12, hidden=[8], dropout=[0.2])).save_pretrained(places[-1])
    return places


def test_mean_minus_k_standard_deviations_of_the_members(exports: list[Path]) -> None:
    images = torch.rand(2, 3, 20, 16)
    each = torch.stack([RewardModel.from_pretrained(place)(images, PROMPTS) for place in exports])
    offsets = [0.5, -1.0, 0.25]
    centred = each - torch.tensor(offsets)[:, None]
    for k in (0.0, 1.0, 2.5):
        scores = Ensemble.from_pretrained(exports, k, offsets)(images, PROMPTS)
        torch.testing.assert_close(scores, centred.mean(0) - k * centred.std(0, correction=0))


def test_members_on_one_encoder_share_it_and_an_image_passes_it_once(
    exports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble.from_pretrained(exports)
    encoders = [member.encoder for member in ensemble.members]
    assert encoders[0] is encoders[1]
    assert encoders[0] is not encoders[2]
    passes = []
    kind, encode = type(encoders[0]), type(encoders[0]).encode_images
    monkeypatch.setattr(kind, "encode_images", lambda self, images: passes.append(self) or encode(self, images))
    ensemble(torch.rand(2, 3, 16, 16), PROMPTS)
    assert len(passes) == 2


def test_gradients_reach_the_images_even_where_all_agree(exports: list[Path]) -> None:
    for sources in (exports, exports[:1], exports[:1] * 3):
        images = torch.rand(2, 3, 16, 16, requires_grad=True)
        Ensemble.from_pretrained(sources)(images, PROMPTS).sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert images.grad.any()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(0, 3), st.floats(-3, 3))
def test_it_never_exceeds_the_mean_and_moves_with_all_members(rewards: list[float], k: float, shift: float) -> None:
    members = torch.tensor(rewards, dtype=torch.float64)[:, None]
    value = pessimistic(members, k)
    assert value <= members.mean() + 1e-9
    torch.testing.assert_close(pessimistic(members + shift, k), value + shift, rtol=1e-4, atol=1e-4)


def test_numbers_that_do_not_fit_are_refused(exports: list[Path]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    with pytest.raises(ValueError, match="disagreement, must be at least 0"):
        Ensemble.from_pretrained(exports, k=-1)
    with pytest.raises(ValueError, match="expected 3 offsets"):
        Ensemble.from_pretrained(exports, offsets=[0.0])
