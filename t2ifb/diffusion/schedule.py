"""The grid of noise levels that a sampler goes down, with the variance of each step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from t2ifb.diffusion.path import Coefficient, GaussianStep, Prediction, clean_and_noise, eta_variance, kept_noise

VarianceRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Gives the steps' variances (T,) for a, s, a', s' (T,) each, such as `eta_variance`."""
Index = int | Sequence[int]
"""A step, counted from 0; or the step of each of B samples."""
SMALLEST = 1e-12
"""Variances up to this are taken as zero: on a grid that ends at a noisy level the smallest are above 1e-6."""


@dataclass(frozen=True)
class Schedule:
    """T steps from noise to image on a Gaussian path; step 0 begins at pure noise, step T - 1 ends at the image.

    Attributes:
        timesteps: (T,), what the network is given at each step, falling: int64 on a variance-preserving path, float32
            on a rectified flow.
        a: (T,) float64, signal coefficient where each step begins.
        s: (T,) float64, noise coefficient where each step begins.
        a_next: (T,) float64, signal coefficient where each step ends.
        s_next: (T,) float64, noise coefficient where each step ends.
        prediction: What the network predicts.
        variance: The sampler's rule for the variance of a step.
    """

    timesteps: Tensor
    a: Tensor
    s: Tensor
    a_next: Tensor
    s_next: Tensor
    prediction: Prediction
    variance: VarianceRule = eta_variance

    def __post_init__(self) -> None:
        largest = (self.s_next**2).tolist()
        if wrong := [v for v, most in zip(self.variances, largest, strict=True) if not 0 <= v <= most * (1 + 1e-6)]:
            raise ValueError(f"the variance of a step must be from 0 to s'², the rule gives {wrong[:3]}")

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def times(self) -> list[float]:
        """The timesteps as numbers."""
        return self.timesteps.tolist()

    @cached_property
    def variances(self) -> list[float]:
        """The sampler's variance of each step; 0 where it is deterministic."""
        return self._under(self.variance)

    @cached_property
    def kl_variances(self) -> list[float]:
        """The variance by which each step's KL divergence is measured, all positive.

        A deterministic step has none: a deterministic sampler takes those of DDPM (eta 1), and a last step without
        noise that of the step before.

        Raises:
            ValueError: Another step than the last is deterministic, though the sampler is not.
        """
        *before, last = self._stochastic
        if not all(before):
            raise ValueError(f"expected stochastic steps before the last, got the variances {self._stochastic}")
        return [*before, last or before[-1]]

    def step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The distribution that the sampler draws x' from at a step: p(x' | x, z).

        Args:
            output: (B, C, H, W), the network's, guided if the sampler guides.
            noisy: (B, C, H, W), x.
            index: Of the step; of each sample's step if they differ.
        """
        return self._gaussian(output, noisy, index, self.variances)

    def kl_step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The distribution that a step's KL divergence is taken of: `step` with a positive variance.

        Of a deterministic sampler it is the step of DDPM (eta 1).
        """
        step = self._gaussian(output, noisy, index, self._stochastic)
        return GaussianStep(step.mean, at(self.kl_variances, index, noisy), step.clean)

    def level(self, index: Index, like: Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, s) where a step begins, or where each sample's step begins, for latents such as `like`."""
        return at(self._levels[0], index, like), at(self._levels[1], index, like)

    def time(self, index: Index, device: torch.device) -> float | Tensor:
        """What the network is given at a step: one time, or (B,) if the samples' steps differ.

        On a GPU it is a tensor there: all times are copied once.
        """
        if device.type == "cpu" and isinstance(index, int):
            return self.times[index]
        if device not in self._times_on:
            self._times_on[device] = self.timesteps.to(device)
        return self._times_on[device][index if isinstance(index, int) else list(index)]

    @cached_property
    def _times_on(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _levels(self) -> tuple[list[float], ...]:
        return tuple(each.tolist() for each in (self.a, self.s, self.a_next, self.s_next))

    def _gaussian(self, output: Tensor, noisy: Tensor, index: Index, variances: Sequence[float]) -> GaussianStep:
        a, s, a_next, s_next = self._levels
        kept = [kept_noise(level, variance) for level, variance in zip(s_next, variances, strict=True)]
        clean, noise = clean_and_noise(output, noisy, at(a, index, noisy), at(s, index, noisy), self.prediction)
        mean = at(a_next, index, noisy) * clean + at(kept, index, noisy) * noise
        return GaussianStep(mean, at(variances, index, noisy), clean)

    @cached_property
    def _stochastic(self) -> list[float]:
        return self.variances if any(self.variances) else self._under(eta_variance)

    def _under(self, rule: VarianceRule) -> list[float]:
        found = rule(self.a, self.s, self.a_next, self.s_next)
        return torch.where(found.abs() <= SMALLEST, 0.0, found).tolist()


def at(values: Sequence[float], index: Index, like: Tensor) -> Coefficient:
    """The value of a step as a number; of each sample's step as a tensor that broadcasts to `like` (B, ...)."""
    if isinstance(index, int):
        return values[index]
    return torch.tensor([values[i] for i in index], device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def ddim(config: Mapping[str, Any], num_inference_steps: int, eta: float = 1.0) -> Schedule:
    """The steps of `DDIMScheduler` (arXiv 2010.02502) on a pipeline's noise schedule.

    Args:
        config: Of the pipeline's scheduler, whichever it is.
        num_inference_steps: T.
        eta: Share of DDPM's noise in [0, 1]; 0 is deterministic.

    Raises:
        ValueError: The steps would not be those of the closed form, or a number is out of range.
    """
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(_settings(config))
    grid = _grid(scheduler, num_inference_steps)
    after = grid - scheduler.config.num_train_timesteps // num_inference_steps
    return _preserving(scheduler, grid, after, scheduler.final_alpha_cumprod, partial(eta_variance, eta=eta))


def ddpm(config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """The steps of `DDPMScheduler` (arXiv 2006.11239) with the posterior's variance β̃; arguments as of `ddim`."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(_settings(config))
    if scheduler.config.variance_type not in ("fixed_small", "fixed_small_log"):
        raise ValueError(
            f"variance_type={scheduler.config.variance_type} is not supported, only the posterior's (fixed_small)"
        )
    grid = _grid(scheduler, num_inference_steps)
    after = torch.cat([grid[1:], grid.new_tensor([-1])])
    return _preserving(scheduler, grid, after, scheduler.one, eta_variance)


def flow(
    config: Mapping[str, Any], num_inference_steps: int, variance: VarianceRule | None = None, mu: float | None = None
) -> Schedule:
    """The sigmas of `FlowMatchEulerDiscreteScheduler` (arXiv 2403.03206) on a pipeline's noise schedule.

    Args:
        config: Of the pipeline's scheduler.
        num_inference_steps: T.
        variance: Rule for the variance of a step; by default the steps are deterministic, which is Euler's method.
        mu: Shift of the schedule, where the configuration has `use_dynamic_shifting`.

    Raises:
        ValueError: The pipeline is no rectified flow, or a number is out of range.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if (name := config.get("_class_name")) not in (None, "FlowMatchEulerDiscreteScheduler"):
        raise ValueError(f"the pipeline's scheduler is {name}, of no rectified flow; give scheduler=ddim")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    _check_steps(num_inference_steps, scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(num_inference_steps, mu=mu)
    sigmas = scheduler.sigmas.double().cpu()
    begin, end = sigmas[:-1], sigmas[1:]
    rule = partial(eta_variance, eta=0.0) if variance is None else variance
    return Schedule(scheduler.timesteps.float().cpu(), 1 - begin, begin, 1 - end, end, "flow", rule)


def own(config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """The pipeline's own scheduler, if its steps have a closed form; arguments as of `ddim`.

    Raises:
        ValueError: It is a multistep scheduler, as Stable Diffusion v1.5's PNDM is, or another without closed form.
    """
    makers = {"DDIMScheduler": ddim, "DDPMScheduler": ddpm, "FlowMatchEulerDiscreteScheduler": flow}
    name = config.get("_class_name")
    if name not in makers:
        raise ValueError(
            f"the pipeline's own scheduler is {name}, whose steps depend on earlier ones or have no Gaussian in closed "
            "form; give scheduler=ddim or scheduler=ddpm, which take over its noise schedule"
        )
    return makers[name](config, num_inference_steps)  # type: ignore[operator]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration; one that does not mention clipping does not clip, whatever another's default is."""
    clips = config.get("_class_name") in ("DDIMScheduler", "DDPMScheduler", None)
    return {**({} if clips else {"clip_sample": False}), **config}


def _grid(scheduler: Any, steps: int) -> Tensor:
    """The timesteps (T,) of a scheduler of diffusers.

    Raises:
        ValueError: It clips or thresholds the predicted images, or there are too few or too many steps.
    """
    settings = scheduler.config
    for name in ("clip_sample", "thresholding"):
        if settings.get(name):
            raise ValueError(f"the scheduler has {name}=true, and its steps are not Gaussians in closed form")
    if settings.get("rescale_betas_zero_snr") and settings.prediction_type != "v_prediction":
        raise ValueError(
            "the scheduler has rescale_betas_zero_snr=true: at its first step no image follows from "
            f"prediction_type={settings.prediction_type}, only from v_prediction"
        )
    _check_steps(steps, settings.num_train_timesteps)
    scheduler.set_timesteps(steps)
    timesteps: Tensor = scheduler.timesteps.long().cpu()
    return timesteps


def _check_steps(steps: int, most: int) -> None:
    if not 2 <= steps <= most:
        raise ValueError(f"num_inference_steps must be from 2 to {most}, not {steps}")


def _preserving(scheduler: Any, grid: Tensor, after: Tensor, last: Tensor, rule: VarianceRule) -> Schedule:
    """The steps from each timestep of `grid` (T,) to that of `after` (T,), where below 0 is the image with ᾱ `last`."""
    bars = scheduler.alphas_cumprod.double()
    begin, end = bars[grid], torch.where(after >= 0, bars[after.clamp(min=0)], last.double())
    ends = begin.sqrt(), (1 - begin).sqrt(), end.sqrt(), (1 - end).sqrt()
    return Schedule(grid, *ends, scheduler.config.prediction_type, rule)
