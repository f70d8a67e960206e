"""The strided grid of timesteps that a sampler goes down, each of its steps in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2ifb.diffusion.transition import Prediction, Transition, ddim_transition, ddpm_variance, kl_variances


@dataclass(frozen=True)
class Schedule:
    """T steps from noise to image; step 0 begins at pure noise, step T - 1 ends at the image.

    Attributes:
        timesteps: (T,) int64, what the U-Net is told at each step, falling.
        alpha_bars: (T,) float32, ᾱ where each step begins.
        alpha_bars_next: (T,) float32, ᾱ where it leads to.
        prediction: What the U-Net predicts.
        eta: Share of DDPM's noise in [0, 1]; 0 is deterministic.
    """

    timesteps: Tensor
    alpha_bars: Tensor
    alpha_bars_next: Tensor
    prediction: Prediction
    eta: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def transition(self, output: Tensor, noisy: Tensor, index: int) -> Transition:
        """What the sampler does at a step: p(x_t | x_{t+1}, z), deterministic with eta 0.

        Args:
            output: (B, C, H, W), the U-Net's, guided if the sampler guides.
            noisy: (B, C, H, W), x_{t+1}.
            index: Of the step.
        """
        return self._transition(output, noisy, index, self.eta)

    def kl_transition(self, output: Tensor, noisy: Tensor, index: int) -> Transition:
        """The same as a distribution that a KL divergence can be taken of.

        A deterministic sampler's is DDPM's, and a last step without noise has the variance of the one before.
        """
        eta = self.eta or 1.0
        step = self._transition(output, noisy, index, eta)
        return Transition(step.mean, self.kl_variances[index].to(noisy.device), step.clean)

    def is_noisy(self, index: int) -> bool:
        """Whether a step adds noise."""
        return self.eta > 0 and float(self.alpha_bars_next[index]) < 1

    @cached_property
    def kl_variances(self) -> Tensor:
        """(T,) of the distributions that `kl_transition` gives."""
        return kl_variances((self.eta or 1.0) ** 2 * ddpm_variance(self.alpha_bars, self.alpha_bars_next))

    def _transition(self, output: Tensor, noisy: Tensor, index: int, eta: float) -> Transition:
        ends = (self.alpha_bars[index].to(noisy.device), self.alpha_bars_next[index].to(noisy.device))
        return ddim_transition(output, noisy, *ends, self.prediction, eta)


def ddim(config: Mapping[str, Any], num_inference_steps: int, eta: float = 1.0) -> Schedule:
    """The steps of `DDIMScheduler` (arXiv 2010.02502) on a pipeline's noise schedule.

    Args:
        config: Of the pipeline's scheduler, whichever it is.
        num_inference_steps: T.
        eta: Share of DDPM's noise.

    Raises:
        ValueError: The steps would not be those of the closed form, or a number is out of range.
    """
    from diffusers import DDIMScheduler

    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    scheduler: Any = DDIMScheduler.from_config(_settings(config))
    grid = _grid(scheduler, num_inference_steps)
    after = grid - scheduler.config.num_train_timesteps // num_inference_steps
    return _schedule(scheduler, grid, after, scheduler.final_alpha_cumprod, eta)


def ddpm(config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """The steps of `DDPMScheduler` (arXiv 2006.11239) with the posterior's variance β̃; arguments as of `ddim`."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(_settings(config))
    if scheduler.config.variance_type not in ("fixed_small", "fixed_small_log"):
        raise ValueError(
            f"variance_type={scheduler.config.variance_type} is not supported, only the posterior's (fixed_small)"
        )
    grid = _grid(scheduler, num_inference_steps)
    return _schedule(scheduler, grid, torch.cat([grid[1:], grid.new_tensor([-1])]), scheduler.one, 1.0)


def own(config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """The pipeline's own scheduler, if its steps have a closed form; arguments as of `ddim`.

    Raises:
        ValueError: It is a multistep scheduler, as Stable Diffusion v1.5's PNDM is, or another without closed form.
    """
    name = config.get("_class_name")
    if name == "DDIMScheduler":
        return ddim(config, num_inference_steps)
    if name == "DDPMScheduler":
        return ddpm(config, num_inference_steps)
    raise ValueError(
        f"the pipeline's own scheduler is {name}, whose steps depend on earlier ones or have no Gaussian in closed "
        "form; give scheduler=ddim or scheduler=ddpm, which take over its noise schedule"
    )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration; one that has no word for clipping does not clip, whatever another's default is."""
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
    if settings.get("rescale_betas_zero_snr"):
        raise ValueError("the scheduler has rescale_betas_zero_snr=true: at its first step no image can be predicted")
    if not 2 <= steps <= settings.num_train_timesteps:
        raise ValueError(f"num_inference_steps must be from 2 to {settings.num_train_timesteps}, not {steps}")
    scheduler.set_timesteps(steps)
    timesteps: Tensor = scheduler.timesteps.long().cpu()
    return timesteps


def _schedule(scheduler: Any, grid: Tensor, after: Tensor, last: Tensor, eta: float) -> Schedule:
    """The steps from each timestep of `grid` (T,) to that of `after` (T,), where below 0 is the image with ᾱ `last`."""
    bars = scheduler.alphas_cumprod.float()
    nexts = torch.where(after >= 0, bars[after.clamp(min=0)], last.float())
    return Schedule(grid, bars[grid], nexts, scheduler.config.prediction_type, eta)
