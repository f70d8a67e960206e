"""Sizes without weights: Stable Diffusion v1.5 as published, folders as they are, models on the `meta` device."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from t2ifb.diffusion.models.stable_diffusion import FAMILY, SD15, SD15_IDS, StableDiffusionSource
from t2ifb.diffusion.pipeline_config import TAESD_ID, BlankTokenizer, PipelineConfig, path_of
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.geometries import small_geometry
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.diffusion.random_pipeline import clip_tokenizer, write_random_pipeline


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_stable_diffusion_as_published() -> None:
    source = StableDiffusionSource(SD15_IDS[0], precision="fp16", tiny_decoder=TAESD_ID)
    with MetaMode():
        model = source.on_meta()
        assert model.encode(["a", "b"])["states"].shape == (2, 77, 768)
    assert count(model.denoiser) == 859_520_964
    assert count(model.vae) == 83_653_863
    assert count(model.text.encoders) == 123_060_480
    assert count(model.decoder) == 2_445_063
    assert model.latent_shape == (4, 64, 64)
    assert (model.denoiser.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert not source.notes()


def test_an_outline_is_the_model_without_its_weights() -> None:
    real = shapes_model()
    with MetaMode():
        on_meta = StableDiffusionSource(str(PIPELINE)).on_meta()
        latents = torch.empty(2, *on_meta.latent_shape, device="meta")
        assert on_meta.encode(PROMPTS)["states"].shape == real.encode(PROMPTS)["states"].shape
        assert on_meta.decode(latents).shape == (2, 3, 64, 64)
    shapes = [{n: (t.shape, t.dtype) for n, t in each.state_dict().items()} for each in (real, on_meta)]
    assert shapes[0] == shapes[1]
    assert all(weight.device.type == "meta" for weight in on_meta.parameters())
    assert on_meta.path.scheduler["beta_schedule"] == real.path.scheduler["beta_schedule"]


def test_settings_of_a_source_are_those_of_its_outline() -> None:
    source = StableDiffusionSource(
        str(PIPELINE), precision="bf16", decoder_precision="bf16", gradient_checkpointing=True
    )
    with MetaMode():
        model = source.on_meta()
    assert (model.denoiser.dtype, model.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    assert model.denoiser.is_gradient_checkpointing


def test_an_unknown_id_is_taken_for_stable_diffusion_and_said_so() -> None:
    geometry = StableDiffusionSource("someone/something", tiny_decoder="someone/tiny")._config()
    assert geometry.parts == SD15.parts
    assert [note.split()[0] for note in geometry.notes] == ["someone/something", "tiny_decoder=someone/tiny"]


def test_a_single_file_is_as_large_as_its_configuration_says(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert StableDiffusionSource(str(file), config=str(PIPELINE))._config() == PipelineConfig.read(
        PIPELINE, FAMILY.networks
    )
    assert "diffusion.config=<folder>" in StableDiffusionSource(str(file)).notes()[0]


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="./nowhere does not exist; diffusion.source is a hub id, a folder"):
        StableDiffusionSource("./nowhere")._config()
    with pytest.raises(ValueError, match=r"cannot read .*unet/config.json.*diffusers' form"):
        StableDiffusionSource(str(tmp_path))._config()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    with pytest.raises(ValueError, match="configures a SD3Transformer2DModel; only pipelines with a UNet2D"):
        StableDiffusionSource(str(tmp_path))._config()


def test_a_path_without_betas_is_refused() -> None:
    """diffusers would take its defaults for them, also for models of EDM."""
    edm = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"}
    with pytest.raises(ValueError, match="the scheduler EDMDPMSolverMultistepScheduler has no betas; supported are"):
        path_of(edm)


def test_a_pipeline_with_random_weights_is_a_pipeline(tmp_path: Path) -> None:
    geometry = small_geometry()
    model = StableDiffusionSource(str(write_random_pipeline(tmp_path, geometry=geometry)), device="cpu").load()
    assert model.encode(PROMPTS)["states"].shape == (2, 77, 32)
    assert model.path.scheduler["_class_name"] == "PNDMScheduler"
    assert PipelineConfig.read(tmp_path, FAMILY.networks).parts["unet"].items() >= geometry.parts["unet"].items()
    again = write_random_pipeline(tmp_path / "again", geometry=geometry)
    other = StableDiffusionSource(str(again), device="cpu").load()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    few = {"text_encoder": geometry.parts["text_encoder"] | {"vocab_size": 100}}
    with pytest.raises(ValueError, match="49408 ids, a text encoder only 100"):
        write_random_pipeline(tmp_path, geometry=replace(geometry, parts=geometry.parts | few))


def test_clips_own_tokens() -> None:
    texts = ["An Oil-painting of 3 dogs, it's raining!!", "ünïcode 漢字", "a " * 100]
    ids = clip_tokenizer()(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    theirs = open_clip.get_tokenizer("ViT-L-14")(texts)
    for mine, other in zip(ids, theirs, strict=True):
        length = int(other.argmax()) + 1  # open_clip fills up with zeros, the pipeline with the last token
        assert torch.equal(mine[:length], other[:length])


def test_every_weight_is_there_in_its_shape_and_without_numbers() -> None:
    source = StableDiffusionSource(str(PIPELINE), precision="bf16", device="cpu")
    with MetaMode():
        meta = source.on_meta()
    real = shapes_model()
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (meta, real)]
    assert shapes[0] == shapes[1] != {}
    assert {weight.device.type for weight in meta.parameters()} == {"meta"}
    assert {weight.dtype for weight in meta.denoiser.parameters()} == {torch.bfloat16}
    assert meta.latent_shape == real.latent_shape


def test_every_text_is_as_long_as_the_context() -> None:
    tokens = BlankTokenizer(7)(["a", "b " * 100], padding="max_length", truncation=True)
    assert tokens.input_ids.shape == (2, 7) and tokens.input_ids.dtype == torch.int64


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="does not exist"), MetaMode():
        StableDiffusionSource("./nowhere").on_meta()
