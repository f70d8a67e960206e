"""From noise towards an image, step by step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ifb.diffusion.noise import INITIAL, gaussian
from t2ifb.diffusion.schedule import Index, Schedule

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
