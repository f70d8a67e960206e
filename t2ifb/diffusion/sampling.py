"""Sampling from a text-to-image model: schedule, number of steps, guidance, and rollouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from t2ifb.diffusion.model import Guidance, TextToImageModel, Unconditional
from t2ifb.diffusion.schedule import Index, Schedule, ddim
from t2ifb.utils.random_streams import INITIAL, gaussian

Denoise = Callable[[Tensor, Index], Tensor]
"""The denoiser's output (B, C, H, W), guided or not, for latents (B, C, H, W) at a step."""


class Rollout:
    """A batch of trajectories down a schedule; the noise of each is a function of its key.

    `to` calls the denoiser itself; `take` and `follow` do one step with a given output. The noise of all steps is drawn
    and copied to the device at the first step that needs it, because each copy makes the CPU wait for the GPU.

    Attributes:
        index: Next step, from 0 to T.
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
        """Begin at pure noise, or continue an earlier rollout with these keys.

        Args:
            schedule: The steps.
            keys: B tuples of whole numbers. The noise of a sample is a function of its key.
            shape: (C, H, W) of the latents.
            device: Device of the latents.
            index: Next step.
            latents: (B, C, H, W), where that step begins; by default pure noise.
        """
        self.schedule, self.keys, self.shape, self.device = schedule, list(keys), tuple(shape), torch.device(device)
        self.index = index
        self._noise: dict[int, Tensor] = {}
        self.latents = gaussian(self.keys, INITIAL, self.shape).to(self.device) if latents is None else latents

    @torch.no_grad()
    def to(self, index: int, denoise: Denoise) -> Tensor:
        """Advance to the beginning of step `index` and return the latents there.

        Raises:
            ValueError: The rollout is beyond that step, or the step is beyond the schedule.
        """
        if not self.index <= index <= len(self.schedule):
            raise ValueError(f"cannot go to step {index} from step {self.index} of {len(self.schedule)}")
        while self.index < index:
            self.take(denoise(self.latents, self.index))
        return self.latents

    @torch.no_grad()
    def take(self, output: Tensor) -> None:
        """Do one step with the denoiser's output, without gradient."""
        self.follow(output.detach())

    def follow(self, output: Tensor) -> None:
        """Do one step through which gradients reach the output and the latents before it."""
        step = self.schedule.step(output, self.latents, self.index)
        self.latents = step.sample(self._noise_at(self.index) if step.variance else None)
        self.index += 1

    def _noise_at(self, index: int) -> Tensor:
        """Noise (B, C, H, W) of a step."""
        if index not in self._noise:
            steps = [step for step in range(index, len(self.schedule)) if self.schedule.variances[step]]
            drawn = torch.stack([gaussian(self.keys, step + 1, self.shape) for step in steps]).to(self.device)
            self._noise = dict(zip(steps, drawn, strict=True))
        return self._noise[index]


@dataclass(frozen=True)
class Sampler:
    """Settings of a rollout.

    Attributes:
        num_inference_steps: T.
        guidance_scale: w of classifier-free guidance; 1 is none.
        schedule: Builds the steps from the model's path and T.
        unconditional: `grad`, `detached` or `reference`: how the unconditional branch of guidance is computed, see
            `Guidance`.
    """

    num_inference_steps: int = 40
    guidance_scale: float = 1.0
    schedule: Callable[..., Schedule] = ddim
    unconditional: Unconditional = "grad"

    def __post_init__(self) -> None:
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale must be at least 1, not {self.guidance_scale}; 1 is no guidance")
        if self.unconditional not in get_args(Unconditional):
            raise ValueError(f"unconditional must be grad, detached or reference, not {self.unconditional!r}")

    @property
    def network_evaluations(self) -> int:
        """Evaluations of the denoiser per image: T without guidance, 2 T with it, for its two branches."""
        return self.num_inference_steps * (1 if self.guidance_scale == 1 else 2)

    def schedule_of(self, model: TextToImageModel) -> Schedule:
        """The T steps on a model's path."""
        return self.schedule(model.path, self.num_inference_steps)

    def denoiser(self, model: TextToImageModel, schedule: Schedule, prompts: Sequence[str]) -> Denoise:
        """The guided denoiser for B prompts, as a function of latents and step."""
        count, guidance = len(prompts), None
        if self.guidance_scale == 1:
            conditioning = model.encode(prompts)
        else:  # encoded together: each copy to a GPU makes the CPU wait
            both = model.encode([*[""] * count, *prompts])
            guidance = Guidance(both.rows(slice(count)), self.guidance_scale, self.unconditional)
            conditioning = both.rows(slice(count, None))

        def denoise(latents: Tensor, index: Index) -> Tensor:
            return model.predict(latents, schedule.time(index, latents), conditioning, guidance)

        return denoise


@torch.no_grad()
def generate(
    model: TextToImageModel,
    sampler: Sampler,
    prompts: Sequence[str],
    keys: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> Iterator[Tensor]:
    """Draw an image for each prompt, in batches.

    Args:
        model: The model, with its adapters as they are.
        sampler: Settings of the rollouts.
        prompts: N strings.
        keys: N tuples of whole numbers; the noise of an image depends on its key alone.
        batch_size: Images per batch.

    Yields:
        (b, 3, H, W) uint8 on the CPU, N images in all.
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
