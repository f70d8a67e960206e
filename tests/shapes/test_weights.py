"""The shipped weights: they load in plain libraries, and are as good as their cards say they should be."""

import re
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.training.encoder import normalised
from t2ifb.shapes.training.loop import rendered
from t2ifb.shapes.weights import CLIP, FLOW, FLOW_T5_TOKENS, PIPELINE, load_flow, load_pipeline


def test_they_are_half_precision_and_small() -> None:
    files = [file for folder in (CLIP, PIPELINE) for file in folder.rglob("*.safetensors")]
    assert len(files) == 4
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} <= {torch.float16, torch.int64}, file
    assert sum(file.stat().st_size for file in files) < 16e6


def test_every_part_has_a_card_with_figures() -> None:
    for folder in (CLIP, PIPELINE, PIPELINE / "vae"):
        card = Path(folder / "README.md").read_text(encoding="utf-8")
        assert "make world" in card
        assert card.count("| 0.") + card.count("| 1.") + card.count("| 4") > 2


@pytest.mark.slow
def test_diffusers_loads_and_runs_the_pipeline_and_guidance_helps() -> None:
    assert isinstance(StableDiffusionPipeline.from_pretrained(PIPELINE), StableDiffusionPipeline)
    pipeline = load_pipeline(torch.float32)
    prompts = [scene.prompt for scene in scenes("test", 32, seed=0)]
    noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    alignment = []
    for guidance in (1.0, 4.0):
        output = pipeline(prompts, num_inference_steps=8, guidance_scale=guidance, latents=noise, output_type="np")
        images = torch.from_numpy(output.images).permute(0, 3, 1, 2)
        alignment.append(GoldScore().parts(images, prompts)["alignment"].mean().item())
    assert alignment[1] > alignment[0] + 0.05


shipped_flow = pytest.mark.skipif(not FLOW.is_dir(), reason="the weights of shapes_flow are not there: make world")


@shipped_flow
def test_the_flow_is_half_precision_and_small_and_has_a_card() -> None:
    files = list(FLOW.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} <= {torch.float16, torch.int64}, file
    assert sum(file.stat().st_size for file in files) < 8e6
    card = (FLOW / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"\| (gold|strict) at guidance [\d.]+, 20 steps with noise \| ([\d.]+) \|", card)
    gold, strict = ([float(value) for part, value in found if part == name] for name in ("gold", "strict"))
    assert len(gold) == len(strict) == 4 and max(gold) >= 0.78 and max(strict) < 0.6


@shipped_flow
@pytest.mark.slow
def test_guidance_helps_the_flow() -> None:
    pipeline = load_flow(torch.float32)
    prompts = [scene.prompt for scene in scenes("test", 32, seed=0)]
    noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"latents": noise, "output_type": "np", "max_sequence_length": FLOW_T5_TOKENS}
    alignment = []
    for guidance in (1.0, 4.0):
        output = pipeline(prompts, num_inference_steps=8, guidance_scale=guidance, **options)
        images = torch.from_numpy(output.images).permute(0, 3, 1, 2)
        alignment.append(GoldScore().parts(images, prompts)["alignment"].mean().item())
    assert alignment[1] > alignment[0] + 0.05


def test_clip_prefers_the_right_prompt() -> None:
    model, tokenizer = open_clip.create_model(f"local-dir:{CLIP}").eval(), open_clip.get_tokenizer(f"local-dir:{CLIP}")
    drawn, _, images = rendered("test", 60, seed=9)
    with torch.no_grad():
        pictures = model.encode_image(normalised(images.float() / 255), normalize=True)
        texts = model.encode_text(tokenizer([scene.prompt for scene in drawn]), normalize=True)
    retrieved = (pictures @ texts.T).argmax(1) == torch.arange(len(drawn))
    assert retrieved.float().mean() > 0.5
