"""GRPO: clipped policy gradient on groups of samples of one prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.finetuning.algorithm import (
    Experience,
    Loss,
    Work,
    check_weights,
    check_window,
    drawn_steps,
    penalised_loss,
)
from t2ifb.finetuning.groups import Deviation, advantages, check_deviation, equal_parts, repeated, without_variance
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream

Noise = Literal["all", "window"]
"""Which steps of a rollout are stochastic."""


@dataclass(frozen=True)
class GRPO:
    """Group-relative policy optimisation, with DDPO (arXiv 2305.13301) and Flow-GRPO (arXiv 2505.05470) as cases.

        L = E [-alpha min(A ρ, A clip(ρ, 1 - c, 1 + c)) + beta KL(p || p_base)],
        ρ = (p(x' | x, z) / p_old(x' | x, z))^(1/D)

    For each prompt K samples are drawn and rewarded; a sample's advantage A compares it with the others of its prompt.
    The loss looks at the steps x → x' of the samples' own trajectories within a window. Any scorer can be the reward,
    because it needs no gradient. Log-densities are sums over the D dimensions; the exponent 1/D makes the ratio that of
    published code, which takes means.

    Attributes:
        group_size: K.
        window: First and last step that may be trained, counted from 0. Steps without variance cannot be trained. The
            default is the first half of the schedule, which decides most of an image.
        steps_per_sample: Number of different steps of the window that an experience trains; all by default.
        noise: Steps of the rollouts that are stochastic: `all`, as the sampler has them, or those of the `window`, with
            deterministic steps elsewhere, as in MixGRPO (arXiv 2507.21802).
        updates: Updates per experience. Each learns from other samples.
        clip: c; the default fits the exponent 1/D.
        deviation: What advantages are divided by, see `advantages`.
        most_advantage: Advantages are clipped to this absolute value.
        alpha: Weight of the advantage term.
        beta: Weight of the KL divergence in nats.
    """

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    group_size: int = 8
    window: Sequence[int] | None = None
    steps_per_sample: int | None = None
    noise: Noise = "all"
    updates: int = 1
    clip: float = 1e-4
    deviation: Deviation = "group"
    most_advantage: float = 5.0
    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        check_weights(self.alpha, self.beta)
        if self.group_size < 2 or self.updates < 1 or self.clip <= 0 or self.most_advantage <= 0:
            raise ValueError(
                f"group_size={self.group_size} must be at least 2, updates={self.updates} at least 1, clip={self.clip} "
                f"and most_advantage={self.most_advantage} above 0"
            )
        check_deviation(self.deviation)
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise must be all or window, not {self.noise!r}")

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`."""
        samples = prompts * self.group_size
        return Work(samples * steps, samples, samples * len(self.steps_of(steps, 0, 0)))

    def shortened(self) -> tuple["GRPO", int]:
        """See `Planned.shortened`: parts are of one step each."""
        return replace(self, window=(0, 0), steps_per_sample=None), 2

    @property
    def updates_per_experience(self) -> int:
        """See `Algorithm.updates_per_experience`."""
        return self.updates

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        self.steps_of(steps, 0, 0)

    def steps_of(self, steps: int, seed: int, position: int) -> list[int]:
        """Rising steps that an experience trains: a function of (seed, position).

        Raises:
            ValueError: The window or the number of steps does not fit the schedule.
        """
        window = check_window(self.window_of(steps), steps, self.steps_per_sample or 1, "steps_per_sample")
        count = self.steps_per_sample or window[1] - window[0] + 1
        return drawn_steps(window, count, Stream.GRPO_STEPS, seed, position)

    def window_of(self, steps: int) -> Sequence[int]:
        """First and last step that may be trained."""
        return self.window or (0, steps // 2 - 1)

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Trajectories of the groups: where each trained step begins and ends, its log-probability, the advantage.

        Trained steps are computed as `loss` computes them, in the same parts, so that the first ratios are exactly 1.
        """
        steps = self.steps_of(len(policy.schedule), policy.seed, batch.position)
        samples = repeated(batch, self.group_size)
        # Blocks do not depend on what fits into memory, and parts divide a block.
        block = equal_parts(len(samples.prompts), len(samples.prompts), self.updates)
        size = equal_parts(block, policy.rows_in_memory or len(batch.prompts), 1)
        found: list[dict[str, Tensor]] = []
        prompts: list[str] = []
        images: list[Tensor] = []
        for number, part in enumerate(samples.parts(size)):
            rollout, denoise = policy.start(part)
            if self.noise == "window":
                rollout.schedule = policy.schedule.noisy_within(*self.window_of(len(policy.schedule)))
            for index in steps:
                with policy.untrained():
                    noisy = rollout.to(index, denoise)
                output = denoise(noisy, index)
                rollout.take(output)
                log_prob = policy.step(output, noisy, index).log_prob(rollout.latents)
                row = {"step": torch.full((size,), index), "block": torch.full((size,), number * size // block)}
                row["sample"] = torch.arange(number * size, (number + 1) * size)
                found.append({"noisy": noisy, "next": rollout.latents, "log_prob": log_prob, **row})
                prompts += part.prompts
            with policy.untrained():
                images.append(rollout.to(len(policy.schedule), denoise))
        reward = policy.scores(torch.cat(images), samples.prompts)
        of_samples = {
            "reward": reward,
            "advantage": advantages(reward, self.group_size, self.deviation, self.most_advantage),
            "no_variance": without_variance(reward, self.group_size),
        }
        rows = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        of_row = rows.pop("sample").to(reward.device)
        return Experience(prompts, rows | {name: each[of_row] for name, each in of_samples.items()}, part_size=size)

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """Some blocks of the samples each, in random order, with all their trained steps."""
        block = experience["block"]
        order = np.random.default_rng(seed).permutation(int(block.max()) + 1)
        for update, chosen in enumerate(np.array_split(order, self.updates)):
            rows = [row for number in chosen for row in (block == int(number)).nonzero().flatten().tolist()]
            part = experience.rows(rows)
            yield replace(part, tensors=part.tensors | {"first": torch.full((len(rows),), update == 0)})

    def check_ratio(self, ratio: Tensor) -> None:
        """Check that ratios (B,) before the first update are 1: exactly on a CPU, else within half of `clip`.

        Raises:
            ValueError: One is not. Clipping would then remove gradients at random.
        """
        tolerance = 0.0 if ratio.device.type == "cpu" else self.clip / 2
        if ((ratio - 1).abs() > tolerance).any():
            worst = float(ratio[(ratio - 1).abs().nan_to_num().argmax()])
            raise ValueError(
                f"before the first update of an experience the ratio is {worst:.9g}, not 1 (±{tolerance:g}): the "
                "probabilities of the samples cannot be computed again, perhaps because of half precision. Use fp32, "
                "or a larger clip"
            )

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """The clipped objective at the rows' steps, and the KL divergence where beta is above 0.

        Raises:
            ValueError: The ratios are not 1 before the first update (`check_ratio`).
        """
        noisy, steps, advantage = part["noisy"], part.step, part["advantage"]
        denoise = policy.denoiser(part.prompts)
        terms: dict[str, Tensor] = {"reward": part["reward"], "no_variance": part["no_variance"]}
        output = denoise(noisy, steps)
        log_prob = policy.step(output, noisy, steps).log_prob(part["next"])
        ratio = ((log_prob - part["log_prob"]) / output[0].numel()).exp()
        if not ratio.is_meta and part["first"].all():  # a plan has no numbers
            self.check_ratio(ratio.detach())
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = -self.alpha * torch.minimum(advantage * ratio, advantage * clipped)
        terms |= {"ratio": ratio, "clipped": (ratio != clipped).float()}
        kl = partial(policy.kl_to_base, denoise, output, noisy, steps)
        return penalised_loss(loss, part, self.beta, kl, **terms)
