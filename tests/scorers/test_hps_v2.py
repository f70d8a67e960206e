from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

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


def by_pillow(picture: Image.Image, size: int) -> Tensor:
    """The authors' `ResizeMaxSize` on a picture: resize the long side, then pad with whole black pixels."""
    scale = size / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    square = Image.new("RGB", (size, size))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((size - width) // 2, (size - height) // 2))
    return pil_to_tensor(square) / 255


@pytest.mark.parametrize(("height", "width"), [(40, 71), (97, 64), (300, 211), (20, 9), (64, 33), (64, 64), (3, 2000)])
def test_an_image_off_the_square_is_resized_and_then_padded(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, height, width), generator=generator) / 255
    difference = (square(image, 64)[0] - by_pillow(to_pil_image(image[0]), 64)).abs() * 255
    assert difference.max() < 1.5
    assert difference.mean() < 1 / 3


def test_an_image_off_the_square_is_scored_as_its_square(checkpoint: Path) -> None:
    scorer = HPSv2.from_pretrained(checkpoint.parent, model=HPS_MODEL)
    image = torch.rand(1, 3, 24, 17)
    torch.testing.assert_close(scorer(image, PROMPTS[:1]), scorer.score(square(image, 16), PROMPTS[:1]))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt"):
        HPSv2.from_pretrained()


TEXTS = ["a red circle above a blue square", "a photograph of an astronaut"]


@pytest.mark.huge
def test_at_its_published_size_from_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-H-14").eval().to(torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 986_109_441
    torch.save({"state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    with torch.inference_mode():
        image = model.encode_image(((images - mean) / std).to(torch.bfloat16)).float()
        text = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(TEXTS)).float()
        expected = (normalize(image, dim=1) * normalize(text, dim=1)).sum(1)
        del model
        scores = HPSv2.from_pretrained(tmp_path, precision="bf16")(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=2e-3, rtol=0)
