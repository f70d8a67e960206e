"""ReFL: the gradient of single late steps of a rollout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.finetuning.algorithm import Experience, Loss, by_step, check_weights, mean_loss
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream, generator


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
        if self.window is not None and len(self.window) != 2:
            raise ValueError(f"window must be the first and the last step, such as [30, 39], not {list(self.window)}")

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

    def window_of(self, steps: int) -> tuple[int, int]:
        """First and last step of a schedule of so many.

        Raises:
            ValueError: The window or m does not fit it.
        """
        first, last = (max(0, steps - 10), steps - 1) if self.window is None else self.window
        if not 0 <= first <= last < steps:
            raise ValueError(f"window={[first, last]} must lie within the steps 0 to {steps - 1}")
        if not 1 <= self.gradients_per_rollout <= last - first + 1:
            raise ValueError(
                f"gradients_per_rollout={self.gradients_per_rollout} must be from 1 to the {last - first + 1} steps of "
                f"window={[first, last]}"
            )
        return first, last

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The m steps at which an update takes its gradients, rising: a function of (seed, position)."""
        first, last = self.window_of(steps)
        rng = generator(Stream.REFL_STEPS, seed, position)
        drawn = rng.choice(last - first + 1, self.gradients_per_rollout, replace=False)
        return sorted(first + int(number) for number in drawn)
