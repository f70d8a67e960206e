"""ReFL: the gradient of single late steps of a rollout."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning.tuning_module import TuningModule

INDEX_STREAM = 0x0DF1
"""Keeps the draws of steps apart from others with the same seed."""


@dataclass(frozen=True)
class ReFL:
    """Reward feedback learning (PAPER eq. 5; arXiv 2304.05977, algorithm 1) with a KL divergence to the base model.

    Each rollout goes down the schedule without gradient. At each of m steps of a window the U-Net is called once with
    gradient at the detached latents: its output gives the predicted image, which is decoded and rewarded, and the mean
    of the step's distribution, which enters the KL. What the earlier steps would contribute is dropped, as in ReFL:
    neither the latents' dependence on the adapters nor the score-function term of the expectation's gradient is
    followed.

    Notes what each term sends back to the U-Net's output: `reward_gradient`, `kl_gradient` (norms a sample) and the
    latter's share, `kl_share`.

    Attributes:
        window: First and last step at which a gradient may be taken, counted from 0; the last ten by default.
        gradients_per_rollout: m, how many different steps of the window each rollout gives a gradient at.
    """

    needs_gradient: ClassVar[bool] = True
    window: Sequence[int] | None = None
    gradients_per_rollout: int = 1

    def __post_init__(self) -> None:
        if self.window is not None and len(self.window) != 2:
            raise ValueError(f"window must be the first and the last step, such as [30, 39], not {list(self.window)}")

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

    def steps_with_kl(self, steps: int) -> Sequence[int]:
        """Those of the window."""
        first, last = self.window_of(steps)
        return range(first, last + 1)

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The m steps at which an update takes its gradients, rising: a function of (seed, position)."""
        first, last = self.window_of(steps)
        rng = np.random.default_rng([INDEX_STREAM, seed, position])
        drawn = rng.choice(last - first + 1, self.gradients_per_rollout, replace=False)
        return sorted(first + int(number) for number in drawn)

    def learn(self, policy: TuningModule, part: PromptBatch) -> None:
        """The mean over m steps of each rollout."""
        indices = self.indices(len(policy.schedule), policy.seed, part.position)
        rollout, denoise = policy.begin(part)
        for step in indices:
            noisy = rollout.to(step, denoise)
            base = policy.base_output(denoise, noisy, step)
            output = denoise(noisy, step)
            gradient = output_gradient(policy, output, base, noisy, step, part.prompts)
            policy.manual_backward((output * gradient).sum() / (part.total * len(indices)))
            rollout.take(output)


def output_gradient(
    policy: TuningModule, output: Tensor, base: Tensor, noisy: Tensor, step: int, prompts: list[str]
) -> Tensor:
    """The gradient of a step's loss, summed over samples, with respect to the U-Net's output.

    Both terms depend on the adapters through this output only, so that their gradients can be taken one by one
    up to here and looked at, and go on through the U-Net together.

    Args:
        policy: What is tuned.
        output: (B, C, h, w), the policy's.
        base: (B, C, h, w), the base model's on the same latents.
        noisy: (B, C, h, w), the latents where the step begins.
        step: Its index.
        prompts: B strings.

    Returns:
        (B, C, h, w) float32.
    """
    with torch.enable_grad(), torch.autocast(policy.device.type, enabled=False):
        leaf = output.detach().float().requires_grad_()
        clean = policy.schedule.step(leaf, noisy, step).clean
        reward = policy.reward(policy.model.decode(clean), prompts)
        (of_reward,) = torch.autograd.grad(-policy.alpha * reward.sum(), leaf)
        kl = policy.kl(leaf, base, noisy, step)
        (of_kl,) = torch.autograd.grad(policy.beta * kl.sum(), leaf)
    policy.terms = {"U-Net's output": output.detach(), "reward": reward.detach(), "kl": kl.detach()}
    norms = [gradient.flatten(1).norm(dim=1) for gradient in (of_reward, of_kl)]
    policy.note(
        loss=policy.beta * kl - policy.alpha * reward, reward=reward, kl=kl,
        reward_gradient=norms[0], kl_gradient=norms[1], kl_share=norms[1] / (norms[0] + norms[1]).clamp(min=1e-12),
        **{f"kl_{step}": kl},
    )  # fmt: skip
    # Zero, but NaN where a term is NaN and its gradient happens to be finite: such a step must not count.
    faults = 0 * (reward.detach() + kl.detach())
    return of_reward + of_kl + faults[:, None, None, None]


class ReFLModule(TuningModule):
    """What the report tunes with: a `TuningModule` whose method is `ReFL`."""

    def __init__(
        self,
        model: DiffusionModel,
        lora: LoRA,
        reward: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        rollout: Sampler,
        window: Sequence[int] | None = None,
        gradients_per_rollout: int = 1,
        **options: Any,
    ) -> None:
        """Put the parts together; arguments as of `TuningModule` and `ReFL`."""
        method = ReFL(window, gradients_per_rollout)
        super().__init__(model, lora, reward, optimizer, rollout, method, **options)
