"""Stable Diffusion from a folder, a single file and without weights."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.shapes.training.loop import rendered
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import PROMPTS, at, shapes_model
from tests.diffusion.single_file import write_single_file


def test_parts_are_frozen_and_have_the_wished_precision() -> None:
    model = StableDiffusionSource(str(PIPELINE), precision="bf16", decoder_precision="fp32", device="cpu").load()
    assert (model.denoiser.dtype, model.vae.dtype) == (torch.bfloat16, torch.float32)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.latent_shape == (4, 16, 16)
    images = model.decode(torch.randn(2, 4, 16, 16))
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_the_decoder_is_not_rounded_to_the_precision_of_the_unet(tmp_path: Path) -> None:
    pipeline = StableDiffusionSource(str(PIPELINE)).pipeline()
    with torch.no_grad():
        for weight in pipeline.vae.parameters():
            weight.mul_(1 + 2**-15)  # which fp16 does not hold
    exact = pipeline.vae.state_dict()
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    for source, config in ((tmp_path / "folder", None), (file, str(PIPELINE))):
        model = StableDiffusionSource(str(source), config=config, precision="fp16", device="cpu").load()
        assert model.denoiser.dtype == model.text.encoders["text_encoder"].dtype == torch.float16
        assert all(torch.equal(weight, exact[name]) for name, weight in model.vae.state_dict().items())


def test_a_prompt_has_the_same_states_whoever_asks_and_long_ones_are_counted() -> None:
    model, other = shapes_model(), shapes_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.encode(PROMPTS)["states"]
    assert torch.equal(inside, other.encode(PROMPTS[::-1])["states"].flip(0))
    assert model.too_long([*PROMPTS, " and ".join(PROMPTS * 5)]) == 1


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_reach_adapters_and_latents(gradient_checkpointing: bool) -> None:
    from t2ifb.diffusion.lora import LoRA
    from t2ifb.finetuning.module import fast_attention

    source = StableDiffusionSource(str(PIPELINE), gradient_checkpointing=gradient_checkpointing, device="cpu")
    model = source.load().train()
    LoRA().add(model)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with fast_attention(model.device):
        output = model.predict(latents, at(500), model.encode(PROMPTS))
        model.decode(latents - 0.1 * output).sum().backward()
    assert latents.grad is not None
    assert latents.grad.any()
    found = torch.cat([w.grad.flatten() for n, w in model.denoiser.named_parameters() if "lora_B" in n])
    assert found.any()


def test_a_tiny_decoder_takes_the_gradient_path_only(tmp_path: Path) -> None:
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    tiny = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    tiny.save_pretrained(tmp_path)
    model = StableDiffusionSource(str(PIPELINE), tiny_decoder=str(tmp_path), device="cpu").load()
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.decode(latents), shapes_model().decode(latents))
    assert not torch.allclose(model.decode(latents), shapes_model().decode(latents), atol=1e-2)


def test_a_single_file_and_a_variant_are_the_same_weights(tmp_path: Path) -> None:
    pipeline = StableDiffusionSource(str(PIPELINE)).pipeline()
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    loaded = StableDiffusionSource(str(file), config=str(PIPELINE)).pipeline()
    for part in ("unet", "vae", "text_encoder"):
        own, other = (getattr(each, part).state_dict() for each in (pipeline, loaded))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half = StableDiffusionSource(str(tmp_path / "half"), variant="fp16", precision="fp16").pipeline().unet.state_dict()
    assert all(torch.equal(weight.half(), half[name]) for name, weight in loaded.unet.state_dict().items())
    with pytest.raises(ValueError, match="cannot load .*half as a StableDiffusionPipeline"):
        StableDiffusionSource(str(tmp_path / "half")).pipeline()


def test_images_that_are_encoded_decode_to_themselves() -> None:
    images, model = rendered("test", 2, seed=0).images.float() / 255, shapes_model()
    latents = model.encode_images(images)
    assert latents.shape == (2, *model.latent_shape)
    assert 0.3 < float(latents.std()) < 3  # scaled for the denoiser
    assert float((model.decode(latents) - images).abs().mean()) < 0.05


def test_prompts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = shapes_model(), []
    encoder = model.text.encoders["text_encoder"]
    monkeypatch.setattr(encoder, "forward", partial(counted, encoder.forward, calls))
    first = model.encode([*PROMPTS, "", PROMPTS[0]])
    assert len(calls) == 3 and torch.equal(first["states"][0], first["states"][3])
    model.encode(PROMPTS[::-1])
    assert len(calls) == 3


def counted(call: Any, calls: list[int], *args: Any, **options: Any) -> Any:
    calls.append(1)
    return call(*args, **options)


def test_the_path_is_that_of_the_pipelines_scheduler() -> None:
    path, scheduler = shapes_model().path, DDIMScheduler.from_pretrained(PIPELINE, subfolder="scheduler")
    torch.testing.assert_close(path.a.square().float(), scheduler.alphas_cumprod)
    torch.testing.assert_close(path.a.square() + path.s.square(), torch.ones(1000, dtype=torch.float64))
    assert path.times.tolist() == list(range(1000)) and path.prediction == "epsilon"
