"""One denoising step as the distribution it is drawn from, p_θ(x_t | x_{t+1}, z), in closed form.

Samplers go down a strided grid of few timesteps: β of a step is then 1 - ᾱ / ᾱ_next, with ᾱ of the noisier and ᾱ_next
of the cleaner end, and not the β of the schedule that the model was trained with. Everything is computed in float32.
With classifier-free guidance, give the guided output. Predicted images are not clipped: a scheduler with `clip_sample`
or `thresholding` takes other steps.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]
SMALLEST = 1e-12
"""Variances up to this are a clamped zero: the smallest of a grid that ends before ᾱ = 1 are above 1e-6."""


@dataclass(frozen=True)
class Transition:
    """N(mean, variance I), and what the step makes of the image.

    Attributes:
        mean: (B, ...) float32.
        variance: Of every dimension; broadcasts to the mean.
        clean: (B, ...) float32, x̂_0, the image that the model predicts at this step.
    """

    mean: Tensor
    variance: Tensor
    clean: Tensor


def clean_and_noise(
    output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: Prediction = "epsilon"
) -> tuple[Tensor, Tensor]:
    """x̂_0 and ε of x = √ᾱ x̂_0 + √(1 - ᾱ) ε from what a model predicts.

    Args:
        output: (B, ...), the model's output: ε, v = √ᾱ ε - √(1 - ᾱ) x_0 (arXiv 2202.00512), or x_0 itself.
        noisy: (B, ...), the model's input x.
        alpha_bar: ᾱ in (0, 1), broadcasts to x.
        prediction: Which of the three it is.

    Raises:
        ValueError: It is none of them.
    """
    output, noisy, alpha_bar = output.float(), noisy.float(), alpha_bar.float()
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction == "epsilon":
        return (noisy - noise * output) / signal, output
    if prediction == "v_prediction":
        return signal * noisy - noise * output, signal * output + noise * noisy
    if prediction == "sample":
        return output, (noisy - signal * output) / noise
    raise ValueError(f"prediction must be epsilon, v_prediction or sample, not {prediction!r}")


def ddpm_variance(alpha_bar: Tensor, alpha_bar_next: Tensor) -> Tensor:
    """β̃ = (1 - ᾱ_next) / (1 - ᾱ) · β, the variance of q(x_next | x, x_0); zero for a step to ᾱ_next = 1."""
    alpha_bar, alpha_bar_next = alpha_bar.float(), alpha_bar_next.float()
    return (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)


def ddim_transition(
    output: Tensor,
    noisy: Tensor,
    alpha_bar: Tensor,
    alpha_bar_next: Tensor,
    prediction: Prediction = "epsilon",
    eta: float = 1.0,
) -> Transition:
    """The step of DDIM (arXiv 2010.02502, eq. 12 and 16).

    With eta = 1 it is the step of DDPM with the posterior's variance (PAPER eq. 1 to 3; arXiv 2006.11239, eq. 7).

    Args:
        output: (B, ...), the model's output.
        noisy: (B, ...), x_{t+1}.
        alpha_bar: ᾱ at x_{t+1}, broadcasts to it.
        alpha_bar_next: ᾱ at x_t, where the step leads to.
        prediction: What the model predicts.
        eta: Share of DDPM's noise, in [0, 1]. With 0 the step is deterministic and no distribution: its variance is
            zero, and a KL divergence has to be taken between steps with eta = 1 instead.

    Raises:
        ValueError: `eta` is out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    clean, noise = clean_and_noise(output, noisy, alpha_bar, prediction)
    variance = eta**2 * ddpm_variance(alpha_bar, alpha_bar_next)
    alpha_bar_next = alpha_bar_next.float()
    mean = alpha_bar_next.sqrt() * clean + (1 - alpha_bar_next - variance).clamp(min=0).sqrt() * noise
    return Transition(mean, variance, clean)


def kl_variances(variances: Tensor) -> Tensor:
    """The variances that the KL divergence of each step is measured with.

    A last step to ᾱ_next = 1 has variance zero (samplers clamp it to as little as 1e-20), and its KL would be infinite:
    it takes the variance of the step before.

    Args:
        variances: (T,) of the steps from noise to image, T at least 2.

    Raises:
        ValueError: Another step than the last has variance zero, as those of a deterministic sampler do.
    """
    if len(variances) < 2 or not (variances[:-1] > SMALLEST).all():
        raise ValueError(f"expected at least two steps, all but the last with a positive variance, got {variances}")
    used = variances.clone()
    if used[-1] <= SMALLEST:
        used[-1] = used[-2]
    return used
