"""Stable Diffusion XL: two text encoders, the pooled embedding, sizes, and the pipeline's own sampling."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from t2ifb.diffusion.models.sdxl import FAMILY, StableDiffusionXLSource
from t2ifb.profiling.meta_mode import MetaMode
from tests.diffusion.parts import PROMPTS, at
from tests.diffusion.tiny_pipelines import plain_pipeline, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("sdxl", tmp_path_factory.mktemp("sdxl"))


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_the_conditioning_is_the_pipelines(folder: Path) -> None:
    model, pipeline = StableDiffusionXLSource(str(folder), device="cpu").load(), plain_pipeline(folder)
    found, empty = model.encode(PROMPTS), model.encode([""])
    with torch.no_grad():
        states, zero_states, pooled, zero_pooled = pipeline.encode_prompt(PROMPTS, device="cpu")
    torch.testing.assert_close(found["states"], states)
    torch.testing.assert_close(found["pooled"], pooled)
    assert found["states"].shape == (2, 16, 40) and found["pooled"].shape == (2, 24)
    assert torch.equal(empty["states"], zero_states[:1]) and torch.equal(empty["pooled"], zero_pooled[:1])
    assert not empty["states"].any()


def test_a_pipeline_without_zeros_encodes_the_empty_prompt(folder: Path, tmp_path: Path) -> None:
    pipeline = plain_pipeline(folder)
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    empty = StableDiffusionXLSource(str(tmp_path), device="cpu").load().encode([""])
    with torch.no_grad():
        expected = pipeline.encode_prompt(PROMPTS[0], device="cpu")[1]
    torch.testing.assert_close(empty["states"], expected)
    assert empty["states"].any()


def test_sizes_and_crop_are_conditions(folder: Path) -> None:
    def output(**settings: object) -> torch.Tensor:
        model = StableDiffusionXLSource(str(folder), device="cpu", **settings).load()  # type: ignore[arg-type]
        latents = torch.ones(2, *model.latent_shape)
        with torch.no_grad():
            found: torch.Tensor = model.predict(latents, at(500), model.encode(PROMPTS))
        return found

    usual = output()
    assert torch.equal(output(original_size=(16, 16), target_size=(16, 16)), usual)
    for other in ({"original_size": (64, 64)}, {"crop": (4, 0)}, {"target_size": (16, 32)}):
        assert not torch.equal(output(**other), usual)
    assert output(height=24, width=16).shape == (2, 4, 12, 8)
    with pytest.raises(ValueError, match="height=15 must be a multiple of 2 pixels"):
        output(height=15)


def test_a_card_has_all_that_the_pipeline_has_to_be_called_with() -> None:
    assert StableDiffusionXLSource("some/model").call == ""
    sized = StableDiffusionXLSource("some/model", height=768, original_size=(64, 32), crop=(4, 0))
    assert sized.call == "height=768, original_size=(64, 32), crops_coords_top_left=(4, 0)"


def test_another_autoencoder_replaces_the_pipelines_own(folder: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(1)
    vae.save_pretrained(tmp_path)
    model = StableDiffusionXLSource(str(folder), vae=str(tmp_path), decoder_precision="fp16", device="cpu").load()
    assert model.vae.dtype == torch.float16 and model.denoiser.dtype == torch.float32
    assert torch.equal(next(model.vae.decoder.parameters()), next(vae.decoder.parameters()).half())
    with pytest.raises(ValueError, match="cannot load vae="):
        StableDiffusionXLSource(str(folder), vae=str(tmp_path / "none")).load()


def test_stable_diffusion_xl_as_published() -> None:
    source = StableDiffusionXLSource(
        FAMILY.ids[0], precision="fp16", encode_ahead=True, tiny_decoder=FAMILY.tiny_decoder
    )
    with MetaMode():
        model = source.on_meta()
        found = model.encode(["a", "b"])
        latents = torch.empty(2, *model.latent_shape, device="meta")
        assert model.predict(latents, torch.empty(2, device="meta"), found).shape == (2, 4, 128, 128)
    assert count(model.denoiser) == 2_567_463_684
    assert (found["states"].shape, found["pooled"].shape) == ((2, 77, 2048), (2, 1280))
    assert model.image_size == (1024, 1024) and not list(model.text.encoders)
    assert len(source.notes()) == 1  # the text encoders run before training
