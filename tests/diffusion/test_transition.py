"""The closed form of a denoising step, against the schedulers' own steps and against `torch.distributions`."""

from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from t2ifb.diffusion.transition import (
    Prediction,
    clean_and_noise,
    ddim_transition,
    ddpm_variance,
    kl_variances,
)
from t2ifb.learning.losses import gaussian_kl

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
PREDICTIONS = get_args(Prediction)


def ddpm(prediction: str, steps: int) -> DDPMScheduler:
    scheduler = DDPMScheduler(**SD, prediction_type=prediction, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler


def ddim(prediction: str, steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(**SD, prediction_type=prediction, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler


def ends(scheduler: Any, index: int, last: Tensor) -> tuple[Tensor, Tensor]:
    """ᾱ at the noisier and the cleaner end of a step on the scheduler's grid."""
    bars = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], last.reshape(1)])
    return bars[index], bars[index + 1]


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("index", [0, 5, -2, -1])
def test_ddpm_steps_as_diffusers_does(prediction: Prediction, steps: int, index: int) -> None:
    scheduler = ddpm(prediction, steps)
    index %= steps
    x, output, t = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3), scheduler.timesteps[index]
    ours = ddim_transition(output, x, *ends(scheduler, index, torch.tensor(1.0)), prediction)
    generator = torch.Generator().manual_seed(0)
    many = scheduler.step(output.repeat(20_000, 1, 1, 1), t, x.repeat(20_000, 1, 1, 1), generator=generator)
    samples = many.prev_sample.unflatten(0, (20_000, 2))
    deviation = ours.variance.sqrt()
    torch.testing.assert_close(ours.clean, many.pred_original_sample[:2])
    torch.testing.assert_close(samples.mean(0), ours.mean, atol=float(5 * deviation / 20_000**0.5) + 1e-5, rtol=0)
    torch.testing.assert_close(samples.var(0), ours.variance.expand(2, 1, 3, 3), atol=1e-9, rtol=0.06)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("index", [0, 17, 39])
def test_ddim_steps_as_diffusers_does(prediction: Prediction, eta: float, index: int) -> None:
    scheduler = ddim(prediction, 40)
    x, output, t = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), scheduler.timesteps[index]
    ours = ddim_transition(output, x, *ends(scheduler, index, scheduler.final_alpha_cumprod), prediction, eta)
    noise = torch.randn_like(x)
    theirs = scheduler.step(output, t, x, eta=eta, variance_noise=noise if eta else None)
    torch.testing.assert_close(ours.mean + ours.variance.sqrt() * noise, theirs.prev_sample)
    torch.testing.assert_close(ours.clean, theirs.pred_original_sample)


@settings(deadline=None, max_examples=50)
@given(low=st.floats(0.001, 0.98), share=st.floats(0.01, 0.99))
def test_the_step_is_the_product_of_the_two_gaussians_it_comes_from(low: float, share: float) -> None:
    """q(x_next | x, x_0) is q(x | x_next) q(x_next | x_0) normalised: precisions add, means are weighted by them."""
    bar, bar_next = torch.tensor(low), torch.tensor(low + share * (1 - low))
    alpha, x, clean = bar.double() / bar_next.double(), torch.tensor([0.7]), torch.tensor([-0.4])
    forward, prior = alpha / (1 - alpha), 1 / (1 - bar_next.double())
    mean = (forward * x / alpha.sqrt() + prior * bar_next.double().sqrt() * clean) / (forward + prior)
    step = ddim_transition(clean, x, bar, bar_next, "sample")
    torch.testing.assert_close(step.variance, (1 / (forward + prior)).float(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(step.mean, mean.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_predicted_is_what_was_mixed(prediction: Prediction) -> None:
    clean, noise, bar = torch.randn(2, 3), torch.randn(2, 3), torch.tensor(0.3)
    x = bar.sqrt() * clean + (1 - bar).sqrt() * noise
    outputs = {"epsilon": noise, "v_prediction": bar.sqrt() * noise - (1 - bar).sqrt() * clean, "sample": clean}
    torch.testing.assert_close(clean_and_noise(outputs[prediction], x, bar, prediction), (clean, noise))


def test_the_mean_is_the_reports_equation_2_on_the_full_grid() -> None:
    scheduler = ddpm("epsilon", 1000)
    beta, bars = scheduler.betas[500], scheduler.alphas_cumprod
    x, output = torch.randn(3, 4), torch.randn(3, 4)
    expected = (x - beta / (1 - bars[500]).sqrt() * output) / (1 - beta).sqrt()
    torch.testing.assert_close(ddim_transition(output, x, bars[500], bars[499]).mean, expected)


def test_the_kl_of_two_models_is_that_of_their_distributions() -> None:
    bars = torch.tensor(0.4), torch.tensor(0.5)
    x, outputs = torch.randn(3, 2, 4), (torch.randn(3, 2, 4), torch.randn(3, 2, 4))
    steps = [ddim_transition(output, x, *bars) for output in outputs]
    normals = [Independent(Normal(step.mean, step.variance.sqrt()), 2) for step in steps]
    ours = gaussian_kl(steps[0].mean, steps[1].mean, steps[0].variance)
    torch.testing.assert_close(ours, kl_divergence(*normals))


def test_half_precision_is_computed_in_single() -> None:
    bars = torch.tensor(0.4), torch.tensor(0.5)
    x, output = torch.randn(2, 3, 4).half()
    assert torch.equal(ddim_transition(output, x, *bars).mean, ddim_transition(output.float(), x.float(), *bars).mean)


def test_the_last_step_takes_the_variance_of_the_one_before() -> None:
    scheduler = ddpm("epsilon", 40)
    bars = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)])
    variances = ddpm_variance(bars[:-1], bars[1:])
    used = kl_variances(variances)
    assert variances[-1] == 0
    assert used[-1] == used[-2] == variances[-2] > 1e-4
    assert torch.equal(used[:-1], variances[:-1])
    positive = torch.tensor([3.0, 2.0, 1.0])
    assert torch.equal(kl_variances(positive), positive)
    with pytest.raises(ValueError, match="all but the last with a positive variance"):
        kl_variances(torch.zeros(5))


def test_what_is_out_of_range_is_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        ddim_transition(one, one, one / 2, one, eta=1.5)
    with pytest.raises(ValueError, match="epsilon, v_prediction or sample"):
        clean_and_noise(one, one, one / 2, "flow")  # type: ignore[arg-type]
