"""How images are drawn from a diffusion model: schedule, number of steps, guidance, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from t2ifb.diffusion.model import DiffusionModel, Unconditional
from t2ifb.diffusion.schedule import Index, Schedule, ddim
from t2ifb.utils.random_streams import INITIAL, gaussian

Denoise = Callable[[Tensor, Index], Tensor]
"""The denoiser's output (B, C, H, W), guided or not, for latents (B, C, H, W) at a step."""


class Rollout:
    """A batch of trajectories down a schedule; the noise of each is a function of its key.

    `to` calls the denoiser itself; `take` and `follow` do one step with an output that is known already.

    Attributes:
        index: Of the step that comes next, from 0 to T.
        latents: (B, C, H, W) float32, where that step begins; the predicted image after the last.
    """

    def __init__(
        self,
        schedule: Schedule,
        keys: Sequence[Sequence[int]],
        shape: Sequence[int],
        device: torch.device | str,
        index: int = 0,
        latents: Tensor | None = None,
    ) -> None:
        """Begin at pure noise, or where an earlier rollout of these keys was left.

        Args:
            schedule: The steps.
            keys: B tuples of whole numbers that the noise is drawn by.
            shape: (C, H, W) of the latents.
            device: Where they are kept.
            index: Of the step that comes next.
            latents: (B, C, H, W), where that step begins; by default pure noise.
        """
        self.schedule, self.keys, self.shape, self.device = schedule, list(keys), tuple(shape), torch.device(device)
        self.index = index
        self.latents = gaussian(self.keys, INITIAL, self.shape).to(self.device) if latents is None else latents

    @torch.no_grad()
    def to(self, index: int, denoise: Denoise) -> Tensor:
        """Go on to where step `index` begins, and give the latents there.

        Raises:
            ValueError: The trajectories are beyond it, or it is beyond the schedule.
        """
        if not self.index <= index <= len(self.schedule):
            raise ValueError(f"cannot go to step {index} from step {self.index} of {len(self.schedule)}")
        while self.index < index:
            self.take(denoise(self.latents, self.index))
        return self.latents

    @torch.no_grad()
    def take(self, output: Tensor) -> None:
        """Take one step with the denoiser's output at the current one, without gradient."""
        self.follow(output.detach())

    def follow(self, output: Tensor) -> None:
        """Do one step that gradients can be followed through, to the output and to the latents before it."""
        step = self.schedule.step(output, self.latents, self.index)
        noise = gaussian(self.keys, self.index + 1, self.shape).to(self.device) if step.variance else None
        self.latents = step.sample(noise)
        self.index += 1


@dataclass(frozen=True)
class Sampler:
    """What a rollout is made with.

    Attributes:
        num_inference_steps: T.
        guidance_scale: w of classifier-free guidance; 1 is none.
        schedule: Makes the steps from the pipeline's noise schedule and T.
        unconditional: `grad` or `detached`: whether gradients flow through the unconditional branch of guidance, see
            `DiffusionModel.predict`. No guidance has no such branch.
    """

    num_inference_steps: int = 40
    guidance_scale: float = 1.0
    schedule: Callable[..., Schedule] = ddim
    unconditional: Unconditional = "grad"

    def __post_init__(self) -> None:
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale must be at least 1, not {self.guidance_scale}; 1 is no guidance")
        if self.unconditional not in get_args(Unconditional):
            raise ValueError(f"unconditional must be grad or detached, not {self.unconditional!r}")

    def schedule_of(self, model: DiffusionModel) -> Schedule:
        """The T steps on a model's noise schedule."""
        return self.schedule(model.scheduler_config, self.num_inference_steps)

    def denoiser(self, model: DiffusionModel, schedule: Schedule, prompts: Sequence[str]) -> Denoise:
        """The guided U-Net for some prompts, as a function of latents and step."""
        states = model.encode_prompts(prompts, guided=self.guidance_scale != 1)

        def denoise(latents: Tensor, index: Index) -> Tensor:
            time = schedule.time(index, latents.device)
            return model.predict(latents, time, states, self.guidance_scale, self.unconditional)

        return denoise


@torch.no_grad()
def generate(
    model: DiffusionModel, sampler: Sampler, prompts: Sequence[str], keys: Sequence[Sequence[int]], batch_size: int = 32
) -> Iterator[Tensor]:
    """Draw an image for each prompt, in batches.

    Args:
        model: With the adapters that are on.
        sampler: How.
        prompts: N strings.
        keys: N tuples of whole numbers; the noise of an image depends on its key alone.
        batch_size: Images at a time.

    Yields:
        (b, 3, H, W) uint8 on the CPU, until there are N.
    """
    schedule = sampler.schedule_of(model)
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        rollout = Rollout(schedule, keys[some], model.latent_shape, model.device)
        latents = rollout.to(len(schedule), sampler.denoiser(model, schedule, prompts[some]))
        yield to_bytes(model.decode(latents))


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8 on the CPU, rounded."""
    return (images * 255).round().to(torch.uint8).cpu()
