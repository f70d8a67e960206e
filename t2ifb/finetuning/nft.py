"""DiffusionNFT: reinforcement learning on the forward process, from positive and negative samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import add_noise, clean_and_noise
from t2ifb.finetuning.algorithm import Experience, Loss, Work, check_weights, penalised_loss
from t2ifb.finetuning.groups import (
    Deviation,
    Pick,
    advantages,
    check_deviation,
    check_pick,
    draw_groups,
    learned_steps,
    noised,
)
from t2ifb.finetuning.policy import Policy

OLD = "old"
"""Name of the adapters that samples are drawn with."""
SMALLEST_ERROR = 1e-5
"""Smallest mean absolute error that an error is divided by."""


@dataclass(frozen=True)
class NFT:
    """Negative-aware fine-tuning (arXiv 2509.16117), written on predicted images, so for every Gaussian path.

        L = E alpha [w l(b x̂_0 + (1 - b) x̂_0^old) + (1 - w) l((1 + b) x̂_0^old - b x̂_0)] / b + beta KL(p || p_base),
        l(x) = mean_D (x - x_0)² / sg[mean_D |x - x_0|],    w = A / (2 A_max) + 1/2

    K samples per prompt are drawn with the `old` adapters, a moving average of the trained ones. A good sample (w near
    1) pulls the prediction towards itself, a bad one pushes the prediction away.

    Attributes:
        group_size: K.
        pick: `reward` gives each sample its own reward; `random` one of its prompt's rewards at random, the control.
        steps: First and last step, counted from 0, that noise is added at; None for all steps.
        updates: Updates per experience.
        samples_per_update: Samples per update, in each process; all of them once, in `updates` parts, by default.
        nft_beta: b, how far positive and negative predictions are from the old one.
        old_decay: Largest share of the old adapters that stays at each experience.
        old_decay_rise: Rise of that share per experience, from 0.
        deviation: What advantages are divided by, see `advantages`.
        most_advantage: A_max.
        alpha: Weight of the objective.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    group_size: int = 8
    pick: Pick = "reward"
    steps: Sequence[int] | None = None
    updates: int = 1
    samples_per_update: int | None = None
    nft_beta: float = 1.0
    old_decay: float = 0.5
    old_decay_rise: float = 1e-3
    deviation: Deviation = "batch"
    most_advantage: float = 5.0
    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        check_pick(self.pick)
        if self.group_size < 2 or self.updates < 1 or self.nft_beta <= 0 or self.most_advantage <= 0:
            raise ValueError(
                f"group_size={self.group_size} must be at least 2, updates={self.updates} at least 1, "
                f"nft_beta={self.nft_beta} and most_advantage={self.most_advantage} above 0"
            )
        check_deviation(self.deviation)
        if self.samples_per_update is not None and self.samples_per_update < 1:
            raise ValueError(f"samples_per_update={self.samples_per_update} must be at least 1")
        if not 0 <= self.old_decay < 1 or self.old_decay_rise < 0:
            raise ValueError(
                f"old_decay={self.old_decay} must be from 0 to below 1, old_decay_rise={self.old_decay_rise} at least 0"
            )

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        samples = prompts * self.group_size
        rows = self.samples_per_update or max(1, samples // self.updates)
        return Work(samples * steps, samples, self.updates * rows)

    def shortened(self) -> tuple["NFT", int]:
        """See `Planned.shortened`: the loss looks at single steps."""
        return replace(self, steps=None), 2

    @property
    def updates_per_experience(self) -> int:
        """See `Algorithm.updates_per_experience`."""
        return self.updates

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        learned_steps(self.steps, steps)

    def begin(self, policy: Policy, position: int) -> None:
        """Move the old adapters towards the trained ones, see `Begun`."""
        policy.average(OLD, min(self.old_decay_rise * position, self.old_decay))

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Samples of the old adapters with their weights w."""
        with policy.adapters_of(OLD):
            groups = draw_groups(policy, batch, self.group_size)
        compared = groups.compared_by(self.pick).rewards
        advantage = advantages(compared, self.group_size, self.deviation, self.most_advantage)
        weight = advantage / (2 * self.most_advantage) + 0.5
        tensors = {"latents": groups.latents, "weight": weight, "reward": groups.rewards}
        tensors["steps"] = torch.full((len(weight),), len(policy.schedule))
        return Experience(groups.prompts, tensors)

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """Samples in random order, each with a random step and noise."""
        rows = self.samples_per_update or max(1, len(experience) // self.updates)
        steps = learned_steps(self.steps, int(experience["steps"][0]))
        yield from noised(experience, rows, self.updates, steps, 0.0, seed)

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The objective at the rows' steps and noise, and the KL divergence where beta is above 0."""
        clean, steps, weight = part["latents"], part.step, part["weight"]
        level = policy.schedule.level(steps, clean)
        noisy = add_noise(clean, part["noise"], *level)
        denoise = policy.denoiser(part.prompts, guided=False)
        with torch.no_grad(), policy.adapters_of(OLD):
            old = clean_and_noise(denoise(noisy, steps), noisy, *level, policy.schedule.prediction)[0]
        output = denoise(noisy, steps)
        now = clean_and_noise(output, noisy, *level, policy.schedule.prediction)[0]
        b = self.nft_beta
        positive, negative = (relative_error(x, clean) for x in (b * now + (1 - b) * old, (1 + b) * old - b * now))
        loss = self.alpha * (weight * positive + (1 - weight) * negative) / b
        terms = {"reward": part["reward"], "weight": weight, "positive": positive, "negative": negative}
        kl = partial(policy.kl_to_base, denoise, output, noisy, steps)
        return penalised_loss(loss, part, self.beta, kl, **terms)


def relative_error(predicted: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error (B,) divided by the mean absolute error without gradient, so that all steps weigh alike."""
    error = predicted - clean
    scale = error.detach().abs().flatten(1).mean(1).clamp(min=SMALLEST_ERROR)
    return error.square().flatten(1).mean(1) / scale
