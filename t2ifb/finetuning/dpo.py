"""Diffusion-DPO: preferences between two images, learned without a reward model in the loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import add_noise, denoising_error
from t2ifb.finetuning.algorithm import Experience, Loss, Work, mean_loss
from t2ifb.finetuning.groups import Pick, check_pick, draw_groups, learned_steps, noised, with_noise
from t2ifb.finetuning.policy import Policy


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation of diffusion models (arXiv 2311.12908, eq. 14).

        L = -E log σ(-beta_dpo / 2 · [(e(x_w) - e_base(x_w)) - (e(x_l) - e_base(x_l))]),
        e(x) = mean_D (ε - ε_θ(a x + s ε))², on a flow that of the velocity (`denoising_error`)

    e_base is the error of the model that tuning starts from: the base model, or that with the adapters of `start_from`.
    The noise at late steps is much harder to predict than at early ones, so late steps make up most of the loss. With
    `relative` both differences are divided by (e_base(x_w) + e_base(x_l)) / 2, so that all steps weigh alike.

    Both images of a pair have the same noise and the same step. With `group_size` the pairs are of the policy's own
    samples: K per prompt, ranked by the reward, each of the best `best` against each of the worst `best`; they are
    drawn anew after `updates` updates. Without it they come from a preference data set: each pair's loss has a weight
    (`PairDataModule`), and with a share p of the votes for the better image it is the expected loss over votes,
    -p log σ(m) - (1 - p) log σ(-m), as in the reward model's `bradley_terry_loss`.

    Attributes:
        group_size: K; None for the pairs of a data set.
        best: Number of samples at each end of a ranking that form pairs.
        pick: `reward` ranks own samples by the reward; `random` ranks them at random, the control.
        steps: First and last step, counted from 0, that noise is added at; None for all steps.
        updates: Updates per pool of own samples.
        pairs_per_update: Pairs per update from the pool, in each process.
        beta_dpo: Strength of the hold to the start, on mean errors: 5000 for D = 16,384 latent dimensions (Stable
            Diffusion v1.5), to be scaled with D; about 30 with `relative`.
        relative: Divide errors by those of the start.
        empty_prompts: Share of prompts replaced by the empty one, which keeps guidance working.
    """

    group_size: int | None = 8
    best: int = 3
    pick: Pick = "reward"
    steps: Sequence[int] | None = None
    updates: int = 50
    pairs_per_update: int = 32
    beta_dpo: float = 5000.0
    relative: bool = False
    empty_prompts: float = 0.1
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.beta_dpo <= 0 or not 0 <= self.empty_prompts < 1:
            raise ValueError(
                f"beta_dpo={self.beta_dpo} must be above 0 and empty_prompts={self.empty_prompts} from 0 to below 1"
            )
        check_pick(self.pick)
        if self.group_size is None and self.pick == "random":
            raise ValueError("pick='random' ranks own samples at random; give a group_size, or pick='reward'")
        if self.group_size is not None and not 1 <= self.best <= self.group_size // 2:
            raise ValueError(f"best={self.best} must be from 1 to half of group_size={self.group_size}")
        if self.updates < 1 or self.pairs_per_update < 1:
            raise ValueError(f"updates={self.updates} and pairs_per_update={self.pairs_per_update} must be at least 1")

    @property
    def data(self) -> Literal["prompts", "preference_pairs"]:
        """See `Algorithm.data`."""
        return "preference_pairs" if self.group_size is None else "prompts"

    def work(self, steps: int, prompts: int) -> Work:
        """See `Planned.work`. Without own samples a batch has given pairs instead of prompts."""
        if self.group_size is None:
            return Work(0, 0, prompts)
        samples = prompts * self.group_size
        return Work(samples * steps, samples, self.updates * self.pairs_per_update)

    def shortened(self) -> tuple["DPO", int]:
        """See `Planned.shortened`: the loss looks at single steps."""
        return replace(self, steps=None), 2

    @property
    def updates_per_experience(self) -> int:
        """See `Algorithm.updates_per_experience`."""
        return 1 if self.group_size is None else self.updates

    def check(self, steps: int) -> None:
        """See `Algorithm.check`."""
        learned_steps(self.steps, steps)

    def begin(self, policy: Policy, position: int) -> None:
        """Keep the adapters that tuning starts from, see `Begun`."""
        if position == 0:
            policy.keep_start()

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        """Latents (N, 2, C, H, W) of pairs, the better one first, with their weights; given pairs also with noise."""
        if self.group_size is None:
            return self.given(policy, batch)
        groups = draw_groups(policy, batch, self.group_size)
        ranked = groups.compared_by(self.pick)
        ends = [(win, lose) for win in range(self.best) for lose in range(1, self.best + 1)]
        pairs = torch.cat([ranked.order[:, [win, -lose]] for win, lose in ends])
        better, worse = ranked.rewards[pairs].unbind(1)
        # Equal rewards prefer neither. NaN ranks lowest, so a better sample with NaN means that too few have a number.
        pairs = pairs[(better > worse) | better.isnan()]
        prompts = [groups.prompts[int(row)] for row in pairs[:, 0]]
        ones = 1 + 0 * ranked.rewards[pairs[:, 0]]  # NaN stays NaN, so that the update is skipped and counted
        tensors = {"latents": groups.latents[pairs], "weight": ones, "share": ones}
        return Experience(prompts, tensors | {"steps": torch.full((len(prompts),), len(policy.schedule))})

    def given(self, policy: Policy, batch: PromptBatch) -> Experience:
        """The pairs of a batch. Their steps and noise are functions of (seed, position, number of the pair)."""
        assert batch.pairs is not None
        found = {"latents": batch.pairs.latents, "weight": batch.pairs.weights, "share": batch.pairs.shares}
        rows = Experience(batch.prompts, {name: tensor.to(policy.device) for name, tensor in found.items()})
        steps = learned_steps(self.steps, len(policy.schedule))
        return with_noise(rows, (policy.seed, batch.position), batch.numbers, batch.total, steps, self.empty_prompts)

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """Random pairs, each with a random step and noise; given pairs all together."""
        if self.group_size is None:
            yield experience
            return
        if not len(experience):  # all rewards are equal
            yield from [experience] * self.updates
            return
        steps = learned_steps(self.steps, int(experience["steps"][0]))
        yield from noised(experience, self.pairs_per_update, self.updates, steps, self.empty_prompts, seed)

    def loss(self, policy: Policy, part: Experience) -> Loss:
        """Equation 14 at the rows' steps and noise; logs the implicit accuracy, the share of positive margins."""
        errors = (self.errors(policy, part, latents) for latents in part["latents"].unbind(1))
        (better, base_better), (worse, base_worse) = errors
        unit = (base_better + base_worse) / 2 if self.relative else 1.0
        margin = -self.beta_dpo / 2 * ((better - base_better) - (worse - base_worse)) / unit
        share = part["share"]
        loss = -part["weight"] * (share * logsigmoid(margin) + (1 - share) * logsigmoid(-margin))
        return mean_loss(loss, part, accuracy=(margin > 0).float(), margin=margin)

    @staticmethod
    def errors(policy: Policy, part: Experience, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's `denoising_error` (B,), and that (B,) of the model that tuning started from."""
        noise, steps = part["noise"], part.step
        level = policy.schedule.level(steps, noise)
        noisy = add_noise(latents, noise, *level)
        denoise = policy.denoiser(part.prompts, guided=False)
        with policy.beginning():
            reference = denoise(noisy, steps)
        outputs = denoise(noisy, steps), reference
        prediction = policy.schedule.prediction
        tuned, base = (denoising_error(each, latents, noise, *level, prediction) for each in outputs)
        return tuned, base
