"""Settings that all families share: precision, size, quantisation, and text encoders that leave memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2ifb.diffusion import pipeline_source
from t2ifb.diffusion.models.stable_diffusion import FAMILY, StableDiffusionSource
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import PROMPTS, shapes_model

SOURCE = StableDiffusionSource(str(PIPELINE), device="cpu")


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be fp32, fp16 or bf16"):
        replace(SOURCE, precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantisation must be int8 or None, not 'int4'"):
        replace(SOURCE, quantisation="int4")  # type: ignore[arg-type]


def test_quantisation_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_source, "find_spec", lambda name: None)
    quantised = replace(SOURCE, quantisation="int8")
    with pytest.raises(ValueError, match="quantisation='int8' needs torchao; install it with pip install torchao"):
        quantised.load()
    assert quantised.notes() == ("quantisation=int8 is not counted: the denoiser's weights are counted in fp32",)


def test_prompts_are_encoded_ahead_into_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path))
    model = replace(SOURCE, encode_ahead=True).load()
    model.encode_ahead(PROMPTS, "cpu")
    assert torch.equal(model.encode([*PROMPTS, ""])["states"], shapes_model().encode([*PROMPTS, ""])["states"])
    assert len(list((tmp_path / "prompts").rglob("*.safetensors"))) == 3
    assert "text encoder" not in model.networks()


def test_on_meta_released_encoders_are_not_counted() -> None:
    with MetaMode():
        counted, released = (replace(SOURCE, encode_ahead=ahead).on_meta() for ahead in (False, True))
        assert released.encode(PROMPTS)["states"].shape == counted.encode(PROMPTS)["states"].shape
    assert counted.networks()["text encoder"] and "text encoder" not in released.networks()
    assert "not counted (encode_ahead)" in replace(SOURCE, encode_ahead=True).notes()[0]


def test_a_tiny_decoder_is_proposed_where_the_latents_have_its_scale() -> None:
    assert StableDiffusionSource(FAMILY.ids[0]).fitting_tiny_decoder() == "madebyollin/taesd"
    assert SOURCE.fitting_tiny_decoder() is None
