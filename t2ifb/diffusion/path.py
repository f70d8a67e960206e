"""Gaussian paths x_t = a x_0 + s ε, and the distribution of one sampling step on them.

A variance-preserving path (Stable Diffusion, SDXL) has a = √ᾱ and s = √(1 - ᾱ), a rectified flow (SD3.5, FLUX) has
a = 1 - σ and s = σ. A step from (a, s) to (a', s') with variance v is

    N(a' x̂_0 + √(s'² - v) ε̂, v I)

With the true x_0 and ε, every 0 <= v <= s'² ends at exactly the noise level s'. A network's prediction gives the right
marginals only as the number of steps grows.

Coefficients are numbers, or tensors that broadcast to the latents. Everything is computed in float32. With
classifier-free guidance, give the guided output. Predicted images are not clipped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow"]
"""A network's output: ε; v = a ε - s x_0 (arXiv 2202.00512); x_0; or the velocity ε - x_0 of a rectified flow."""
Coefficient: TypeAlias = float | Tensor


@dataclass(frozen=True)
class GaussianPath:
    """The path that a model was trained on, at its N training times, and what the network predicts.

    Attributes:
        times: (N,), the training times as the network takes them: int64 if variance preserving, float32 on a flow.
        a: (N,) float64, signal coefficients.
        s: (N,) float64, noise coefficients.
        prediction: Meaning of the network's output.
        scheduler: Configuration of the pipeline's scheduler in diffusers' form, which sets the spacing of steps.
    """

    times: Tensor
    a: Tensor
    s: Tensor
    prediction: Prediction
    scheduler: Mapping[str, Any]

    @classmethod
    def variance_preserving(cls, bars: Tensor, scheduler: Mapping[str, Any]) -> Self:
        """A = √ᾱ and s = √(1 - ᾱ) of the values (N,) of ᾱ at the times 0 to N - 1."""
        bars = bars.double()
        prediction = scheduler.get("prediction_type", "epsilon")
        return cls(torch.arange(len(bars)), bars.sqrt(), (1 - bars).sqrt(), prediction, dict(scheduler))

    @classmethod
    def rectified_flow(cls, sigmas: Tensor, scheduler: Mapping[str, Any]) -> Self:
        """A = 1 - σ and s = σ of the values (N,) of σ, at the times N σ."""
        sigmas = sigmas.double()
        return cls((len(sigmas) * sigmas).float(), 1 - sigmas, sigmas, "flow", dict(scheduler))


def add_noise(clean: Tensor, noise: Tensor, a: Coefficient, s: Coefficient) -> Tensor:
    """x_t = a x_0 + s ε, of the shape of `clean`."""
    return a * clean + s * noise


def denoising_error(
    output: Tensor, clean: Tensor, noise: Tensor, a: Coefficient, s: Coefficient, prediction: Prediction = "epsilon"
) -> Tensor:
    """Mean squared error (B,) of a network's output at a x_0 + s ε, in what the loss of its path looks at.

    That is the noise on a variance-preserving path, the velocity a ε - s x_0 with `v_prediction`, where the error of
    the noise is a² times as large, and the velocity ε - x_0 on a rectified flow, where it is (1 - σ)² times as large.

    Args:
        output: (B, ...), the network's output.
        clean: (B, ...), x_0.
        noise: (B, ...), ε.
        a: Signal coefficient.
        s: Noise coefficient.
        prediction: Meaning of the output.
    """
    found_clean, found_noise = clean_and_noise(output, add_noise(clean, noise, a, s), a, s, prediction)
    error = found_noise - noise
    if prediction == "flow":
        error = error - (found_clean - clean)
    elif prediction == "v_prediction":
        error = a * error - s * (found_clean - clean)
    return error.square().flatten(1).mean(1)


def clean_and_noise(
    output: Tensor, noisy: Tensor, a: Coefficient, s: Coefficient, prediction: Prediction = "epsilon"
) -> tuple[Tensor, Tensor]:
    """x̂_0 and ε̂ from a network's output.

    Args:
        output: (B, ...), the network's output.
        noisy: (B, ...), the network's input x_t.
        a: Signal coefficient of x_t.
        s: Noise coefficient of x_t. `v_prediction` needs a² + s² = 1, `flow` a + s = 1.
        prediction: Meaning of the output.

    Returns:
        Two tensors (B, ...) float32.

    Raises:
        ValueError: The prediction is unknown, or no image follows from it at pure noise (a = 0).
    """
    output, noisy = output.float(), noisy.float()
    if prediction == "v_prediction":
        return a * noisy - s * output, s * noisy + a * output
    if prediction == "flow":
        return noisy - s * output, noisy + a * output
    if prediction not in ("epsilon", "sample"):
        raise ValueError(f"prediction must be epsilon, v_prediction, sample or flow, not {prediction!r}")
    if (not isinstance(a, Tensor) and a == 0) or (isinstance(a, Tensor) and a.device.type == "cpu" and (a == 0).any()):
        raise ValueError(f"a model that predicts {prediction} predicts no image at pure noise; start below it")
    if prediction == "epsilon":
        return (noisy - s * output) / a, output
    return output, (noisy - a * output) / s


def eta_variance(a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor, eta: float = 1.0) -> Tensor:
    """The variance eta² s'² / s² (s² - (a / a')² s'²) of a step from (a, s) to (a', s').

    On a variance-preserving path it is DDIM's (arXiv 2010.02502, eq. 16): eta 1 is the posterior variance of DDPM
    (PAPER, β̃), eta 0 is deterministic. On a rectified flow eta 0 is Euler, and eta = noise_level / √2 is
    Flow-GRPO's sampler (arXiv 2505.05470) in the limit of small steps.

    Args:
        a: (T,), signal coefficients where the steps begin.
        s: (T,), noise coefficients where the steps begin.
        a_next: (T,), signal coefficients where the steps end.
        s_next: (T,), noise coefficients where the steps end.
        eta: In [0, 1].

    Returns:
        (T,).

    Raises:
        ValueError: `eta` is out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    return eta**2 * (s_next / s) ** 2 * (s**2 - (a / a_next * s_next) ** 2)


def cps_variance(a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor, level: float = 0.8) -> Tensor:
    """The variance s'² sin²(level π / 2) of coefficients-preserving sampling (arXiv 2509.05952), level in [0, 1].

    The other arguments, the result and the error are those of `eta_variance`.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"level must be in [0, 1], not {level}")
    return (s_next * math.sin(level * math.pi / 2)) ** 2


@dataclass(frozen=True)
class GaussianStep:
    """The distribution N(mean, variance I) of a step, and the predicted image.

    Attributes:
        mean: (B, ...) float32.
        variance: Variance of each dimension: a number, or a tensor that broadcasts to the mean. A step with variance 0
            is deterministic and has neither a density nor a KL divergence.
        clean: (B, ...) float32, x̂_0.
    """

    mean: Tensor
    variance: Coefficient
    clean: Tensor

    def sample(self, noise: Tensor | None) -> Tensor:
        """(B, ...): the mean plus the standard deviation times normal noise (B, ...); the mean without noise."""
        return self.mean if noise is None else self.mean + self.variance**0.5 * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (B,) float32 of values (B, ...), summed over all dimensions but the first.

        Published code often takes means over the D dimensions instead: divide by D to compare.

        Raises:
            ValueError: The step is deterministic.
        """
        deterministic = self.variance <= 0
        if deterministic.any() if isinstance(deterministic, Tensor) else deterministic:
            raise ValueError("a step with variance 0 has no log-probability; choose stochastic steps (eta above 0)")
        variance = torch.as_tensor(self.variance, dtype=torch.float32, device=self.mean.device)
        squared = (value.float() - self.mean).square()
        return -0.5 * (squared / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)


def gaussian_step(
    output: Tensor,
    noisy: Tensor,
    begin: tuple[Coefficient, Coefficient],
    a_next: Coefficient,
    kept: Coefficient,
    variance: Coefficient,
    prediction: Prediction,
) -> GaussianStep:
    """One step of the sampler.

    Args:
        output: (B, ...), the network's output.
        noisy: (B, ...), x_t.
        begin: (a, s) of x_t.
        a_next: a', the signal coefficient where the step ends.
        kept: `kept_noise(s', v)`, the coefficient of the old noise.
        variance: v in [0, s'²].
        prediction: Meaning of the output.
    """
    clean, noise = clean_and_noise(output, noisy, *begin, prediction)
    return GaussianStep(a_next * clean + kept * noise, variance, clean)


def kept_noise(s: float, variance: float) -> float:
    """√(s'² - v), the coefficient of the old noise; 0 where rounding makes the radicand negative."""
    return math.sqrt(max(s**2 - variance, 0.0))


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, variance: Tensor | float) -> Tensor:
    """KL(N(mean_p, variance I) || N(mean_q, variance I)) = ||mean_p - mean_q||² / (2 variance) (PAPER eq. 5).

    The difference and the sum are in float32, regardless of the precision of the means.

    Args:
        mean_p: (B, ...).
        mean_q: (B, ...).
        variance: Variance of each dimension: a number or a tensor that broadcasts to the means.

    Returns:
        (B,) float32, in nats, summed over all dimensions but the first.
    """
    squared = (mean_p.float() - mean_q.float()).square() / (2 * variance)
    return squared.flatten(1).sum(1)
