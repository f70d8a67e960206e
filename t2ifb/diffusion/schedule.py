"""The noise levels of a sampler's steps, with the variance of each step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from t2ifb.diffusion.path import (
    Coefficient,
    GaussianPath,
    GaussianStep,
    Prediction,
    eta_variance,
    gaussian_kl,
    gaussian_step,
    kept_noise,
)

VarianceRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Gives the steps' variances (T,) for a, s, a', s' (T,) each, such as `eta_variance`."""
Index = int | Sequence[int]
"""A step, counted from 0; or the step of each of B samples."""
SMALLEST = 1e-12
"""Variances up to this count as zero: where the last step ends at a noisy level, the smallest are above 1e-6."""


@dataclass(frozen=True)
class Schedule:
    """T steps from noise to image on a Gaussian path; step 0 begins at pure noise, step T - 1 ends at the image.

    Coefficients of one step are numbers. Those of samples at different steps are gathered from tables on the device,
    which are copied there once.

    Attributes:
        timesteps: (T,), falling training times of the network: int64 on a variance-preserving path, float32 on a
            rectified flow.
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
    def variances(self) -> list[float]:
        """The sampler's variance of each step; 0 where it is deterministic."""
        return self._under(self.variance)

    def noisy_within(self, first: int, last: int) -> "Schedule":
        """The same steps, but deterministic before step `first` and after step `last`."""
        inside = (torch.arange(len(self)) >= first) & (torch.arange(len(self)) <= last)

        def rule(*levels: Tensor) -> Tensor:
            return torch.where(inside, self.variance(*levels), 0.0)

        return replace(self, variance=rule)

    def step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The distribution of the sampler's x' at a step: p(x' | x, z).

        Args:
            output: (B, C, H, W), the network's output, guided if the sampler guides.
            noisy: (B, C, H, W), x.
            index: The step, or the step of each sample.
        """
        return self._gaussian(output, noisy, index, "variance")

    def kl_step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The distribution in a step's KL divergence: `step` with a positive variance.

        A deterministic sampler has the steps of DDPM (eta 1), and a last step without noise has the variance of the
        step before.

        Raises:
            ValueError: Another step than the last is deterministic, though the sampler is not.
        """
        self._check_stochastic()
        step = self._gaussian(output, noisy, index, "stochastic_variance")
        return GaussianStep(step.mean, self._at(index, noisy)["kl_variance"], step.clean)

    def kl(self, output: Tensor, reference: Tensor, noisy: Tensor, index: Index) -> Tensor:
        """KL divergence (B,) float32, in nats, of the `kl_step` with one output to that with another.

        Args:
            output: (B, C, H, W), the policy's output.
            reference: (B, C, H, W), the base model's output on the same latents.
            noisy: (B, C, H, W), the latents where the step begins.
            index: The step, or the step of each sample.
        """
        ours, theirs = (self.kl_step(each, noisy, index) for each in (output, reference))
        return gaussian_kl(ours.mean, theirs.mean, ours.variance)

    def level(self, index: Index, like: Tensor) -> tuple[Coefficient, Coefficient]:
        """(a, s) where a step begins, or where each sample's step begins, for latents such as `like`."""
        found = self._at(index, like)
        return found["a"], found["s"]

    def time(self, index: Index, like: Tensor) -> Tensor:
        """Training times (B,) of a step, or of each sample's step, on the device of latents `like` (B, ...)."""
        if isinstance(index, int):
            return self._on(like.device, "times", self.timesteps)[index].expand(len(like))
        return self._gathered(tuple(index), like.device)[0]

    @cached_property
    def _numbers(self) -> dict[str, list[float]]:
        """Coefficients of each step by name."""
        numbers = {name: getattr(self, name).tolist() for name in ("a", "s", "a_next", "s_next")}
        for name, values in (("variance", self.variances), ("stochastic_variance", self._stochastic)):
            kept = [kept_noise(s, variance) for s, variance in zip(numbers["s_next"], values, strict=True)]
            numbers |= {name: values, f"kept_{name}": kept}
        *before, last = self._stochastic
        return numbers | {"kl_variance": [*before, last or before[-1]]}

    @cached_property
    def _copies(self) -> dict[Any, Any]:
        """Tensors on a device, copied there once: a copy makes the CPU wait for the GPU."""
        return {}

    def _on(self, device: torch.device, name: str, values: Tensor) -> Tensor:
        if (device, name) not in self._copies:
            self._copies[device, name] = values.to(device)
        copy: Tensor = self._copies[device, name]
        return copy

    def _gathered(self, index: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
        """Times (B,) and coefficients (K, B) float32 of each sample's step on a device; the latest are kept."""
        if self._copies.get("index") != (index, device):
            rows = torch.tensor(index).to(device)
            table = torch.tensor(list(self._numbers.values()))
            both = self._on(device, "times", self.timesteps)[rows], self._on(device, "table", table)[:, rows]
            self._copies.update(index=(index, device), gathered=both)
        gathered: tuple[Tensor, Tensor] = self._copies["gathered"]
        return gathered

    def _at(self, index: Index, like: Tensor) -> Mapping[str, Coefficient]:
        """Coefficients of a step as numbers; of each sample's step as tensors that broadcast to `like` (B, ...)."""
        if isinstance(index, int):
            return {name: values[index] for name, values in self._numbers.items()}
        gathered = self._gathered(tuple(index), like.device)[1].reshape(len(self._numbers), -1, *[1] * (like.ndim - 1))
        return dict(zip(self._numbers, gathered, strict=True))

    def _gaussian(self, output: Tensor, noisy: Tensor, index: Index, variance: str) -> GaussianStep:
        at = self._at(index, noisy)
        begin, kept = (at["a"], at["s"]), at[f"kept_{variance}"]
        return gaussian_step(output, noisy, begin, at["a_next"], kept, at[variance], self.prediction)

    @cached_property
    def _stochastic(self) -> list[float]:
        return self.variances if any(self.variances) else self._under(eta_variance)

    def _check_stochastic(self) -> None:
        if not all(self._stochastic[:-1]):
            raise ValueError(f"expected stochastic steps before the last, got the variances {self._stochastic}")

    def _under(self, rule: VarianceRule) -> list[float]:
        found = rule(self.a, self.s, self.a_next, self.s_next)
        return torch.where(found.abs() <= SMALLEST, 0.0, found).tolist()


def ddim(path: GaussianPath, num_inference_steps: int, eta: float = 1.0) -> Schedule:
    """The steps of `DDIMScheduler` (arXiv 2010.02502) on a model's path.

    Args:
        path: Variance-preserving path; the class of its scheduler does not matter.
        num_inference_steps: T.
        eta: Share of DDPM's noise in [0, 1]; 0 is deterministic.

    Raises:
        ValueError: The steps have no closed form, or a number is out of range.
    """
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler.from_config(_settings(path))
    grid = _grid(scheduler, path, num_inference_steps)
    after = grid - scheduler.config.num_train_timesteps // num_inference_steps
    last = (1.0, 0.0) if scheduler.config.set_alpha_to_one else (float(path.a[0]), float(path.s[0]))
    return _preserving(path, grid, after, last, partial(eta_variance, eta=eta))


def ddpm(path: GaussianPath, num_inference_steps: int) -> Schedule:
    """The steps of `DDPMScheduler` (arXiv 2006.11239) with the posterior's variance β̃; arguments as in `ddim`."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler.from_config(_settings(path))
    if scheduler.config.variance_type not in ("fixed_small", "fixed_small_log"):
        raise ValueError(
            f"variance_type={scheduler.config.variance_type} is not supported, only the posterior's (fixed_small)"
        )
    grid = _grid(scheduler, path, num_inference_steps)
    after = torch.cat([grid[1:], grid.new_tensor([-1])])
    return _preserving(path, grid, after, (1.0, 0.0), eta_variance)


def flow(
    path: GaussianPath, num_inference_steps: int, variance: VarianceRule | None = None, mu: float | None = None
) -> Schedule:
    """The sigmas of `FlowMatchEulerDiscreteScheduler` (arXiv 2403.03206) on a model's path.

    Args:
        path: Rectified flow.
        num_inference_steps: T.
        variance: Rule for the variance of a step; by default the steps are deterministic, which is Euler's method.
        mu: Shift of the schedule, where the scheduler's configuration has `use_dynamic_shifting`.

    Raises:
        ValueError: The path is no rectified flow, or a number is out of range.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if path.prediction != "flow":
        name = path.scheduler.get("_class_name")
        raise ValueError(f"the pipeline's scheduler is {name}, not that of a rectified flow; give schedule=ddim")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(path.scheduler))
    _check_steps(num_inference_steps, scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(num_inference_steps, mu=mu)
    sigmas = scheduler.sigmas.double().cpu()
    begin, end = sigmas[:-1], sigmas[1:]
    rule = partial(eta_variance, eta=0.0) if variance is None else variance
    return Schedule(scheduler.timesteps.float().cpu(), 1 - begin, begin, 1 - end, end, "flow", rule)


def own(path: GaussianPath, num_inference_steps: int) -> Schedule:
    """The pipeline's own scheduler, if its steps have a closed form; arguments as in `ddim`.

    Raises:
        ValueError: It is a multistep scheduler, as Stable Diffusion v1.5's PNDM is, or another without closed form.
    """
    makers: dict[str, Callable[[GaussianPath, int], Schedule]] = {
        "DDIMScheduler": ddim,
        "DDPMScheduler": ddpm,
        "FlowMatchEulerDiscreteScheduler": flow,
    }
    name = str(path.scheduler.get("_class_name"))
    if name not in makers:
        raise ValueError(
            f"the pipeline's own scheduler is {name}, whose steps depend on earlier ones or have no Gaussian in closed "
            "form; give schedule=ddim or schedule=ddpm, which use its noise schedule"
        )
    return makers[name](path, num_inference_steps)


def _settings(path: GaussianPath) -> dict[str, Any]:
    """A scheduler's configuration for another scheduler. Clipping is on only if the configuration says so."""
    clips = path.scheduler.get("_class_name") in ("DDIMScheduler", "DDPMScheduler", None)
    return {**({} if clips else {"clip_sample": False}), **path.scheduler}


def _grid(scheduler: Any, path: GaussianPath, steps: int) -> Tensor:
    """The timesteps (T,) of a scheduler of diffusers.

    Raises:
        ValueError: The path is a rectified flow, the scheduler clips or thresholds the predicted images, or the number
            of steps is out of range.
    """
    settings = scheduler.config
    if path.prediction == "flow":
        raise ValueError("the model is a rectified flow, which this scheduler cannot sample; give the flow scheduler")
    for name in ("clip_sample", "thresholding"):
        if settings.get(name):
            raise ValueError(f"the scheduler has {name}=true, and its steps are not Gaussians in closed form")
    if settings.get("rescale_betas_zero_snr") and path.prediction != "v_prediction":
        raise ValueError(
            "the scheduler has rescale_betas_zero_snr=true: at its first step no image follows from "
            f"prediction_type={path.prediction}, only from v_prediction"
        )
    _check_steps(steps, settings.num_train_timesteps)
    scheduler.set_timesteps(steps)
    timesteps: Tensor = scheduler.timesteps.long().cpu()
    return timesteps


def _check_steps(steps: int, most: int) -> None:
    if not 2 <= steps <= most:
        raise ValueError(f"num_inference_steps must be from 2 to {most}, not {steps}")


def _preserving(
    path: GaussianPath, grid: Tensor, after: Tensor, last: tuple[float, float], rule: VarianceRule
) -> Schedule:
    """Steps from each timestep of `grid` (T,) to that of `after` (T,). A negative one is the image, (a, s) = `last`."""
    a_next, s_next = (
        torch.where(after >= 0, values[after.clamp(min=0)], end)
        for values, end in zip((path.a, path.s), last, strict=True)
    )
    return Schedule(grid, path.a[grid], path.s[grid], a_next, s_next, path.prediction, rule)
