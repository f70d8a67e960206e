import json
from pathlib import Path

import open_clip
import pytest
import torch

from t2ifb.scorers import HPSv2

NAME = "t2ifb-test-tiny"
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in the checkpoint's layout."""
    folder = tmp_path_factory.mktemp("hps")
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / f"{NAME}.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim else None
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return folder / "HPS_v2.1_compressed.pt"


def test_it_is_the_cosine_of_the_tuned_network(checkpoint: Path) -> None:
    model = open_clip.create_model(NAME).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    text = model.encode_text(open_clip.get_tokenizer(NAME)(PROMPTS))
    expected = torch.cosine_similarity(model.encode_image((images - mean) / std), text)
    scores = HPSv2.from_pretrained(checkpoint.parent, model=NAME, device="cpu")(images, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt"):
        HPSv2.from_pretrained()
