"""One step on a Gaussian path: against the schedulers of diffusers, `torch.distributions` and an exact score."""

import math
from functools import partial
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from t2ifb.diffusion.path import (
    GaussianStep,
    Prediction,
    add_noise,
    clean_and_noise,
    cps_variance,
    denoising_error,
    eta_variance,
    gaussian_kl,
    gaussian_step,
    kept_noise,
)
from t2ifb.diffusion.schedule import Schedule

PREDICTIONS = get_args(Prediction)


def level(prediction: str, share: float) -> tuple[float, float]:
    """(a, s) at a share of the way to noise, on the path that the prediction belongs to."""
    return (1 - share, share) if prediction == "flow" else (math.sqrt(1 - share), math.sqrt(share))


def output_of(prediction: str, clean: Tensor, noise: Tensor, a: float, s: float) -> Tensor:
    """What a perfect network gives."""
    return {"epsilon": noise, "v_prediction": a * noise - s * clean, "sample": clean, "flow": noise - clean}[prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(share=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=20)
def test_what_is_predicted_is_what_was_mixed(prediction: Prediction, share: float) -> None:
    clean, noise, (a, s) = torch.randn(2, 3), torch.randn(2, 3), level(prediction, share)
    x = add_noise(clean, noise, a, s)
    found = clean_and_noise(output_of(prediction, clean, noise, a, s), x, a, s, prediction)
    torch.testing.assert_close(found, (clean, noise), rtol=1e-3, atol=1e-3)


def test_at_pure_noise_only_velocities_give_an_image() -> None:
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    for prediction in ("v_prediction", "flow"):
        output = output_of(prediction, clean, noise, 0.0, 1.0)
        torch.testing.assert_close(clean_and_noise(output, noise, 0.0, 1.0, prediction), (clean, noise))  # type: ignore[arg-type]
    for prediction in ("epsilon", "sample"):
        for a in (0, 0.0, torch.zeros(2, 1)):
            with pytest.raises(ValueError, match=f"{prediction} predicts no image at pure noise"):
                clean_and_noise(noise, noise, a, 1.0, prediction)  # type: ignore[arg-type]


def step_between(
    output: Tensor,
    noisy: Tensor,
    begin: tuple[float, float],
    end: tuple[float, float],
    variance: float,
    prediction: Prediction = "epsilon",
) -> GaussianStep:
    """The step from level (a, s) to level (a', s')."""
    return gaussian_step(output, noisy, begin, end[0], kept_noise(end[1], variance), variance, prediction)


def test_each_sample_may_have_its_own_level() -> None:
    noisy, output = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    levels = [level("epsilon", share) for share in (0.2, 0.7)]
    a, s = (torch.tensor([each[n] for each in levels])[:, None, None, None] for n in (0, 1))
    together = clean_and_noise(output, noisy, a, s)[0]
    alone = [clean_and_noise(output[n : n + 1], noisy[n : n + 1], *levels[n])[0] for n in (0, 1)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_mean_is_the_reports_equation_2_on_the_full_grid() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    beta, bars = scheduler.betas[500], scheduler.alphas_cumprod
    x, output = torch.randn(3, 4), torch.randn(3, 4)
    expected = (x - beta / (1 - bars[500]).sqrt() * output) / (1 - beta).sqrt()
    ends = [(bar.sqrt(), (1 - bar).sqrt()) for bar in bars[[500, 499]].double()]
    variance = float(eta_variance(*ends[0], *ends[1]))
    step = step_between(output, x, *[(float(a), float(s)) for a, s in ends], variance)
    torch.testing.assert_close(step.mean, expected)


@given(low=st.floats(0.001, 0.98), share=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50)
def test_eta_1_is_the_product_of_the_two_gaussians_it_comes_from(low: float, share: float) -> None:
    """q(x' | x, x_0) is q(x | x') q(x' | x_0) normalised: precisions add, means are weighted by them."""
    bar, bar_next = low, low + share * (1 - low)
    alpha, x, clean = bar / bar_next, torch.tensor([[0.7]]), torch.tensor([[-0.4]])
    forward, prior = alpha / (1 - alpha), 1 / (1 - bar_next)
    mean = (forward * x / math.sqrt(alpha) + prior * math.sqrt(bar_next) * clean) / (forward + prior)
    ends = level("sample", 1 - bar), level("sample", 1 - bar_next)
    variance = float(eta_variance(*(torch.tensor(each, dtype=torch.float64) for each in (*ends[0], *ends[1]))))
    step = step_between(clean, x, *ends, variance, "sample")
    assert step.variance == pytest.approx(1 / (forward + prior), rel=1e-3, abs=1e-6)
    torch.testing.assert_close(step.mean, mean, rtol=1e-3, atol=1e-4)


@given(share=st.floats(0.05, 0.95), to=st.floats(0.01, 0.99), of=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_the_true_image_and_noise_any_variance_ends_at_the_noise_level(
    prediction: Prediction, share: float, to: float, of: float
) -> None:
    """x' = a' x_0 + √(s'² - v) ε + √v z: given x_0, its variance is s'² exactly."""
    (a, s), (a_next, s_next) = level(prediction, share), level(prediction, to * share)
    clean, noise = torch.randn(3, 8), torch.randn(3, 8)
    variance = of * s_next**2
    output = output_of(prediction, clean, noise, a, s)
    step = step_between(output, add_noise(clean, noise, a, s), (a, s), (a_next, s_next), variance, prediction)
    kept = (step.mean - a_next * clean) / noise  # √(s'² - v), what is left of the old noise
    torch.testing.assert_close(kept**2 + variance, torch.full_like(kept, s_next**2), rtol=1e-2, atol=1e-3)


def test_flow_grpos_sampler_is_eta_in_the_limit() -> None:
    """Mean x (1 + g² dt / 2σ) + v (1 + g² (1 - σ) / 2σ) dt and variance g² |dt| with g = noise_level √(σ / (1 - σ))."""
    torch.manual_seed(0)
    x, velocity, sigma, noise_level = torch.randn(2, 5).double(), torch.randn(2, 5).double(), 0.6, 0.7
    errors = []
    for dt in (-1e-2, -1e-3, -1e-4):
        g2 = noise_level**2 * sigma / (1 - sigma)
        mean = x * (1 + g2 * dt / (2 * sigma)) + velocity * (1 + g2 * (1 - sigma) / (2 * sigma)) * dt
        ends = (1 - sigma, sigma), (1 - sigma - dt, sigma + dt)
        tensors = [torch.tensor(each, dtype=torch.float64) for each in (*ends[0], *ends[1])]
        variance = float(eta_variance(*tensors, eta=noise_level / math.sqrt(2)))
        clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
        ours = ends[1][0] * clean + math.sqrt(ends[1][1] ** 2 - variance) * noise
        errors.append((float((ours - mean).abs().max()) / -dt, abs(variance / (g2 * -dt) - 1)))
    assert errors[2][0] < 1e-3 and errors[2][1] < 1e-3
    assert errors[0] > errors[1] > errors[2]


def test_cps_has_its_papers_mean_and_deviation() -> None:
    sigma_next, strength = 0.4, 0.8
    variance = cps_variance(*(torch.tensor(each) for each in (0.4, 0.6, 1 - sigma_next, sigma_next)), level=strength)
    assert math.sqrt(float(variance)) == pytest.approx(sigma_next * math.sin(strength * math.pi / 2))
    x, velocity = torch.randn(2, 5), torch.randn(2, 5)
    x0, x1 = x - 0.6 * velocity, x + 0.4 * velocity
    expected = (1 - sigma_next) * x0 + math.sqrt(sigma_next**2 - float(variance)) * x1
    step = step_between(velocity, x, (0.4, 0.6), (1 - sigma_next, sigma_next), float(variance), "flow")
    torch.testing.assert_close(step.mean, expected)


def test_log_probability_and_kl_are_those_of_the_distributions() -> None:
    means, variance, value = torch.randn(2, 3, 2, 4), 0.3, torch.randn(3, 2, 4)
    normals = [Independent(Normal(mean, math.sqrt(variance)), 2) for mean in means]
    steps = [GaussianStep(mean, variance, mean) for mean in means]
    torch.testing.assert_close(steps[0].log_prob(value), normals[0].log_prob(value))
    divergence = gaussian_kl(means[0], means[1], variance)
    torch.testing.assert_close(divergence, kl_divergence(*normals))
    samples = normals[0].sample((20_000,))
    ratios = torch.stack([normals[0].log_prob(samples) - normals[1].log_prob(samples)])
    error = ratios.std(1) / math.sqrt(20_000)
    assert ((ratios.mean(1) - divergence).abs() < 5 * error).all()


@given(st.integers(0, 1000), st.floats(1e-4, 10))
def test_the_kl_is_that_of_torch_distributions(seed: int, variance: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    expected = kl_divergence(*(Independent(Normal(mean, variance**0.5), 3) for mean in (p, q)))
    torch.testing.assert_close(gaussian_kl(p, q, variance), expected, rtol=1e-4, atol=1e-5)


def test_the_kl_is_exactly_zero_for_equal_means_and_float32_in_half_precision() -> None:
    mean = torch.randn(2, 5, dtype=torch.bfloat16)
    assert torch.equal(gaussian_kl(mean, mean, 1e-20), torch.zeros(2))
    assert gaussian_kl(mean, mean + 1, 0.5).dtype == torch.float32


def test_a_deterministic_step_has_no_log_probability_and_takes_no_noise() -> None:
    step = GaussianStep(torch.ones(1, 2), 0.0, torch.ones(1, 2))
    assert torch.equal(step.sample(None), step.mean)
    with pytest.raises(ValueError, match="variance 0 has no log-probability"):
        step.log_prob(torch.ones(1, 2))


def test_half_precision_is_computed_in_single() -> None:
    x, output = torch.randn(2, 3, 4).half()
    ends = (level("epsilon", 0.6), level("epsilon", 0.5), 0.1)
    assert torch.equal(step_between(output, x, *ends).mean, step_between(output.float(), x.float(), *ends).mean)


def mixture_output(x: Tensor, a: float, s: float, prediction: str) -> Tensor:
    """The exact prediction for data that are -2 or 1, each N(·, 0.3²), with weights 0.3 and 0.7."""
    means, weights, spread = torch.tensor([-2.0, 1.0]), torch.tensor([0.3, 0.7]), 0.3
    total = (a * spread) ** 2 + s**2
    distance = x[..., None] - a * means
    share = (weights.log() - distance**2 / (2 * total)).softmax(-1)
    clean = (share * (means + a * spread**2 / total * distance)).sum(-1)
    return output_of(prediction, clean, (x - a * clean) / s, a, s)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_an_exact_score_the_samples_variance_is_the_datas_as_steps_grow(prediction: str, eta: float) -> None:
    """Noise is the normal quantiles in random order, so that little of the error is chance."""
    mean = 0.3 * -2 + 0.7 * 1
    truth = 0.3 * (-2 - mean) ** 2 + 0.7 * (1 - mean) ** 2 + 0.3**2
    count = 8192
    quantiles = Normal(0.0, 1.0).icdf((torch.arange(count) + 0.5) / count)
    errors = []
    for steps in (10, 40, 1000):
        shares = torch.linspace(0.9999, 0.0, steps + 1, dtype=torch.float64).tolist()
        levels = torch.tensor([level(prediction, share) for share in shares], dtype=torch.float64)
        (a, s), (a_next, s_next) = levels[:-1].T, levels[1:].T
        rule = partial(eta_variance, eta=eta)
        schedule = Schedule(torch.arange(steps), a, s, a_next, s_next, prediction, rule)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        x = quantiles
        for index in range(steps):
            step = schedule.step(mixture_output(x, *schedule.level(index, x), prediction), x, index)
            noise = quantiles[torch.randperm(count, generator=generator)] if step.variance else None
            x = step.sample(noise)
        errors.append(abs(float(x.var()) / truth - 1))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


@pytest.mark.parametrize("level", [0.1, 0.5, 1.0])
def test_the_error_is_that_of_the_noise_or_of_the_velocity(level: float) -> None:
    clean, noise, output = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    error = denoising_error(output, clean, noise, 1 - level, level, "flow")
    assert torch.allclose(error, (output - (noise - clean)).square().flatten(1).mean(1), atol=1e-6)
    a = (1 - level**2 / 2) ** 0.5
    error = denoising_error(output, clean, noise, a, (1 - a**2) ** 0.5, "epsilon")
    assert torch.allclose(error, (output - noise).square().flatten(1).mean(1), atol=1e-6)
    for signal, s in ((a, (1 - a**2) ** 0.5), (0.0, 1.0)):  # also at pure noise, where that of the noise says nothing
        error = denoising_error(output, clean, noise, signal, s, "v_prediction")
        velocity = signal * noise - s * clean
        assert torch.allclose(error, (output - velocity).square().flatten(1).mean(1), atol=1e-6)
