import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from t2ifb.scorers import PickScore
from tests.scorers.parts import byte_tokenizer
from tests.scorers.published_parts import write_pick_score

PROMPTS = ["a red circle", "Two BLUE squares above a very long sentence that does not fit into the context"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pick_score(tmp_path_factory.mktemp("pick"))


@pytest.mark.parametrize("size", [(16, 16), (16, 19)])  # an odd rest is cropped as the processor does
def test_it_is_the_models_own_logit_of_image_and_prompt(folder: Path, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessor.from_pretrained(folder)([Image.fromarray(one) for one in levels], return_tensors="pt")
    tokens = tokenizer(PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = model(**pixels, **tokens).logits_per_image.diagonal()
    scores = PickScore.from_pretrained(folder)(torch.from_numpy(levels).permute(0, 3, 1, 2) / 255, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert scores[0] != scores[1]


def test_prompts_that_are_cut_off_are_known(folder: Path) -> None:
    fits, too_long = "a" * 22, "a" * 23
    assert PickScore.from_pretrained(folder).cut_prompts([fits, too_long, *PROMPTS]) == [too_long, PROMPTS[1]]


def test_gradients_reach_the_images_and_not_the_weights(folder: Path) -> None:
    scorer = PickScore.from_pretrained(folder, precision="bf16")
    images = torch.rand(2, 3, 21, 30, requires_grad=True)
    scores = scorer(images, PROMPTS)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    assert all(weight.grad is None for weight in scorer.parameters())


def test_a_small_gradient_passes_fp16(folder: Path) -> None:
    images = torch.rand(2, 3, 21, 30, requires_grad=True)
    scorer = PickScore.from_pretrained(folder, precision="fp16")
    found = [torch.autograd.grad(alpha * scorer(images, PROMPTS).sum(), images)[0] / alpha for alpha in (1.0, 1e-6)]
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=1e-2 * float(found[0].abs().max()))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hf download yuvalkirstain/PickScore_v1; hf download laion/CLIP-ViT-H-14"):
        PickScore.from_pretrained()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        PickScore.from_pretrained(tmp_path)


def test_weights_that_are_not_whole_and_another_vocabulary_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"visual_projection\.weight is missing or misshapen"):
        PickScore.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"cannot load PickScore from {tmp_path}"):
        PickScore.from_pretrained(tmp_path)
    other = byte_tokenizer(600)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 600 tokens"):
        PickScore.from_pretrained(folder, processor=tmp_path)


TEXTS = ["a red circle above a blue square", "a photograph of an astronaut"]


@pytest.mark.huge
def test_at_its_published_size_from_its_folder(tmp_path: Path) -> None:
    """The configuration of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16, "num_hidden_layers": 32}
    config = CLIPConfig(
        text_config=text | {"hidden_act": "gelu"},
        vision_config=vision | {"hidden_act": "gelu", "patch_size": 14, "image_size": 224},
        projection_dim=1024,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval().to(torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 986_109_441
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer(49_408)
    tokenizer.save_pretrained(tmp_path)
    processor = CLIPImageProcessor()
    processor.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    with torch.inference_mode():
        tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
        output = model(pixel_values=((images - mean) / std).to(torch.bfloat16), **tokens)
        scale = model.logit_scale.item()  # its type rounds it, and e to that power far more
        cosine = torch.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        expected = math.exp(scale) * cosine
        del model
        scores = PickScore.from_pretrained(tmp_path, precision="bf16")(images, TEXTS)
    torch.testing.assert_close(scores, expected, atol=0.02, rtol=0)
