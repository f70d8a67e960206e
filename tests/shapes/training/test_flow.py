"""The rectified flow of the world: its networks, its noise levels, and a training of few steps."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import nn

from t2ifb.diffusion.models import source_of
from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.diffusion.schedule import flow as flow_schedule
from t2ifb.shapes.training import flow
from t2ifb.shapes.training.flow import Prompts, TextToFlow
from t2ifb.shapes.weights import FLOW_T5_TOKENS, load_pipeline
from tests.shapes.flow_parts import write_untrained

PROMPTS = ["a red circle on a gray background", "two blue stars on a white background"]


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return load_pipeline(torch.float32)


def encoded(base: StableDiffusionPipeline, prompts: list[str]) -> Prompts:
    return flow.encode_prompts(flow.first_encoder(base), base.tokenizer, prompts)


def test_the_first_encoder_is_the_unets(base: StableDiffusionPipeline) -> None:
    found = encoded(base, PROMPTS)
    expected = base.text_encoder(found.token_ids, output_hidden_states=True)
    torch.testing.assert_close(found.states, expected.hidden_states[-2])
    torch.testing.assert_close(found.pooled, expected.pooler_output)


def test_noise_levels_are_logit_normal_and_spread_evenly() -> None:
    draw = torch.Generator().manual_seed(0)
    batches = torch.stack([flow.noise_levels(32, draw) for _ in range(200)])
    logits = batches.logit()
    assert logits.mean().abs() < 0.01 and abs(logits.std() - 1) < 0.02
    below = (batches < 0.5).sum(1)
    assert (below == 16).all()  # independent draws would vary by 2.8


def test_blocks_start_as_the_identity_and_the_output_as_zero(base: StableDiffusionPipeline) -> None:
    model = flow.untrained(base, seed=0)
    states = torch.randn(1, 64, flow.HEADS * flow.HEAD_WIDTH)
    time = torch.randn(1, flow.HEADS * flow.HEAD_WIDTH)
    _, after = model.transformer.transformer_blocks[0](states, torch.randn(1, 5, states.shape[-1]), time)
    torch.testing.assert_close(after, states)
    noisy = torch.randn(2, 4, 16, 16)
    assert not model(noisy, torch.tensor([0.2, 0.8]), encoded(base, PROMPTS)).any()


def test_words_and_times_reach_the_prediction_and_gradients_all_networks(base: StableDiffusionPipeline) -> None:
    torch.manual_seed(0)
    model = TextToFlow(base.text_encoder.config)
    for norm in [layer for layer in model.modules() if isinstance(layer, nn.Linear)]:
        nn.init.normal_(norm.weight, std=0.1)  # away from the zeros at the start
    noisy, sigma, prompts = torch.randn(2, 4, 16, 16), torch.tensor([0.2, 0.8]), encoded(base, PROMPTS)
    output = model(noisy, sigma, prompts)
    assert output.shape == noisy.shape
    for changed in (
        prompts._replace(states=prompts.states.flip(0)),
        prompts._replace(pooled=prompts.pooled.flip(0)),
        prompts._replace(token_ids=prompts.token_ids.flip(0)),
    ):
        assert not torch.allclose(model(noisy, sigma, changed), output)
    assert not torch.allclose(model(noisy, sigma.flip(0), prompts), output)
    output.square().mean().backward()
    for network in (model.transformer, model.text_encoder_2):
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


def test_a_layer_starts_with_standardised_inputs() -> None:
    states = torch.randn(50, 6, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([30.0, 1.0, 0.1]) + 7
    layer = nn.Linear(5, 4)
    before = (layer.weight.clone(), layer.bias.clone())
    flow.standardise(layer, states)
    normal = (states - states.mean((0, 1))) / states.std((0, 1))
    rest = torch.ones(50, 6, 2)
    expected = nn.functional.linear(torch.cat([normal, rest], -1), *before)
    torch.testing.assert_close(layer(torch.cat([states, rest], -1)), expected, atol=1e-4, rtol=1e-4)


def test_a_training_of_few_steps_gives_a_pipeline_and_is_not_done_again(
    base: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STEPS", 2)
    monkeypatch.setattr(flow, "BATCH", 2)
    monkeypatch.setattr(flow, "LEARNING_RATE", 0.1)
    with pytest.raises(ValueError, match=r"flow\.pt does not exist; train flow first"):
        flow.unfinished(base, tmp_path)
    first = flow.train(base, tmp_path, images=4)
    assert not (first.transformer.training or first.text_encoder_2.training)
    for again in (flow.train(base, tmp_path, images=4, seed=1), flow.unfinished(base, tmp_path, seed=1)):
        for part in ("transformer", "text_encoder_2"):
            pairs = zip(getattr(first, part).parameters(), getattr(again, part).parameters(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    assert (first.text_encoder.state_dict()["text_model.final_layer_norm.weight"]).equal(
        base.text_encoder.state_dict()["final_layer_norm.weight"]
    )
    first.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "max_sequence_length": FLOW_T5_TOKENS}
    images = [first(prompt, latents=noise, output_type="np", **options).images[0] for prompt in PROMPTS]
    assert images[0].shape == (64, 64, 3)
    assert abs(images[0] - images[1]).max() > 0


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("flow"))


def test_diffusers_loads_what_was_saved(untrained: Path) -> None:
    assert json.loads((untrained / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    pipeline = StableDiffusion3Pipeline.from_pretrained(untrained, text_encoder_3=None, tokenizer_3=None)
    assert pipeline.scheduler.config.shift == 1.0


@pytest.mark.parametrize("options", [{}, {"t5": False}])
def test_this_package_loads_it_without_being_told_of_the_missing_t5(untrained: Path, options: dict[str, bool]) -> None:
    model = source_of(untrained, max_sequence_length=FLOW_T5_TOKENS, device="cpu", **options).load()
    assert model.latent_shape == (4, 16, 16) and model.image_size == (64, 64)
    assert list(model.text.encoders) == ["text_encoder", "text_encoder_2"]


def test_it_draws_as_diffusers_does(untrained: Path) -> None:
    model = source_of(untrained, max_sequence_length=FLOW_T5_TOKENS, device="cpu").load()
    pipeline = StableDiffusion3Pipeline.from_pretrained(untrained, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "guidance_scale": 4.0, "max_sequence_length": FLOW_T5_TOKENS}
    expected = pipeline(PROMPTS, latents=noise, output_type="latent", **options).images
    sampler = Sampler(num_inference_steps=4, guidance_scale=4.0, schedule=flow_schedule)
    steps = sampler.schedule_of(model)
    rollout = Rollout(steps, [(0,), (1,)], model.latent_shape, "cpu", latents=noise)
    found = rollout.to(len(steps), sampler.denoiser(model, steps, PROMPTS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
