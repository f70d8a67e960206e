"""What a fine-tuning algorithm is: what it collects, how it is split into updates, and what it minimises."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.schedule import Index

if TYPE_CHECKING:
    from t2ifb.finetuning.policy import Policy


@dataclass(frozen=True)
class Experience:
    """N rows that an algorithm learns from, such as latents at a step with their prompt.

    An algorithm decides what a row is and which tensors it has. An experience can be indexed, and its `state` can be
    saved and restored, so that a killed run resumes inside it.

    Attributes:
        prompts: N texts.
        tensors: By name, (N, ...) each.
        total: Rows that the loss is the mean over: those of the whole minibatch, over all parts and processes.
    """

    prompts: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    total: int = 0

    def __post_init__(self) -> None:
        if wrong := {name: len(each) for name, each in self.tensors.items() if len(each) != len(self.prompts)}:
            raise ValueError(f"expected {len(self.prompts)} rows, one for each prompt, got {wrong}")

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self.tensors[name]

    def rows(self, index: slice | Sequence[int]) -> Self:
        """Some rows, by their numbers."""
        if isinstance(index, slice):
            return type(self)(self.prompts[index], {k: v[index] for k, v in self.tensors.items()}, self.total)
        numbers = list(index)
        tensors = {
            name: each[torch.tensor(numbers, dtype=torch.long, device=each.device)]
            for name, each in self.tensors.items()
        }
        return type(self)([self.prompts[n] for n in numbers], tensors, self.total)

    def parts(self, size: int | None) -> Iterator[Self]:
        """The same in parts of at most `size` rows that are in memory together; `None` is one part."""
        size = size or max(1, len(self))
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    @property
    def step(self) -> Index:
        """The rows' denoising step, from the tensor `step` (N,) on the CPU: one number if it is the same for all."""
        steps = [int(value) for value in self.tensors["step"].tolist()]
        return steps[0] if len(set(steps)) == 1 else steps

    def state(self) -> dict[str, Any]:
        """Everything as plain containers and tensors on the CPU."""
        return {"prompts": self.prompts, "tensors": {k: v.cpu() for k, v in self.tensors.items()}, "total": self.total}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device | str) -> Self:
        """What `state` gave; tensors of floating point numbers on a device, whole numbers on the CPU."""
        tensors = {k: v.to(device) if v.is_floating_point() else v for k, v in state["tensors"].items()}
        return cls(list(state["prompts"]), tensors, state["total"])


@dataclass(frozen=True)
class Loss:
    """What a part of a minibatch costs.

    Attributes:
        total: Scalar with gradient, the part's share of the minibatch mean: the sum over its rows divided by
            `Experience.total`. Parts and processes therefore add up to one update, however the rows are shared.
        terms: (B,) by name, of the part's rows; their means are logged as `train/<name>`.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Algorithm(Protocol):
    """How samples become updates; the loop around it is the same for every algorithm (`FineTuningModule`)."""

    @property
    def data(self) -> Literal["prompts", "preference_pairs"]:
        """What it starts from: prompts, or pairs of images of which one is preferred."""
        ...

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward has to be differentiable with respect to the images."""
        ...

    @property
    def updates_per_experience(self) -> int:
        """How many minibatches `minibatches` gives."""
        ...

    def check(self, steps: int) -> None:
        """Raise a `ValueError` if the settings do not fit a schedule of so many steps."""
        ...

    def collect(self, policy: "Policy", batch: PromptBatch) -> Experience:
        """What is learned from a batch; called without gradient."""
        ...

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """The rows of each update, a function of the experience and a seed of its own. Each is one optimiser step."""
        ...

    def loss(self, policy: "Policy", part: Experience) -> Loss:
        """The equation of the paper on rows that are in memory together."""
        ...


def check_weights(alpha: float, beta: float) -> None:
    """Raise a `ValueError` if a weight of the loss is negative."""
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")


def mean_loss(rows: Tensor, part: Experience, **terms: Tensor) -> Loss:
    """The loss of rows (B,) of a part, with what is logged of them.

    A loss that is not finite makes the whole gradient NaN, also where the gradient of the broken term would be finite:
    then the update is skipped, under a GradScaler too.
    """
    total = rows.sum() / part.total
    return Loss(total * (1 + 0 * total.detach()), {**terms, "loss": rows})


def by_step(name: str, values: Tensor, steps: Index) -> dict[str, Tensor]:
    """Values (B,) of rows by the denoising step they belong to, such as `kl_17`."""
    if isinstance(steps, int):
        return {f"{name}_{steps}": values}
    rows = {step: [row for row, of in enumerate(steps) if of == step] for step in sorted(set(steps))}
    return {f"{name}_{step}": values[some] for step, some in rows.items()}
