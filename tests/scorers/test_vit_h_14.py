"""PickScore and HPSv2.1 at their real geometry, with random weights in files of their published layouts."""

import math
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from t2ifb.scorers import HPSv2, PickScore
from tests.scorers.parts import byte_tokenizer

PROMPTS = ["a red circle above a blue square", "a photograph of an astronaut"]


@pytest.mark.huge
def test_hps_v2_from_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-H-14").eval().to(torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 986_109_441
    torch.save({"state_dict": model.state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    with torch.inference_mode():
        image = model.encode_image(((images - mean) / std).to(torch.bfloat16)).float()
        text = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(PROMPTS)).float()
        expected = (normalize(image, dim=1) * normalize(text, dim=1)).sum(1)
        del model
        scores = HPSv2.from_pretrained(tmp_path, precision="bf16")(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=2e-3, rtol=0)


@pytest.mark.huge
def test_pick_score_from_its_folder(tmp_path: Path) -> None:
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
        tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
        output = model(pixel_values=((images - mean) / std).to(torch.bfloat16), **tokens)
        scale = model.logit_scale.item()  # its type rounds it, and e to that power far more
        cosine = torch.cosine_similarity(output.image_embeds.float(), output.text_embeds.float())
        expected = math.exp(scale) * cosine
        del model
        scores = PickScore.from_pretrained(tmp_path, precision="bf16")(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=0.02, rtol=0)
