"""Conditionings, and the rules of classifier-free guidance for the unconditional branch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2ifb.diffusion.lora import LoRA, merged, without_adapters
from t2ifb.diffusion.model import TEXT, Conditioning, Guidance, Unconditional, load_for_sampling
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.pipeline_model import PipelineModel
from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.profiling.memory_tracker import ActivationBytes, tensors_of
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import KEYS, PROMPTS, at, shapes_model

SCALE = 7.5


@pytest.fixture(scope="module")
def model() -> PipelineModel:
    """With adapters that have moved away from the base model."""
    model = shapes_model()
    generator = torch.Generator().manual_seed(0)
    for weight in LoRA().add(model):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    return model


def adapters(model: PipelineModel) -> list[Tensor]:
    return [weight for weight in model.denoiser.parameters() if weight.requires_grad]


def denoise(model: PipelineModel, rule: Unconditional, latents: Tensor, index: int = 2) -> Tensor:
    sampler = Sampler(4, SCALE, unconditional=rule)
    return sampler.denoiser(model, sampler.schedule_of(model), PROMPTS)(latents, index)


def test_both_rules_have_the_same_value(model: PipelineModel) -> None:
    latents = torch.randn(2, *model.latent_shape)
    with_gradient, detached = (denoise(model, rule, latents) for rule in ("grad", "detached"))  # type: ignore[arg-type]
    assert torch.allclose(with_gradient, detached, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(denoise(model, "detached", latents), detached)  # in rollouts as in gradient steps
    images = []
    for rule in ("grad", "detached"):
        sampler = Sampler(3, SCALE, unconditional=rule)  # type: ignore[arg-type]
        schedule = sampler.schedule_of(model)
        rollout = Rollout(schedule, KEYS, model.latent_shape, "cpu")
        images.append(rollout.to(3, sampler.denoiser(model, schedule, PROMPTS)))
    assert torch.allclose(*images, atol=1e-3)


def test_the_detached_gradient_is_that_of_the_conditional_branch_times_the_scale(model: PipelineModel) -> None:
    latents = torch.randn(2, *model.latent_shape, requires_grad=True)
    direction = torch.randn(2, *model.latent_shape)
    wanted = [latents, *adapters(model)]

    def gradients(output: Tensor) -> Tensor:
        return torch.cat([each.flatten() for each in torch.autograd.grad((output * direction).sum(), wanted)])

    sampler = Sampler(4)
    conditional = gradients(sampler.denoiser(model, sampler.schedule_of(model), PROMPTS)(latents, 2))
    unconditional = gradients(sampler.denoiser(model, sampler.schedule_of(model), [""] * 2)(latents, 2))
    detached = gradients(denoise(model, "detached", latents))
    assert torch.allclose(detached, SCALE * conditional, rtol=1e-4, atol=1e-5 * float(detached.abs().max()))
    both = gradients(denoise(model, "grad", latents))
    expected = SCALE * conditional + (1 - SCALE) * unconditional
    assert torch.allclose(both, expected, rtol=1e-3, atol=1e-4 * float(both.abs().max()))
    assert not torch.allclose(both, detached, rtol=0.1)


def test_only_the_conditional_branch_is_kept_for_the_backward_pass(model: PipelineModel) -> None:
    latents, kept = torch.randn(2, *model.latent_shape), {}
    for rule in ("grad", "detached"):
        with ActivationBytes(tensors_of(model)) as saved:
            denoise(model, rule, latents)  # type: ignore[arg-type]
        kept[rule] = saved.total
    assert 0.45 < kept["detached"] / kept["grad"] < 0.55


def test_the_reference_rule_has_the_base_models_unconditional_branch(model: PipelineModel) -> None:
    latents, direction = torch.randn(2, 2, *model.latent_shape)
    conditional, empty = model.encode(PROMPTS), model.encode([""] * 2)
    with torch.no_grad():
        with without_adapters(model.denoiser):
            base = model.predict(latents, at(500), empty)
        expected = SCALE * model.predict(latents, at(500), conditional) + (1 - SCALE) * base
        with merged(model.denoiser):
            fast = model.predict(latents, at(500), conditional, Guidance(empty, SCALE, "reference"))
    found = model.predict(latents, at(500), conditional, Guidance(empty, SCALE, "reference"))
    assert torch.equal(found, expected)
    assert float((fast - expected).norm()) < 1e-4 * float(expected.norm())
    detached = model.predict(latents, at(500), conditional, Guidance(empty, SCALE, "detached"))
    assert not torch.allclose(found, detached, rtol=0.1)
    ours, theirs = (torch.autograd.grad((each * direction).sum(), adapters(model)) for each in (found, detached))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_guided_samples_may_be_at_different_times(model: PipelineModel) -> None:
    latents, times = torch.randn(2, *model.latent_shape), torch.tensor([900, 100])
    guidance, conditioning = Guidance(model.encode([""] * 2), SCALE), model.encode(PROMPTS)
    with torch.no_grad():
        both = model.predict(latents, times, conditioning, guidance)
        for row in (0, 1):
            one = Guidance(guidance.unconditional.rows([row]), SCALE)
            alone = model.predict(latents[[row]], times[[row]], conditioning.rows([row]), one)
            torch.testing.assert_close(both[[row]], alone, atol=1e-4, rtol=1e-4)


def test_a_conditioning_is_indexed_joined_and_moved() -> None:
    whole = Conditioning({"states": torch.arange(12.0).reshape(3, 2, 2), "pooled": torch.arange(3.0)})
    assert len(whole) == 3 and len(whole.rows(slice(1, None))) == 2
    turned = Conditioning.cat([whole.rows([2]), whole.rows([0, 1])])
    assert torch.equal(turned["pooled"], torch.tensor([2.0, 0.0, 1.0])) and turned["states"].shape == (3, 2, 2)
    moved = whole.to("meta", torch.float16)
    assert {(each.device.type, each.dtype) for each in moved.tensors.values()} == {("meta", torch.float16)}
    assert whole.to("cpu")["states"].dtype == torch.float32
    with pytest.raises(ValueError, match="one row per prompt, got .*'pooled': \\(2,\\)"):
        Conditioning({"states": torch.zeros(3, 2), "pooled": torch.zeros(2)})


def test_text_encoders_leave_a_model_that_is_loaded_for_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path))
    source = StableDiffusionSource(str(PIPELINE))
    whole, ahead = (load_for_sampling(replace(source, encode_ahead=so), PROMPTS, "cpu") for so in (False, True))
    assert TEXT in whole.networks() and TEXT not in ahead.networks()
    for name, states in ahead.encode(["", *PROMPTS]).tensors.items():
        torch.testing.assert_close(states, whole.encode(["", *PROMPTS])[name])
    with pytest.raises(ValueError, match="released before 'another' was encoded"):
        ahead.encode(["another"])


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unconditional must be grad, detached or reference, not 'none'"):
        Sampler(4, SCALE, unconditional="none")  # type: ignore[arg-type]
