"""ReFL: the gradient of single late steps of a rollout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.finetuning.algorithm import (
    Experience,
    Loss,
    Work,
    by_step,
    check_weights,
    check_window,
    drawn_steps,
    mean_loss,
)
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream


@dataclass(frozen=True)
class ReFL:
    """Reward feedback learning (PAPER eq. 5; arXiv 2304.05977, algorithm 1) with a KL divergence to the base model.

        L = E [-alpha r(x̂_0, z) + beta KL(p(x_t | x_{t+1}, z) || p_base(x_t | x_{t+1}, z))]

    Each rollout goes down the schedule without gradient. At each of m steps of a window the denoiser is called once
    with gradient at the detached latents: its output gives the predicted image x̂_0, which is decoded and rewarded, and
    the mean of the step's distribution, which enters the KL. As in ReFL, nothing is back-propagated into earlier steps:
    neither the latents' dependence on the adapters nor the score-function term of the expectation's gradient is
    followed.

    Attributes:
        window: First and last step at which a gradient may be taken, counted from 0; the last ten by default.
        gradients_per_rollout: m, how many different steps of the window each rollout gives a gradient at.
        alpha: Weight of the reward. AdamW ignores a common factor of alpha and beta.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = True
    updates_per_experience: ClassVar[int] = 1
    window: Sequence[int] | None = None
    gradients_per_rollout: int = 1
    alpha: float = 100.0
    beta: float = 0.01

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        self.window_of(steps)

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Latents at m steps of each prompt's rollout."""
        rollout, denoise = policy.start(batch)
        steps = self.indices(len(policy.schedule), policy.seed, batch.position)
        with policy.untrained():
            latents = [rollout.to(step, denoise) for step in steps]
        numbers = torch.tensor(steps).repeat_interleave(len(batch.prompts))
        return Experience(batch.prompts * len(steps), {"latents": torch.cat(latents), "step": numbers})

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """All rows are one update."""
        yield experience

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """Equation 5 at the rows' steps."""
        noisy, steps = part["latents"], part.step
        denoise = policy.denoiser(part.prompts)
        with policy.reference():
            reference = denoise(noisy, steps)
        output = denoise(noisy, steps)
        reward = policy.score(policy.step(output, noisy, steps).clean, part.prompts)
        kl = policy.kl(output, reference, noisy, steps)
        return mean_loss(self.beta * kl - self.alpha * reward, part, reward=reward, kl=kl, **by_step("kl", kl, steps))

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`: a rollout ends at the last of its m steps, on average m / (m + 1) into the window."""
        m, (first, last) = self.gradients_per_rollout, self.window_of(steps)
        return Work(prompts * (first + m * (last - first + 2) / (m + 1) - 1), 0, prompts * m)

    def shortened(self) -> tuple["ReFL", int]:
        """See `Planned.shortened`: two gradients per rollout have the memory of any number."""
        m = min(2, self.gradients_per_rollout)
        return replace(self, window=(0, m - 1), gradients_per_rollout=m), m

    def window_of(self, steps: int) -> tuple[int, int]:
        """First and last step of a schedule of so many.

        Raises:
            ValueError: The window or m does not fit it.
        """
        window = (max(0, steps - 10), steps - 1) if self.window is None else self.window
        return check_window(window, steps, self.gradients_per_rollout, "gradients_per_rollout")

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The m steps at which an update takes its gradients, rising: a function of (seed, position)."""
        return drawn_steps(self.window_of(steps), self.gradients_per_rollout, Stream.REFL_STEPS, seed, position)
