"""Stable Diffusion 3: three text encoders (T5 is optional), a shifted flow, and latents with a shift."""

from pathlib import Path

import pytest
import torch
from torch import nn

from t2ifb.diffusion.models.stable_diffusion_3 import FAMILY, StableDiffusion3Source
from t2ifb.profiling.meta_mode import MetaMode
from tests.diffusion.parts import PROMPTS, at
from tests.diffusion.tiny_pipelines import plain_pipeline, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("sd3", tmp_path_factory.mktemp("sd3"))


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("t5", [True, False])
def test_the_transformer_is_called_as_by_the_pipeline(folder: Path, t5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = StableDiffusion3Source(str(folder), t5=t5, max_sequence_length=20, device="cpu").load()
    pipeline = plain_pipeline(folder)
    if not t5:
        pipeline.text_encoder_3 = None
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, device="cpu", max_sequence_length=20)
        latents = torch.ones(2, *model.latent_shape)
        expected = pipeline.transformer(latents, states, pooled, at(500).float(), return_dict=False)[0]
        found = model.predict(latents, at(500).float(), model.encode(PROMPTS))
    assert states.shape == (2, 16 + 20, 48) and pooled.shape == (2, 40)
    torch.testing.assert_close(found, expected)
    assert len(model.text.encoders) == 2 + t5


def test_a_card_has_all_that_the_pipeline_has_to_be_called_with() -> None:
    sized = StableDiffusion3Source("some/model", height=512, width=512, max_sequence_length=20)
    assert sized.call == "height=512, width=512, max_sequence_length=20"


def test_the_path_has_the_schedulers_shift(folder: Path) -> None:
    path = StableDiffusion3Source(str(folder), device="cpu").load().path
    assert path.prediction == "flow" and float(path.s[0]) == 1
    middle = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(path.s[500], 3 * middle / (1 + 2 * middle))


def test_latents_have_the_autoencoders_scale_and_shift(folder: Path) -> None:
    model, pipeline = StableDiffusion3Source(str(folder), device="cpu").load(), plain_pipeline(folder)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / 1.5 + 0.06).sample
    torch.testing.assert_close(model.decode(latents), (expected / 2 + 0.5).clamp(0, 1))
    assert model.encode_images(torch.rand(1, 3, *model.image_size)).shape == (1, 16, 8, 8)


def test_images_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="height=18 must be a multiple of 4 pixels"):
        StableDiffusion3Source(str(folder), height=18, device="cpu").load()
    with pytest.raises(ValueError, match="width=52 must be at most 48 pixels for this model"):
        StableDiffusion3Source(str(folder), width=52, device="cpu").load()
    with pytest.raises(ValueError, match="max_sequence_length=0 must be at least 1"):
        StableDiffusion3Source(str(folder), max_sequence_length=0)


def test_stable_diffusion_35_medium_as_published() -> None:
    source = StableDiffusion3Source(FAMILY.ids[0], precision="bf16", tiny_decoder=FAMILY.tiny_decoder)
    with MetaMode():
        model = source.on_meta()
        found, latents = model.encode(["a", "b"]), torch.empty(2, *model.latent_shape, device="meta")
        assert model.predict(latents, torch.empty(2, device="meta"), found).shape == (2, 16, 128, 128)
    assert count(model.denoiser) == 2_243_171_520
    assert (found["clip"].shape, found["t5"].shape) == ((2, 77, 2048), (2, 256, 4096))
    assert found["pooled"].shape == (2, 2048) and model.decoder.config.latent_channels == 16
    assert 4.7e9 < count(model.text.encoders["text_encoder_3"]) < 4.8e9
    assert model.image_size == (1024, 1024) and not source.notes()
