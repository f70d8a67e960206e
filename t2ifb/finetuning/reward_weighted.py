"""Reward-weighted log-likelihood on the model's own samples, which the report names as its next step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import add_noise, clean_and_noise
from t2ifb.finetuning.algorithm import Experience, Loss, Work, by_step, check_weights, mean_loss
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream, gaussian, generator

LARGEST = 20.0
"""Of the weights: one sample cannot outweigh all others."""


@dataclass(frozen=True)
class RewardWeighted:
    """Reward-weighted log-likelihood (arXiv 2302.12192), on-policy as in RWR (arXiv 2305.13301, section 4.1).

        L = E [alpha w mean_D (ε - ε_θ(a x_0 + s ε))² + beta KL],    w = min(exp(r(x_0, z) / temperature), 20)

    Each rollout goes down to the image without gradient, and the image is rewarded. The sample is then learned as data
    are, at m random steps of the schedule, with the KL divergence to the base model at the same noisy latents. The
    denoiser is not guided there. A weight means something only if the reward is normalised
    (`standardise`): then it is one for a sample that is as good as the base model's are on average. The
    reward needs no gradient.

    Attributes:
        temperature: How much better a sample must be, in units of the reward, to count e times as much.
        gradients_per_rollout: m.
        alpha: Weight of the likelihood.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    updates_per_experience: ClassVar[int] = 1
    temperature: float = 1.0
    gradients_per_rollout: int = 1
    alpha: float = 100.0
    beta: float = 0.01

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        if not 1 <= self.gradients_per_rollout <= steps:
            raise ValueError(f"gradients_per_rollout={self.gradients_per_rollout} must be from 1 to the {steps} steps")

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        return Work(prompts * steps, prompts, prompts * self.gradients_per_rollout)

    def shortened(self) -> tuple["RewardWeighted", int]:
        """See `Planned.shortened`: two gradients per rollout have the memory of any number."""
        return replace(self, gradients_per_rollout=min(2, self.gradients_per_rollout)), 2

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The m steps at which an update looks at its samples: a function of (seed, position)."""
        rng = generator(Stream.REWARD_WEIGHTED_STEPS, seed, position)
        return sorted(int(number) for number in rng.choice(steps, self.gradients_per_rollout, replace=False))

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Samples with their weights, and the noise that they are learned with at m steps."""
        steps = len(policy.schedule)
        rollout, denoise = policy.start(batch)
        with policy.untrained():
            samples = rollout.to(steps, denoise)
        reward = policy.score(samples, batch.prompts)
        weight = (reward / self.temperature).exp().clamp(max=LARGEST) + 0 * reward  # an infinite reward is an error
        chosen = self.indices(steps, policy.seed, batch.position)
        noise = [gaussian(rollout.keys, steps + 1 + step, policy.model.latent_shape) for step in chosen]
        of_samples = {"latents": samples, "reward": reward, "weight": weight}
        return Experience(
            batch.prompts * len(chosen),
            {
                **{name: each.repeat(len(chosen), *[1] * (each.ndim - 1)) for name, each in of_samples.items()},
                "noise": torch.cat(noise).to(policy.device),
                "step": torch.tensor(chosen).repeat_interleave(len(batch.prompts)),
            },
        )

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """All rows are one update."""
        yield experience

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The weighted error of the predicted noise."""
        noise, steps = part["noise"], part.step
        level = policy.schedule.level(steps, noise)
        noisy = add_noise(part["latents"], noise, *level)
        denoise = policy.denoiser(part.prompts, guided=False)
        with policy.reference():
            reference = denoise(noisy, steps)
        output = denoise(noisy, steps)
        predicted = clean_and_noise(output, noisy, *level, policy.schedule.prediction)[1]
        error = (predicted - noise).square().flatten(1).mean(1)
        kl = policy.kl(output, reference, noisy, steps)
        loss = self.alpha * part["weight"] * error + self.beta * kl
        terms = {"reward": part["reward"], "weight": part["weight"], "error": error, "kl": kl}
        return mean_loss(loss, part, **terms, **by_step("kl", kl, steps))
