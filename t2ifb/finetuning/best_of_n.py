"""Best-of-n self-distillation: a model learns the best of its own samples as data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import add_noise, denoising_error
from t2ifb.finetuning.algorithm import Experience, Loss, Work, check_weights, penalised_loss
from t2ifb.finetuning.groups import Pick, check_pick, draw_groups, learned_steps, noised
from t2ifb.finetuning.policy import Policy


@dataclass(frozen=True)
class BestOfN:
    """Reward-ranked fine-tuning (RAFT, arXiv 2304.06767) in rounds.

        L = E [alpha mean_D (ε - ε_θ(a x_0 + s ε))² + beta KL(p || p_base)],    x_0 among the best of n own samples

    Each round draws n samples per prompt, keeps the best by the reward, and learns them as data are learned, at random
    steps with random noise and without guidance.

    Attributes:
        group_size: n.
        best: Number of samples that are kept of each prompt.
        pick: `reward` keeps the best; `random` keeps any, the control that shows what learning own samples does alone.
        steps: First and last step, counted from 0, that noise is added at; None for all steps.
        updates: Updates per round.
        samples_per_update: Samples per update, in each process.
        empty_prompts: Share of prompts replaced by the empty one, which keeps guidance working.
        alpha: Weight of the denoising loss.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    group_size: int = 8
    best: int = 1
    pick: Pick = "reward"
    steps: Sequence[int] | None = None
    updates: int = 50
    samples_per_update: int = 16
    empty_prompts: float = 0.1
    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        if not 1 <= self.best <= self.group_size:
            raise ValueError(f"best={self.best} must be from 1 to group_size={self.group_size}")
        check_pick(self.pick)
        if self.updates < 1 or self.samples_per_update < 1 or not 0 <= self.empty_prompts < 1:
            raise ValueError(
                f"updates={self.updates} and samples_per_update={self.samples_per_update} must be at least 1, "
                f"empty_prompts={self.empty_prompts} from 0 to below 1"
            )

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        samples = prompts * self.group_size
        return Work(samples * steps, samples, self.updates * self.samples_per_update)

    def shortened(self) -> tuple["BestOfN", int]:
        """See `Planned.shortened`: the loss looks at single steps."""
        return replace(self, steps=None), 2

    @property
    def updates_per_experience(self) -> int:
        """See `Algorithm.updates_per_experience`."""
        return self.updates

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        learned_steps(self.steps, steps)

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Latents of the samples that are kept, with their rewards."""
        groups = draw_groups(policy, batch, self.group_size)
        kept = groups.compared_by(self.pick).order[:, : self.best].flatten()
        tensors = {"latents": groups.latents[kept], "reward": groups.rewards[kept]}
        tensors["steps"] = torch.full((len(kept),), len(policy.schedule))
        return Experience([groups.prompts[int(row)] for row in kept], tensors)

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """Random samples, each with a random step and noise."""
        steps = learned_steps(self.steps, int(experience["steps"][0]))
        yield from noised(experience, self.samples_per_update, self.updates, steps, self.empty_prompts, seed)

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The error of the predicted noise, and the KL divergence where beta is above 0."""
        noise, steps = part["noise"], part.step
        level = policy.schedule.level(steps, noise)
        noisy = add_noise(part["latents"], noise, *level)
        denoise = policy.denoiser(part.prompts, guided=False)
        output = denoise(noisy, steps)
        error = denoising_error(output, part["latents"], noise, *level, policy.schedule.prediction)
        loss = self.alpha * error + 0 * part["reward"]  # a NaN reward is an error
        kl = partial(policy.kl_to_base, denoise, output, noisy, steps)
        return penalised_loss(loss, part, self.beta, kl, error=error, reward=part["reward"])
