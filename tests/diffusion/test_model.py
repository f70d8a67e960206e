"""Classifier-free guidance with and without a gradient through its unconditional branch."""

import pytest
import torch
from torch import Tensor

from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import DiffusionModel, Unconditional
from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.profiling.memory_tracker import ActivationBytes, tensors_of
from t2ifb.shapes.training.loop import rendered
from tests.diffusion.parts import KEYS, PROMPTS, shapes_model

SCALE = 7.5


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    """With adapters that have moved away from the base model."""
    model = shapes_model()
    generator = torch.Generator().manual_seed(0)
    for weight in LoRA().add(model.denoiser):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    return model


def adapters(model: DiffusionModel) -> list[Tensor]:
    return [weight for weight in model.denoiser.parameters() if weight.requires_grad]


def denoise(model: DiffusionModel, rule: Unconditional, latents: Tensor, index: int = 2) -> Tensor:
    sampler = Sampler(4, SCALE, unconditional=rule)
    return sampler.denoiser(model, sampler.schedule_of(model), PROMPTS)(latents, index)


def test_both_rules_have_the_same_value(model: DiffusionModel) -> None:
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


def test_the_detached_gradient_is_that_of_the_conditional_branch_times_the_scale(model: DiffusionModel) -> None:
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


def test_only_the_conditional_branch_is_kept_for_the_backward_pass(model: DiffusionModel) -> None:
    latents, kept = torch.randn(2, *model.latent_shape), {}
    for rule in ("grad", "detached"):
        with ActivationBytes(tensors_of(model)) as saved:
            denoise(model, rule, latents)  # type: ignore[arg-type]
        kept[rule] = saved.total
    assert 0.45 < kept["detached"] / kept["grad"] < 0.55


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unconditional must be grad or detached, not 'none'"):
        Sampler(4, SCALE, unconditional="none")  # type: ignore[arg-type]


def test_images_that_are_encoded_decode_to_themselves() -> None:
    images, model = rendered("test", 2, seed=0).images.float() / 255, shapes_model()
    latents = model.encode_images(images)
    assert latents.shape == (2, *model.latent_shape)
    assert 0.3 < float(latents.std()) < 3  # scaled for the denoiser
    assert float((model.decode(latents) - images).abs().mean()) < 0.05
