"""Reward-weighted log-likelihood on the model's own samples, which the report names as its next step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import add_noise, denoising_error
from t2ifb.finetuning.algorithm import Experience, Loss, Work, by_step, check_weights, mean_loss
from t2ifb.finetuning.groups import Deviation, advantages, check_deviation, draw_groups, repeated, without_variance
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream, gaussian, generator


@dataclass(frozen=True)
class RewardWeighted:
    """Reward-weighted log-likelihood (arXiv 2302.12192), on-policy as in RWR (arXiv 2305.13301, section 4.1).

        L = E [alpha w mean_D (ε - ε_θ(a x_0 + s ε))² + beta KL],    w_k = exp(A_k / τ) / mean_j exp(A_j / τ)

    K samples per prompt are drawn without gradient and rewarded. Each is then learned as data are, at m random steps of
    the schedule, with the KL divergence to the base model at the same noisy latents. The denoiser is not guided there.

    Weights are exponential in the advantage A, as in AWR (arXiv 1910.00177), and normalised as in RWR, but among the
    samples of one prompt: their mean is 1. A prompt's offset of the reward, which the Bradley-Terry loss leaves
    undetermined, therefore has no effect, and no prompt outweighs another. The largest possible weight is K. The reward
    needs no gradient.

    Attributes:
        group_size: K.
        temperature: τ, how much larger the advantage of a sample must be to count e times as much.
        deviation: What advantages are divided by, see `advantages`.
        gradients_per_rollout: m.
        alpha: Weight of the likelihood.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    updates_per_experience: ClassVar[int] = 1
    group_size: int = 4
    temperature: float = 1.0
    deviation: Deviation = "group"
    gradients_per_rollout: int = 1
    alpha: float = 100.0
    beta: float = 0.01

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        if self.group_size < 2 or self.temperature <= 0:
            raise ValueError(
                f"group_size={self.group_size} must be at least 2, and temperature={self.temperature} above 0"
            )
        check_deviation(self.deviation)

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        if not 1 <= self.gradients_per_rollout <= steps:
            raise ValueError(f"gradients_per_rollout={self.gradients_per_rollout} must be from 1 to the {steps} steps")

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        samples = prompts * self.group_size
        return Work(samples * steps, samples, samples * self.gradients_per_rollout)

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
        groups = draw_groups(policy, batch, self.group_size)
        reward, prompts = groups.rewards, groups.prompts
        weight = weights(advantages(reward, self.group_size, self.deviation), self.group_size, self.temperature)
        chosen = self.indices(steps, policy.seed, batch.position)
        keys = [(policy.seed, batch.position, number) for number in repeated(batch, self.group_size).numbers]
        noise = [gaussian(keys, steps + 1 + step, policy.model.latent_shape) for step in chosen]
        of_samples = {"latents": groups.latents, "reward": reward, "weight": weight}
        of_samples["no_variance"] = without_variance(reward, self.group_size)
        return Experience(
            prompts * len(chosen),
            {
                **{name: each.repeat(len(chosen), *[1] * (each.ndim - 1)) for name, each in of_samples.items()},
                "noise": torch.cat(noise).to(policy.device),
                "step": torch.tensor(chosen).repeat_interleave(len(prompts)),
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
        error = denoising_error(output, part["latents"], noise, *level, policy.schedule.prediction)
        kl = policy.kl(output, reference, noisy, steps)
        loss = self.alpha * part["weight"] * error + self.beta * kl
        terms = {name: part[name] for name in ("reward", "weight", "no_variance")} | {"error": error, "kl": kl}
        return mean_loss(loss, part, **terms, **by_step("kl", kl, steps))


def weights(advantage: Tensor, size: int, temperature: float) -> Tensor:
    """Weights (P·K,) of samples with advantages (P·K,), K consecutive ones per prompt: softmax, times K."""
    groups = advantage.unflatten(0, (-1, size))
    return size * (groups / temperature).softmax(1).flatten()
