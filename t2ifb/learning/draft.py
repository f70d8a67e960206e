"""DRaFT: the gradient of the reward through the last steps of the chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.learning.tuning_module import TuningModule

DEPTH_STREAM = 0x0DF4
"""Keeps the draws of how many steps apart from others with the same seed."""


@dataclass(frozen=True)
class DRaFT:
    """Direct reward fine-tuning (arXiv 2309.17400): the finished image's reward, back-propagated through the sampler.

    A rollout goes down the schedule without gradient to its last K steps, DRaFT-K, and through those with it; the
    image that comes out is decoded and rewarded. To the reward's gradient comes that of beta times the sum of the K
    steps' KL divergences to the base model, each at the latents as they are: it is not followed into earlier steps, for
    which the U-Net is called once more at each step but the first, unless beta is 0.

    Attributes:
        last_steps: K; all that the U-Net keeps for the backward pass is in memory K times, with beta nearly twice as
            often (gradient checkpointing keeps only the latents).
        truncation: `fixed` takes K steps every time; `random` draws how many uniformly from 1 to K for each update, as
            AlignProp does (arXiv 2310.03739).
    """

    needs_gradient: ClassVar[bool] = True
    last_steps: int = 1
    truncation: str = "fixed"

    def __post_init__(self) -> None:
        if self.truncation not in ("fixed", "random"):
            raise ValueError(f"truncation must be fixed or random, not {self.truncation!r}")

    def steps_with_kl(self, steps: int) -> Sequence[int]:
        """The last K.

        Raises:
            ValueError: There are not so many.
        """
        if not 1 <= self.last_steps <= steps:
            raise ValueError(f"last_steps={self.last_steps} must be from 1 to the {steps} steps of a rollout")
        return range(steps - self.last_steps, steps)

    def depth(self, seed: int, position: int) -> int:
        """How many steps an update goes back: a function of (seed, position)."""
        if self.truncation == "fixed":
            return self.last_steps
        return 1 + int(np.random.default_rng([DEPTH_STREAM, seed, position]).integers(self.last_steps))

    def learn(self, policy: TuningModule, part: PromptBatch) -> None:
        """One gradient through the last steps of each rollout."""
        rollout, denoise = policy.begin(part)
        steps = len(policy.schedule)
        rollout.to(steps - self.depth(policy.seed, part.position), denoise)
        divergences = {}
        for step in range(rollout.index, steps):
            noisy = rollout.latents.detach()
            base = policy.base_output(denoise, noisy, step)
            output = denoise(rollout.latents, step)
            at_latents = denoise(noisy, step) if rollout.latents.requires_grad and policy.beta else output
            divergences[step] = policy.kl(at_latents, base, noisy, step)
            rollout.follow(output)
        kl = torch.stack(list(divergences.values())).sum(0)
        with torch.autocast(policy.device.type, enabled=False):
            reward = policy.reward(policy.model.decode(rollout.latents), part.prompts)
            reward = reward * (1 + 0 * reward.detach())  # a NaN reaches the gradient, whatever that of the scorer is
            loss = policy.beta * kl - policy.alpha * reward
        policy.terms = {"latents": rollout.latents.detach(), "reward": reward.detach(), "kl": kl.detach()}
        policy.note(
            loss=loss, reward=reward, kl=kl, **{f"kl_{step}": each for step, each in divergences.items()},
        )  # fmt: skip
        policy.manual_backward(loss.sum() / part.total)
