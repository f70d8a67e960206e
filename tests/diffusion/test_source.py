"""A diffusion model from a folder or a single file, and what is said when it cannot be had."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from t2ifb.diffusion.source import DiffusionSource
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.diffusion.single_file import write_single_file


def test_parts_are_frozen_and_have_the_wished_precision() -> None:
    model = DiffusionSource(str(PIPELINE), precision="bf16", decoder_precision="fp32", device="cpu").load()
    assert (model.denoiser.dtype, model.vae.dtype) == (torch.bfloat16, torch.float32)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert model.latent_shape == (4, 16, 16)
    images = model.decode(torch.randn(2, 4, 16, 16))
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_the_decoder_is_not_rounded_to_the_precision_of_the_unet(tmp_path: Path) -> None:
    pipeline = DiffusionSource(str(PIPELINE)).pipeline()
    with torch.no_grad():
        for weight in pipeline.vae.parameters():
            weight.mul_(1 + 2**-15)  # which fp16 does not hold
    exact = pipeline.vae.state_dict()
    pipeline.save_pretrained(tmp_path / "folder")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    for source, config in ((tmp_path / "folder", None), (file, str(PIPELINE))):
        model = DiffusionSource(str(source), config=config, precision="fp16", device="cpu").load()
        assert model.denoiser.dtype == model.text_encoder.dtype == torch.float16
        assert all(torch.equal(weight, exact[name]) for name, weight in model.vae.state_dict().items())


def test_a_prompt_has_the_same_states_whoever_asks_and_long_ones_are_counted() -> None:
    model, other = shapes_model(), shapes_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.encode_prompts(PROMPTS)
    assert torch.equal(inside, other.encode_prompts(PROMPTS[::-1]).flip(0))
    guided = model.encode_prompts(PROMPTS, guided=True)
    assert torch.equal(guided[2:], inside)
    assert torch.equal(guided[0], guided[1])
    assert model.too_long([*PROMPTS, " and ".join(PROMPTS * 5)]) == 1


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_reach_adapters_and_latents(gradient_checkpointing: bool) -> None:
    from t2ifb.diffusion.lora import LoRA
    from t2ifb.finetuning.module import fast_attention

    source = DiffusionSource(str(PIPELINE), gradient_checkpointing=gradient_checkpointing, device="cpu")
    model = source.load().train()
    LoRA().add(model.denoiser)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with fast_attention(model.device):
        output = model.predict(latents, 500, model.encode_prompts(PROMPTS))
        model.decode(latents - 0.1 * output).sum().backward()
    assert latents.grad is not None
    assert latents.grad.any()
    found = torch.cat([w.grad.flatten() for n, w in model.denoiser.named_parameters() if "lora_B" in n])
    assert found.any()


def test_a_tiny_decoder_takes_the_gradient_path_only(tmp_path: Path) -> None:
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    tiny = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    tiny.save_pretrained(tmp_path)
    model = DiffusionSource(str(PIPELINE), tiny_decoder=str(tmp_path), device="cpu").load()
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.decode(latents), shapes_model().decode(latents))
    assert not torch.allclose(model.decode(latents), shapes_model().decode(latents), atol=1e-2)


def test_a_single_file_and_a_variant_are_the_same_weights(tmp_path: Path) -> None:
    pipeline = DiffusionSource(str(PIPELINE)).pipeline()
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    loaded = DiffusionSource(str(file), config=str(PIPELINE)).pipeline()
    for part in ("unet", "vae", "text_encoder"):
        own, other = (getattr(each, part).state_dict() for each in (pipeline, loaded))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half = DiffusionSource(str(tmp_path / "half"), variant="fp16", precision="fp16").pipeline().unet.state_dict()
    assert all(torch.equal(weight.half(), half[name]) for name, weight in loaded.unet.state_dict().items())
    with pytest.raises(ValueError, match="cannot load .*half as a Stable Diffusion pipeline"):
        DiffusionSource(str(tmp_path / "half")).pipeline()


def test_what_is_missing_or_no_pipeline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not on this machine and cannot be downloaded.*hf download no/model"):
        DiffusionSource("no/model").load()
    shutil.copytree(PIPELINE, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "unet")
    with pytest.raises(ValueError, match="cannot load .*broken as a Stable Diffusion pipeline"):
        DiffusionSource(str(tmp_path / "broken")).load()
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="only .safetensors files are read"):
        DiffusionSource(str(tmp_path / "model.ckpt")).load()
    single = tmp_path / "civitai=" / "model.safetensors"
    single.parent.mkdir()
    single.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(ValueError, match="model.safetensors is not a complete .safetensors file"):
        DiffusionSource(str(single)).load()
    with pytest.raises(ValueError, match="'diffusion.source=\".*civitai=/model.safetensors\"' diffusion.config=<"):
        DiffusionSource(str(single.parent)).load()
    with pytest.raises(ValueError, match="cannot load tiny_decoder="):
        DiffusionSource(str(PIPELINE), tiny_decoder=str(tmp_path)).load()
    with pytest.raises(ValueError, match="precision must be fp32, fp16 or bf16"):
        DiffusionSource(str(PIPELINE), precision="fp8")  # type: ignore[arg-type]
