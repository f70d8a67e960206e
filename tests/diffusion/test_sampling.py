"""A rollout is what the pipeline itself does, and does not depend on how it is cut."""

import pytest
import torch
from diffusers import DDIMScheduler

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Rollout, Sampler, generate
from t2ifb.diffusion.schedule import ddim
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.random_streams import gaussian
from tests.diffusion.parts import KEYS, PROMPTS, shapes_model

STEPS = 5


def still(config: object, steps: int) -> object:
    return ddim(config, steps, eta=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_images_are_those_of_the_pipeline(guidance_scale: float) -> None:
    sampler = Sampler(STEPS, guidance_scale, still)  # type: ignore[arg-type]
    ours = torch.cat(list(generate(shapes_model(), sampler, PROMPTS, KEYS)))
    pipeline = StableDiffusionSource(str(PIPELINE)).pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs = pipeline(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=gaussian(KEYS, 0, (4, 16, 16)),
        output_type="pt",
    ).images
    assert (ours.float() - theirs * 255).abs().max() <= 1


def test_noise_belongs_to_the_sample_and_not_to_its_batch() -> None:
    model, sampler = shapes_model(), Sampler(3, 1.0)
    both = torch.cat(list(generate(model, sampler, PROMPTS, KEYS)))
    alone = torch.cat(list(generate(model, sampler, PROMPTS[1:], KEYS[1:])))
    assert (both[1].int() - alone[0].int()).abs().max() <= 1  # a batch of another size rounds otherwise
    one_by_one = torch.cat(list(generate(model, sampler, PROMPTS, KEYS, batch_size=1)))
    assert torch.equal(one_by_one[1], alone[0])
    assert not torch.equal(gaussian(KEYS, 0, (4, 2, 2)), gaussian(KEYS, 1, (4, 2, 2)))
    assert not torch.equal(gaussian([(1, 2)], 0, (4, 2, 2)), gaussian([(2, 1)], 0, (4, 2, 2)))


def test_stops_and_outputs_from_outside_change_nothing() -> None:
    model = shapes_model()
    sampler = Sampler(6, 2.0)
    schedule = sampler.schedule_of(model)
    denoise = sampler.denoiser(model, schedule, PROMPTS)
    straight = Rollout(schedule, KEYS, model.latent_shape, "cpu").to(6, denoise)
    stopped = Rollout(schedule, KEYS, model.latent_shape, "cpu")
    for index in (1, 2, 4):
        noisy = stopped.to(index, denoise)
        output = denoise(noisy, index)
        assert not stopped.latents.requires_grad
        stopped.take(output)
    assert torch.equal(stopped.to(6, denoise), straight)
    with pytest.raises(ValueError, match="cannot go to step 3 from step 6 of 6"):
        stopped.to(3, denoise)


def test_guidance_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_scale must be at least 1"):
        Sampler(5, 0.5)
