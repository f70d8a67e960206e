"""Errors of files and folders that are no pipeline, and the class of a pipeline."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.source import absent_encoders, pipeline_class
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
