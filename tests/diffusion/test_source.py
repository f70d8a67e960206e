"""Errors of files and folders that are no pipeline, and the class of a pipeline."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.source import _round, absent_encoders, located, pipeline_class, read_pipeline, read_vae
from t2ifb.shapes.weights import PIPELINE


def test_what_is_missing_or_no_pipeline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not on this machine and cannot be downloaded.*hf download no/model"):
        StableDiffusionSource("no/model").load()
    with pytest.raises(ValueError, match="nowhere does not exist; expected a hub id, a folder"):
        StableDiffusionSource(str(tmp_path / "nowhere")).load()
    with pytest.raises(ValueError, match=r"is missing in this installation; train it .*training --part none`"):
        StableDiffusionSource(str(PIPELINE.parent / "none")).load()
    shutil.copytree(PIPELINE, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "unet")
    with pytest.raises(ValueError, match="cannot load .*broken as a StableDiffusionPipeline"):
        StableDiffusionSource(str(tmp_path / "broken")).load()
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    with pytest.raises(ValueError, match="other is a StableDiffusionXLPipeline, .* reads a StableDiffusionPipeline"):
        StableDiffusionSource(str(other)).load()
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="only .safetensors files are read"):
        StableDiffusionSource(str(tmp_path / "model.ckpt")).load()
    single = tmp_path / "civitai=" / "model.safetensors"
    single.parent.mkdir()
    single.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(ValueError, match="model.safetensors is not a complete .safetensors file"):
        StableDiffusionSource(str(single)).load()
    with pytest.raises(ValueError, match="model.source='.*civitai=/model.safetensors' and model.config=…"):
        StableDiffusionSource(str(single.parent)).load()
    with pytest.raises(ValueError, match="cannot load tiny_decoder="):
        StableDiffusionSource(str(PIPELINE), tiny_decoder=str(tmp_path)).load()
    with pytest.raises(ValueError, match="precision must be fp32, fp16 or bf16"):
        StableDiffusionSource(str(PIPELINE), precision="fp8")  # type: ignore[arg-type]


def test_a_pipelines_class_is_in_its_index(tmp_path: Path) -> None:
    assert pipeline_class(str(PIPELINE)) == "StableDiffusionPipeline"
    single = tmp_path / "model.safetensors"
    single.touch()
    assert pipeline_class(str(single), str(PIPELINE)) == "StableDiffusionPipeline"
    with pytest.raises(ValueError, match="is a single file; also give config="):
        pipeline_class(str(single))
    with pytest.raises(ValueError, match="no/model is not on this machine and cannot be downloaded"):
        pipeline_class("no/model")
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot read .*model_index.json"):
        pipeline_class(str(tmp_path))


def test_errors_of_a_model_that_is_there_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no files of variant fp16")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(ValueError, match="cannot load some/model as a StableDiffusionPipeline: no files of variant"):
        StableDiffusionSource("some/model").load()


def test_a_pipeline_of_another_class_on_the_hub_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(tmp_path / "model_index.json"))
    with pytest.raises(ValueError, match="some/model is a StableDiffusionXLPipeline, and this family of models reads"):
        StableDiffusionSource("some/model").load()


def test_a_single_file_cannot_be_quantised(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="quantisation needs a folder in diffusers' format or a hub id"):
        read_pipeline(diffusers.StableDiffusionPipeline, str(file), {"default": torch.float32}, quantization_config=1)


def test_weights_that_overflow_in_fp16_are_not_rounded_to_it() -> None:
    network = T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    _round(network, torch.float16)
    types = {name.rpartition(".")[0].rpartition(".")[2]: weight.dtype for name, weight in network.named_parameters()}
    assert (types["wo"], types["q"]) == (torch.float32, torch.float16)
    _round(network, torch.bfloat16)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}


def test_places_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(PIPELINE / "vae", tmp_path / "vae")
    assert read_vae("~/vae", torch.float32).config["latent_channels"] == 4
    assert located("some/model") == "some/model"


def test_gated_weights_say_where_to_accept_the_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(OSError):
        response = SimpleNamespace(status_code=403)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("wrapped, as diffusers does") from Refused("403 Client Error")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(ValueError, match="Accept the licence on https://huggingface.co/some/model, then set HF_TOKEN"):
        StableDiffusionSource("some/model").load()


def test_a_folder_names_the_text_encoders_that_it_lacks(tmp_path: Path) -> None:
    assert absent_encoders(tmp_path) == [] == absent_encoders(PIPELINE)
    for broken in ("{", "3"):
        (tmp_path / "model_index.json").write_text(broken)
        assert absent_encoders(tmp_path) == []
    parts = {
        "text_encoder": ["a", "B"],
        "text_encoder_3": [None, None],
        "tokenizer_3": [None, None],
        "vae": [None, None],
    }
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **parts}))
    assert absent_encoders(tmp_path) == ["text_encoder_3", "tokenizer_3"]
