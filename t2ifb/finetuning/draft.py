"""DRaFT: the gradient of the reward through the last steps of the chain."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.sampling import Denoise
from t2ifb.diffusion.schedule import Index
from t2ifb.finetuning.algorithm import Experience, Loss, Work, check_weights, mean_loss
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream, generator


@dataclass(frozen=True)
class DRaFT:
    """Direct reward fine-tuning (arXiv 2309.17400): the finished image's reward, back-propagated through the sampler.

        L = E [-alpha r(x_0, z) + beta mean of KL over the last K steps]

    A rollout goes down the schedule without gradient to its last K steps, DRaFT-K, and through those with gradient; the
    image that comes out is decoded and rewarded. The KL divergence of each step is taken at the detached latents, so
    that nothing of it is back-propagated into earlier steps. For that the denoiser is called once more at each step but
    the first, unless beta is 0.

    Attributes:
        last_steps: K; T takes the gradient through the whole chain. What the denoiser keeps for the backward pass is in
            memory K times, with beta nearly twice as often.
        truncation: `fixed` takes K steps every time; `random` draws how many uniformly from 1 to K for each update, as
            AlignProp does (arXiv 2310.03739).
        checkpoint_steps: Keep only the latents of each step and call the denoiser again in the backward pass. Memory
            then hardly grows with K, for a third more time.
        alpha: Weight of the reward.
        beta: Weight of the KL divergence in nats, a mean over the steps as in every algorithm.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = True
    updates_per_experience: ClassVar[int] = 1
    last_steps: int = 1
    truncation: str = "fixed"
    checkpoint_steps: bool = False
    alpha: float = 100.0
    beta: float = 0.01

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        if self.truncation not in ("fixed", "random"):
            raise ValueError(f"truncation must be fixed or random, not {self.truncation!r}")

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        if not 1 <= self.last_steps <= steps:
            raise ValueError(f"last_steps={self.last_steps} must be from 1 to the {steps} steps of a rollout")

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        depth = self.last_steps if self.truncation == "fixed" else (1 + self.last_steps) / 2
        return Work(prompts * (steps - depth), 0, prompts)

    def shortened(self) -> tuple["DRaFT", int]:
        """See `Planned.shortened`: all of the last steps are in memory together."""
        return replace(self, truncation="fixed"), self.last_steps

    def cheapest(self) -> "DRaFT | None":
        """The algorithm of the updates that take one step, for `RunSpec.cheapest`; None if all take as many."""
        return None if self.truncation == "fixed" else replace(self, truncation="fixed", last_steps=1)

    def depth(self, seed: int, position: int) -> int:
        """How many steps an update goes back: a function of (seed, position)."""
        if self.truncation == "fixed":
            return self.last_steps
        return 1 + int(generator(Stream.DRAFT_STEPS, seed, position).integers(self.last_steps))

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Latents where the last steps begin."""
        rollout, denoise = policy.start(batch)
        first = len(policy.schedule) - self.depth(policy.seed, batch.position)
        with policy.untrained():
            latents = rollout.to(first, denoise)
        return Experience(batch.prompts, {"latents": latents, **policy.resume_state(rollout)})

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """All rows are one update."""
        yield experience

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The reward at the chain's end and the KL divergences of its last steps."""
        rollout, plain = policy.resume(part)
        denoise = checkpointed(plain) if self.checkpoint_steps else plain
        divergences = {}
        for step in range(rollout.index, len(policy.schedule)):
            noisy = rollout.latents.detach()
            with policy.reference():
                reference = plain(noisy, step)
            output = denoise(rollout.latents, step)
            at_latents = denoise(noisy, step) if rollout.latents.requires_grad and self.beta else output
            divergences[f"kl_{step}"] = policy.kl(at_latents, reference, noisy, step)
            rollout.follow(output)
        kl = torch.stack(list(divergences.values())).mean(0)
        reward = policy.score(rollout.latents, part.prompts)
        return mean_loss(self.beta * kl - self.alpha * reward, part, reward=reward, kl=kl, **divergences)


def checkpointed(denoise: Denoise) -> Denoise:
    """A denoiser that keeps only its input for the backward pass, which calls it again."""

    def call(latents: Tensor, index: Index) -> Tensor:
        output: Tensor = checkpoint(denoise, latents, index, use_reentrant=False, preserve_rng_state=False)
        return output

    return call
