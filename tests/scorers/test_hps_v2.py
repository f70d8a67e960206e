from pathlib import Path

import open_clip
import pytest
import torch

from t2ifb.scorers import HPSv2
from t2ifb.scorers.hps_v2 import square
from tests.scorers.published_parts import HPS_MODEL, write_hps

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hps(tmp_path_factory.mktemp("hps"))


def test_it_is_the_cosine_of_the_tuned_network(checkpoint: Path) -> None:
    model = open_clip.create_model(HPS_MODEL).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    text = model.encode_text(open_clip.get_tokenizer(HPS_MODEL)(PROMPTS))
    expected = torch.cosine_similarity(model.encode_image((images - mean) / std), text)
    scores = HPSv2.from_pretrained(checkpoint.parent, model=HPS_MODEL)(images, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_an_image_that_is_no_square_is_shown_whole_on_black() -> None:
    wide = square(torch.ones(1, 3, 4, 7))
    assert wide.shape == (1, 3, 7, 7)
    assert wide.sum() == 3 * 4 * 7
    assert not wide[:, :, 0].any()
    assert not wide[:, :, 5:].any()
    assert square(torch.ones(1, 3, 7, 4)).transpose(2, 3).equal(wide)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt"):
        HPSv2.from_pretrained()
