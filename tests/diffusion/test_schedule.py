"""The grid and its steps are those of the schedulers of diffusers."""

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from t2ifb.diffusion.path import cps_variance, eta_variance
from t2ifb.diffusion.pipeline_config import path_of
from t2ifb.diffusion.schedule import Schedule, ddim, ddpm, flow, own

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
        step = schedule.step(output, x, index)
        noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(index))
        torch.testing.assert_close(step.clean, theirs.pred_original_sample, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(step.sample(noise), theirs.prev_sample, atol=1e-5, rtol=1e-4)
        x = theirs.prev_sample


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim(eta: float, spacing: str, prediction: str) -> None:
    config = SD | {"timestep_spacing": spacing, "prediction_type": prediction}
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(7)
    follow(ddim(path_of(config), 7, eta), scheduler, eta)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm(spacing: str) -> None:
    config = SD | {"timestep_spacing": spacing}
    scheduler = DDPMScheduler.from_config(config)
    scheduler.set_timesteps(9)
    follow(ddpm(path_of(config), 9), scheduler, None)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


@pytest.mark.parametrize("steps", [2, 7, 40])
def test_a_flow_without_noise_is_eulers_method(steps: int) -> None:
    scheduler, schedule = FlowMatchEulerDiscreteScheduler.from_config(FLOW), flow(path_of(FLOW), steps)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(schedule.timesteps, scheduler.timesteps)
    x = torch.randn(2, 4, 3, 3)
    for index, t in enumerate(scheduler.timesteps):
        output = torch.randn(2, 4, 3, 3)
        step = schedule.step(output, x, index)
        assert step.variance == 0
        torch.testing.assert_close(step.clean, x - scheduler.sigmas[index] * output)
        x = scheduler.step(output, t, x).prev_sample
        torch.testing.assert_close(step.mean, x, atol=1e-5, rtol=1e-4)


def test_a_flows_shift_may_depend_on_the_resolution() -> None:
    config = FLOW | {"shift": 1.0, "use_dynamic_shifting": True}
    scheduler, schedule = FlowMatchEulerDiscreteScheduler.from_config(config), flow(path_of(config), 5, mu=0.8)
    scheduler.set_timesteps(5, mu=0.8)
    torch.testing.assert_close(schedule.timesteps, scheduler.timesteps)


def kl_variances(schedule: Schedule) -> list[Any]:
    """The variance of each step in its KL divergence."""
    latents = torch.zeros(1, 4, 2, 2)
    return [schedule.kl_step(latents, latents, index).variance for index in range(len(schedule))]


@pytest.mark.parametrize("rule", [eta_variance, partial(eta_variance, eta=0.5), cps_variance])
def test_a_flow_may_be_stochastic_but_its_last_step_is_not(rule: Any) -> None:
    schedule = flow(path_of(FLOW), 8, rule)
    assert min(schedule.variances[:-1]) > 0 == schedule.variances[-1]
    assert kl_variances(schedule) == [*schedule.variances[:-1], schedule.variances[-2]]


def test_zero_terminal_snr_needs_a_velocity() -> None:
    config = SD | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler.from_config(config | {"prediction_type": "v_prediction"})
    scheduler.set_timesteps(5)
    schedule = ddim(path_of(config | {"prediction_type": "v_prediction"}), 5)
    assert float(schedule.a[0]) == pytest.approx(0, abs=1e-3)
    follow(schedule, scheduler, 1.0)
    with pytest.raises(ValueError, match="rescale_betas_zero_snr.*only from v_prediction"):
        ddim(path_of(config), 5)


@pytest.mark.parametrize(
    ("still", "noisy"),
    [
        (ddim(path_of(SD), 10, 0.0), ddim(path_of(SD), 10, 1.0)),
        (flow(path_of(FLOW), 10), flow(path_of(FLOW), 10, eta_variance)),
    ],
)
def test_a_deterministic_sampler_takes_the_kl_of_eta_1(still: Schedule, noisy: Schedule) -> None:
    output, x = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    assert still.step(output, x, 4).variance == 0
    for index in (0, 4, 9):
        one, other = still.kl_step(output, x, index), noisy.kl_step(output, x, index)
        torch.testing.assert_close(one.mean, other.mean)
        assert one.variance == other.variance > 0


def test_a_last_step_without_noise_has_the_variance_of_the_one_before() -> None:
    schedule = ddpm(path_of(SD), 40)
    assert schedule.step(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 39).variance == 0
    found = kl_variances(schedule)
    assert found[39] == found[38] > 1e-4
    assert found[:39] == schedule.variances[:39]


@pytest.mark.parametrize("variance", [-0.1, 2.0, float("nan")])
def test_a_variance_that_no_step_has_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="must be from 0 to s'²"):
        flow(path_of(FLOW), 4, lambda a, s, a_next, s_next: torch.full_like(s, variance))


def test_samples_may_be_at_different_steps() -> None:
    schedule, output, x = ddim(path_of(SD), 10), torch.randn(3, 4, 3, 3), torch.randn(3, 4, 3, 3)
    together, divergence = schedule.step(output, x, [0, 4, 9]), schedule.kl_step(output, x, [0, 4, 9])
    for row, index in enumerate((0, 4, 9)):
        alone = schedule.step(output[row : row + 1], x[row : row + 1], index)
        assert torch.equal(together.mean[row : row + 1], alone.mean)  # or a policy's ratio would not be 1
        assert torch.equal(together.clean[row : row + 1], alone.clean)
        assert torch.equal(together.log_prob(x)[row : row + 1], alone.log_prob(x[row : row + 1]))
        assert float(together.variance[row]) == pytest.approx(alone.variance)  # type: ignore[index]
        assert float(divergence.variance[row]) == pytest.approx(kl_variances(schedule)[index])  # type: ignore[index]
    times = schedule.timesteps[[0, 4, 9]]
    assert torch.equal(schedule.time([0, 4, 9], x), times)
    assert torch.equal(schedule.time(4, x), times[1].expand(3))
    again = schedule.step(output, x, [9, 4, 0])  # other steps than before
    assert torch.equal(again.clean[:1], schedule.step(output[:1], x[:1], 9).clean)


def test_only_the_last_step_of_a_stochastic_sampler_may_be_deterministic() -> None:
    def window(*ends: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(10) < 3, eta_variance(*ends), 0.0)

    with pytest.raises(ValueError, match="expected stochastic steps before the last"):
        kl_variances(flow(path_of(FLOW), 10, window))


def test_the_pipelines_own_multistep_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match="PNDMScheduler.*schedule=ddim"):
        own(path_of(SD), 10)
    with pytest.raises(ValueError, match="PNDMScheduler, not that of a rectified flow"):
        flow(path_of(SD), 10)
    with pytest.raises(ValueError, match="the model is a rectified flow"):
        ddim(path_of(FLOW), 10)
    assert own(path_of(SD | {"_class_name": "DDIMScheduler"}), 10).variances == ddim(path_of(SD), 10).variances
    assert own(path_of(FLOW), 10).prediction == "flow"
    assert own(path_of(SD | {"_class_name": "DDPMScheduler"}), 10).s_next[-1] == 0


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
        ddim(path_of(SD | change), steps)


def test_eta_and_variance_are_checked() -> None:
    with pytest.raises(ValueError, match="eta must be"):
        ddim(path_of(SD), 10, 1.5)
    with pytest.raises(ValueError, match="fixed_large"):
        ddpm(path_of(SD | {"variance_type": "fixed_large"}), 10)
