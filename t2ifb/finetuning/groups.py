"""Samples of one prompt that are compared with each other: drawing, advantages, ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.finetuning.algorithm import Experience, check_window
from t2ifb.finetuning.policy import Policy
from t2ifb.utils.random_streams import Stream, gaussian, generator

Deviation = Literal["group", "batch"]
"""Standard deviation that advantages are divided by: that of each group, or that of all rewards of a batch, in each
process of its share."""
Pick = Literal["reward", "random"]
"""What samples of a prompt are compared by: their rewards, or nothing, which is the control."""
POOL_DRAW = 2**20
"""Draw index of the noise that is added to samples of a pool; rollouts have indices up to their number of steps."""
SMALLEST_DEVIATION = 1e-4
"""Added to a deviation, as in Flow-GRPO, so that a group of nearly equal rewards has small advantages."""


@dataclass(frozen=True)
class Groups:
    """Finished samples, K consecutive ones per prompt.

    Attributes:
        prompts: P·K texts.
        latents: (P·K, C, H, W), the samples.
        rewards: (P·K,).
        size: K.
    """

    prompts: list[str]
    latents: Tensor
    rewards: Tensor
    size: int

    @property
    def order(self) -> Tensor:
        """(P, K): indices of each prompt's samples from the highest to the lowest reward; NaN is the lowest."""
        values = self.rewards.nan_to_num(nan=-torch.inf).unflatten(0, (-1, self.size))
        ranked = values.argsort(dim=1, descending=True, stable=True)
        return ranked + torch.arange(0, len(self.prompts), self.size, device=ranked.device)[:, None]

    def compared_by(self, pick: Pick) -> "Groups":
        """The samples with the rewards that they are compared by.

        With `random`, sample k of a prompt has the prompt's k-th highest reward instead of its own. A sample does not
        depend on its number, so this is a random order.
        """
        if pick == "reward":
            return self
        shuffled = self.rewards.unflatten(0, (-1, self.size)).sort(1, descending=True).values
        return replace(self, rewards=shuffled.flatten())


def repeated(batch: PromptBatch, size: int) -> PromptBatch:
    """The batch with each prompt `size` times in a row. Sample k of prompt n has the number n · size + k."""
    prompts = [prompt for prompt in batch.prompts for _ in range(size)]
    numbers = [number * size + k for number in batch.numbers for k in range(size)]
    return replace(batch, prompts=prompts, numbers=numbers, total=batch.total * size)


def draw_groups(policy: Policy, batch: PromptBatch, size: int) -> Groups:
    """Draw and score K samples for each prompt of a batch, without gradient and in parts that fit memory."""
    samples = repeated(batch, size)
    latents = torch.cat([policy.draw(part) for part in samples.parts(policy.samples_per_batch)])
    return Groups(samples.prompts, latents, policy.scores(latents, samples.prompts), size)


def noised(
    rows: Experience, count: int, updates: int, steps: tuple[int, int], empty: float, seed: int
) -> Iterator[Experience]:
    """Minibatches of random rows with noise to add: `noise` (B, C, H, W) and the schedule's `step` (B,).

    Args:
        rows: N rows with `latents` (N, C, H, W) or, for pairs, (N, 2, C, H, W). Both of a pair get the same noise.
        count: B, rows per minibatch. Rows are used in random order, all of them before one is used again.
        updates: Number of minibatches.
        steps: First and last step that may be drawn.
        empty: Probability that a prompt is replaced by the empty one, which keeps guidance working.
        seed: Seed of everything that is drawn.
    """
    turns = range(-(-count * updates // len(rows)))
    order = np.concatenate([generator(Stream.POOL, seed, turn).permutation(len(rows)) for turn in turns])
    for update in range(updates):
        chosen = rows.rows(order[update * count : (update + 1) * count].tolist())
        yield with_noise(chosen, (seed, update), range(count), count, steps, empty)


def with_noise(
    rows: Experience, key: tuple[int, int], numbers: Sequence[int], total: int, steps: tuple[int, int], empty: float
) -> Experience:
    """Rows with `noise` (B, C, H, W) and the schedule's `step` (B,), and with some prompts emptied.

    What is drawn for a row is a function of the key and the row's number.

    Args:
        rows: B rows with `latents` (B, ..., C, H, W).
        key: Seed and position.
        numbers: The rows' numbers in a batch of several processes.
        total: Number of rows of that batch.
        steps: First and last step that may be drawn.
        empty: Probability that a prompt is replaced by the empty one.
    """
    drawn, some = generator(Stream.POOL_STEPS, *key), list(numbers)
    step = torch.from_numpy(drawn.integers(steps[0], steps[1] + 1, size=total)[some])
    dropped = (drawn.random(total) < empty)[some]
    prompts = ["" if drop else prompt for drop, prompt in zip(dropped, rows.prompts, strict=True)]
    latents = rows["latents"]
    noise = gaussian([(*key, number) for number in some], POOL_DRAW, latents.shape[-3:]).to(latents.device)
    return replace(rows, prompts=prompts, tensors={**rows.tensors, "noise": noise, "step": step})


def learned_steps(steps: Sequence[int] | None, count: int) -> tuple[int, int]:
    """First and last step, of a schedule of `count`, that samples of a pool are learned at; all steps for None.

    Raises:
        ValueError: They are outside the schedule.
    """
    return check_window((0, count - 1) if steps is None else steps, count, name="steps")


def check_pick(pick: str) -> None:
    """Raise a `ValueError` if samples cannot be compared so."""
    if pick not in get_args(Pick):
        raise ValueError(f"pick must be {' or '.join(get_args(Pick))}, not {pick!r}")


def check_deviation(deviation: str) -> None:
    """Raise a `ValueError` if advantages cannot be divided by it."""
    if deviation not in get_args(Deviation):
        raise ValueError(f"deviation must be {' or '.join(get_args(Deviation))}, not {deviation!r}")


def equal_parts(samples: int, most: int, updates: int) -> int:
    """Largest number of samples, at most `most`, that cuts all samples into equal parts, at least one per update.

    Raises:
        ValueError: There are fewer samples than updates.
    """
    if samples < updates:
        raise ValueError(f"updates={updates} need at least as many samples, not {samples}; raise batch_size")
    return max(size for size in range(1, min(most, samples // updates) + 1) if samples % size == 0)


def advantages(rewards: Tensor, size: int, deviation: Deviation = "group", most: float = 5.0) -> Tensor:
    """Advantages (P·K,) of samples within their prompt's group: (reward - mean of the group) / deviation.

    Args:
        rewards: (P·K,), K consecutive ones per prompt.
        size: K.
        deviation: Deviation of each group (GRPO, arXiv 2402.03300), or of all rewards (Flow-GRPO, arXiv 2505.05470).
        most: Largest absolute value; advantages are clipped to it.
    """
    groups = rewards.float().unflatten(0, (-1, size))
    scale = groups.std(1, keepdim=True, correction=0) if deviation == "group" else groups.std(correction=0)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (scale + SMALLEST_DEVIATION)).clamp(-most, most).flatten()


def without_variance(rewards: Tensor, size: int) -> Tensor:
    """(P·K,): 1 where all samples of a group have the same reward, from which nothing can be learned; 0 elsewhere."""
    groups = rewards.unflatten(0, (-1, size))
    return (groups.amax(1) == groups.amin(1)).float().repeat_interleave(size)
