"""How images are drawn from a diffusion model: schedule, number of steps, guidance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from t2ifb.diffusion.model import DiffusionModel, Unconditional
from t2ifb.diffusion.rollout import Denoise, Rollout
from t2ifb.diffusion.schedule import Index, Schedule, ddim


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
