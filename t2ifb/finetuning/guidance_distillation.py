"""Guidance distillation: a model without guidance learns its own output with guidance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.sampling import Denoise
from t2ifb.finetuning.algorithm import Experience, Loss, Work, by_step, check_window, drawn_steps, mean_loss
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream

States = Literal["student", "teacher"]
"""Whose rollouts give the states that are learned at."""


@dataclass(frozen=True)
class GuidanceDistillation:
    """Regression of a student without guidance on a guided teacher (arXiv 2210.03142, stage one).

        L = E mean_D (f_θ(x_t, z) - [w f(x_t, z) + (1 - w) f(x_t, ∅)])²

    f is the network's output and w the teacher's guidance scale. The teacher is the model that training starts from:
    the base model, or that with the adapters of `start_from`. States x_t are those of the student's own rollouts, as in
    on-policy distillation, or of the teacher's. The student then samples with half the network evaluations, and its
    adapters can be the start of another algorithm. No reward is used.

    Attributes:
        teacher_scale: w, above 1.
        states: `student` or `teacher`.
        window: First and last step that is learned, counted from 0; all steps by default.
        gradients_per_rollout: Number of different steps of the window at which each rollout is learned.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    updates_per_experience: ClassVar[int] = 1
    teacher_scale: float = 7.5
    states: States = "student"
    window: Sequence[int] | None = None
    gradients_per_rollout: int = 4

    def __post_init__(self) -> None:
        if self.teacher_scale <= 1:
            raise ValueError(f"teacher_scale={self.teacher_scale} must be above 1, which is no guidance")
        if self.states not in get_args(States):
            raise ValueError(f"states must be {' or '.join(get_args(States))}, not {self.states!r}")

    @property
    def rollout_scale(self) -> float:
        """Guidance scale of the rollouts, regardless of the sampler's; 1, which is none, for the student."""
        return self.teacher_scale if self.states == "teacher" else 1.0

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        self.indices(steps, 0, 0)

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`: a rollout ends at the last of its m steps, on average m / (m + 1) into the window."""
        m, (first, last) = self.gradients_per_rollout, self.window or (0, steps - 1)
        return Work(prompts * (first + m * (last - first + 2) / (m + 1) - 1), 0, prompts * m)

    def shortened(self) -> tuple["GuidanceDistillation", int]:
        """See `Planned.shortened`: the loss looks at single steps."""
        return replace(self, window=None, gradients_per_rollout=min(2, self.gradients_per_rollout)), 2

    def indices(self, steps: int, seed: int, position: int) -> list[int]:
        """The rising steps that an update learns at: a function of (seed, position).

        Raises:
            ValueError: The window or the number of steps does not fit the schedule.
        """
        count = self.gradients_per_rollout
        window = check_window(self.window or (0, steps - 1), steps, count, "gradients_per_rollout")
        return drawn_steps(window, count, Stream.DISTILLATION_STEPS, seed, position)

    def begin(self, policy: Policy, position: int) -> None:
        """Keep the adapters that training starts from, see `Begun`."""
        if position == 0:
            policy.keep_start()

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Latents at the chosen steps of each prompt's rollout."""
        steps = self.indices(len(policy.schedule), policy.seed, batch.position)
        rollout, _ = policy.start(batch)
        if self.states == "teacher":
            context, denoise = policy.beginning(), self.teacher(policy, batch.prompts)
        else:
            context, denoise = policy.untrained(), policy.denoiser(batch.prompts, guided=False)
        with context:
            latents = [rollout.to(step, denoise) for step in steps]
        numbers = torch.tensor(steps).repeat_interleave(len(batch.prompts))
        return Experience(batch.prompts * len(steps), {"latents": torch.cat(latents), "step": numbers})

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """All rows are one update."""
        yield experience

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The squared error of the student's output."""
        noisy, steps = part["latents"], part.step
        student = policy.denoiser(part.prompts, guided=False)
        with policy.beginning():
            target = self.teacher(policy, part.prompts)(noisy, steps)
        error = (student(noisy, steps) - target).square().flatten(1).mean(1)
        return mean_loss(error, part, **by_step("error", error, steps))

    def teacher(self, policy: Policy, prompts: Sequence[str]) -> Denoise:
        """The guided denoiser; inside `policy.beginning()` it is the teacher's."""
        sampler = replace(policy.sampler, guidance_scale=self.teacher_scale)
        return sampler.denoiser(policy.model, policy.schedule, prompts)
