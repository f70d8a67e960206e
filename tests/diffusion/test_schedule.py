"""The grid and its steps are those of the schedulers of diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from t2ifb.diffusion.schedule import Schedule, ddim, ddpm, own

SD = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def follow(schedule: Schedule, scheduler: Any, eta: float | None) -> None:
    """Every step of ours from the scheduler's own state ends where the scheduler's does."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(schedule.timesteps, scheduler.timesteps)
    for index, t in enumerate(scheduler.timesteps):
        output, generator = torch.randn(2, 4, 3, 3), torch.Generator().manual_seed(index)
        options = {} if eta is None else {"eta": eta}
        theirs = scheduler.step(output, t, x, generator=generator, **options)
        step = schedule.transition(output, x, index)
        noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(index))
        torch.testing.assert_close(step.clean, theirs.pred_original_sample, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(step.mean + step.variance.sqrt() * noise, theirs.prev_sample, atol=1e-5, rtol=1e-4)
        x = theirs.prev_sample


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim(eta: float, spacing: str, prediction: str) -> None:
    config = SD | {"timestep_spacing": spacing, "prediction_type": prediction}
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(7)
    follow(ddim(config, 7, eta), scheduler, eta)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm(spacing: str) -> None:
    config = SD | {"timestep_spacing": spacing}
    scheduler = DDPMScheduler.from_config(config)
    scheduler.set_timesteps(9)
    follow(ddpm(config, 9), scheduler, None)


def test_a_deterministic_sampler_takes_the_kl_of_ddpm() -> None:
    still, noisy = ddim(SD, 10, 0.0), ddim(SD, 10, 1.0)
    output, x = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    assert still.transition(output, x, 4).variance == 0
    for index in (0, 4, 9):
        one, other = still.kl_transition(output, x, index), noisy.kl_transition(output, x, index)
        torch.testing.assert_close(one.mean, other.mean)
        torch.testing.assert_close(one.variance, other.variance)


def test_a_last_step_without_noise_has_the_variance_of_the_one_before() -> None:
    schedule = ddpm(SD, 40)
    assert schedule.transition(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 39).variance == 0
    assert schedule.kl_variances[39] == schedule.kl_variances[38] > 0


def test_the_pipelines_own_multistep_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match="PNDMScheduler.*scheduler=ddim"):
        own(SD, 10)
    assert own(SD | {"_class_name": "DDIMScheduler"}, 10).eta == 1.0
    assert own(SD | {"_class_name": "DDPMScheduler"}, 10).alpha_bars_next[-1] == 1.0


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        ({"clip_sample": True}, 10, "clip_sample=true"),
        ({"thresholding": True}, 10, "thresholding=true"),
        ({}, 1, "num_inference_steps must be from 2 to 1000, not 1"),
        ({}, 1001, "not 1001"),
    ],
)
def test_what_has_no_closed_form_is_refused(change: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ddim(SD | change, steps)


def test_eta_and_variance_are_checked() -> None:
    with pytest.raises(ValueError, match="eta must be"):
        ddim(SD, 10, 1.5)
    with pytest.raises(ValueError, match="fixed_large"):
        ddpm(SD | {"variance_type": "fixed_large"}, 10)
