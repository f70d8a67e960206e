"""Reward-weighted log-likelihood on the model's own samples, which the report names as its next step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.noise import gaussian
from t2ifb.diffusion.path import add_noise, clean_and_noise
from t2ifb.learning.tuning_module import TuningModule

INDEX_STREAM = 0x0DF5
"""Keeps the draws of steps apart from others with the same seed."""
LARGEST = 20.0
"""Of the weights: one sample cannot outweigh all others."""


@dataclass(frozen=True)
class RewardWeighted:
    """Reward-weighted log-likelihood (arXiv 2302.12192), on-policy as in RWR (arXiv 2305.13301, section 4.1).

    Each rollout goes down to the image without gradient, and the image is rewarded. The sample is then learned as
    data are, by how well its noise is told at m random steps of the schedule, with the weight exp(r / temperature), at
    most 20:

        L = alpha * exp(r / temperature) * mean over dimensions of (ε - ε_θ(√ᾱ x_0 + √(1 - ᾱ) ε))² + beta * KL

    with the KL divergence to the base model at the same noisy latents. The U-Net is not guided there. A weight means
    something only if the reward is standardised (`algorithm.standardise`): then it is one for a sample that is as good
    as the base model's are on average. The reward needs no gradient.

    Attributes:
        temperature: How much better a sample must be, in units of the reward, to count e times as much.
        gradients_per_rollout: m.
    """

    needs_gradient: ClassVar[bool] = False
    temperature: float = 1.0
    gradients_per_rollout: int = 1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")

    def steps_with_kl(self, steps: int) -> Sequence[int]:
        """All.

        Raises:
            ValueError: There are fewer than m.
        """
        if not 1 <= self.gradients_per_rollout <= steps:
            raise ValueError(f"gradients_per_rollout={self.gradients_per_rollout} must be from 1 to the {steps} steps")
        return range(steps)

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The m steps at which an update looks at its samples: a function of (seed, position)."""
        rng = np.random.default_rng([INDEX_STREAM, seed, position])
        return sorted(int(number) for number in rng.choice(steps, self.gradients_per_rollout, replace=False))

    def learn(self, policy: TuningModule, part: PromptBatch) -> None:
        """The mean over m steps of each sample."""
        schedule = policy.schedule
        indices = self.indices(len(schedule), policy.seed, part.position)
        rollout, denoise = policy.begin(part)
        samples = rollout.to(len(schedule), denoise)
        with torch.no_grad(), torch.autocast(policy.device.type, enabled=False):
            reward = policy.reward(policy.model.decode(samples), part.prompts)
        weight = (reward / self.temperature).exp().clamp(max=LARGEST) + 0 * reward  # an infinite one is a fault
        states = policy.model.encode_prompts(part.prompts)
        for step in indices:
            level = schedule.level(step, samples)
            noise = gaussian(rollout.keys, len(schedule) + 1 + step, policy.model.latent_shape).to(samples.device)
            noisy = add_noise(samples, noise, *level)

            def unguided(latents: torch.Tensor, step: int) -> torch.Tensor:
                return policy.model.predict(latents, schedule.times[step], states)

            base = policy.base_output(unguided, noisy, step)
            output = unguided(noisy, step)
            told = clean_and_noise(output, noisy, *level, schedule.prediction)[1]
            error = (told - noise).square().flatten(1).mean(1)
            kl = policy.kl(output, base, noisy, step)
            loss = policy.alpha * weight * error + policy.beta * kl
            policy.terms = {"U-Net's output": output.detach(), "reward": reward, "kl": kl.detach()}
            policy.note(
                loss=loss, reward=reward, kl=kl, weight=weight, error=error, **{f"kl_{step}": kl},
            )  # fmt: skip
            policy.manual_backward(loss.sum() / (part.total * len(indices)))
