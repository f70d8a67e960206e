"""A model without weights has the shapes and types of the real one."""

from dataclasses import replace

import pytest
import torch
from t2ifb.profiling.meta_model import BlankTokenizer, MetaModel

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import shapes_model

SOURCE = StableDiffusionSource(str(PIPELINE), device="cpu")


def test_every_weight_is_there_in_its_shape_and_without_numbers() -> None:
    with MetaMode():
        meta = MetaModel.of(SOURCE).load()
    real = shapes_model()
    shapes = [{name: weight.shape for name, weight in model.named_parameters()} for model in (meta, real)]
    assert shapes[0] == shapes[1] != {}
    assert {weight.device.type for weight in meta.parameters()} == {"meta"}
    assert meta.latent_shape == real.latent_shape


def test_it_keeps_the_settings_of_its_source() -> None:
    source = replace(SOURCE, precision="bf16", gradient_checkpointing=True)
    meta = MetaModel.of(source)
    assert vars(meta) == vars(source) | {"device": "meta"}
    with MetaMode():
        assert {weight.dtype for weight in meta.load().denoiser.parameters()} == {torch.bfloat16}


def test_every_text_is_as_long_as_the_context() -> None:
    tokens = BlankTokenizer(7)(["a", "b " * 100], padding="max_length", truncation=True)
    assert tokens.input_ids.shape == (2, 7) and tokens.input_ids.dtype == torch.int64


def test_a_model_that_is_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="does not exist"), MetaMode():
        MetaModel.of(replace(SOURCE, source="./nowhere")).load()
