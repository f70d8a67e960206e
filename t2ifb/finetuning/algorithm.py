"""The interface of fine-tuning algorithms: what they collect, how they split it into updates, and their loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.schedule import Index
from t2ifb.utils.random_streams import Stream, generator

if TYPE_CHECKING:
    from t2ifb.finetuning.policy import Policy


@dataclass(frozen=True)
class Experience:
    """N rows that an algorithm learns from, such as latents at a step with their prompt.

    The algorithm defines the rows and their tensors. An experience can be indexed, and its `state` can be saved and
    restored, so that a killed run resumes between the updates of one experience.

    Attributes:
        prompts: N texts.
        tensors: Tensors (N, ...) by name.
        total: Number of rows of the whole minibatch, over all parts and processes; the loss is the mean over them.
        part_size: Size of the consecutive parts that were computed together and have to be computed together again;
            None if that does not matter.
    """

    prompts: list[str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    total: int = 0
    part_size: int | None = None

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
            tensors = {name: each[index] for name, each in self.tensors.items()}
            return replace(self, prompts=self.prompts[index], tensors=tensors)
        numbers = list(index)
        tensors = {
            name: each[torch.tensor(numbers, dtype=torch.long, device=each.device)]
            for name, each in self.tensors.items()
        }
        return replace(self, prompts=[self.prompts[n] for n in numbers], tensors=tensors)

    def parts(self, size: int | None) -> Iterator[Self]:
        """The rows in parts of at most `size`, or of `part_size` if that is set; `None` gives one part."""
        size = self.part_size or size or max(1, len(self))
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    @property
    def step(self) -> Index:
        """The rows' denoising step, from the tensor `step` (N,) on the CPU: one number if it is the same for all."""
        steps = [int(value) for value in self.tensors["step"].tolist()]
        return steps[0] if len(set(steps)) == 1 else steps

    def state(self) -> dict[str, Any]:
        """Everything as plain containers and tensors on the CPU."""
        return vars(self) | {"tensors": {name: each.cpu() for name, each in self.tensors.items()}}

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device | str) -> Self:
        """The experience of a `state`. Floating-point tensors are moved to a device; integers stay on the CPU."""
        tensors = {k: v.to(device) if v.is_floating_point() else v for k, v in state["tensors"].items()}
        return cls(**{**state, "tensors": tensors})


@dataclass(frozen=True)
class Loss:
    """The loss of a part of a minibatch.

    Attributes:
        total: Scalar with gradient, the part's share of the minibatch mean: the sum over its rows divided by
            `Experience.total`. Parts and processes therefore add up to one update, however the rows are shared.
        terms: Values (B,) of the part's rows by name; their means are logged as `train/<name>`.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Algorithm(Protocol):
    """A fine-tuning algorithm. `FineTuningModule` is the loop that all algorithms share."""

    @property
    def data(self) -> Literal["prompts", "preference_pairs"]:
        """Training data: prompts, or pairs of images with one preferred image each."""
        ...

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward has to be differentiable with respect to the images."""
        ...

    @property
    def updates_per_experience(self) -> int:
        """Number of minibatches per experience."""
        ...

    def check(self, steps: int) -> None:
        """Raise a `ValueError` if the settings do not fit a schedule with this number of steps."""
        ...

    def collect(self, policy: "Policy", batch: PromptBatch) -> Experience:
        """The experience of a batch of prompts; called without gradient."""
        ...

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        """The rows of each update, one optimiser step each: a function of the experience and the seed."""
        ...

    def loss(self, policy: "Policy", part: Experience) -> Loss:
        """The equation of the paper, on a part of a minibatch."""
        ...


@runtime_checkable
class Begun(Protocol):
    """An algorithm with state that all processes have to change alike."""

    def begin(self, policy: "Policy", position: int) -> None:
        """Called before `collect` at each position, also in a process without a share of the batch."""
        ...


@dataclass(frozen=True)
class Work:
    """Expected calls for one experience of an algorithm, over all its prompts and updates.

    Attributes:
        steps: Guided denoising steps of a sample without gradient.
        images: Images that are decoded and rewarded without gradient.
        rows: Rows that the loss is computed for.
    """

    steps: float
    images: int
    rows: int


class Planned(Algorithm, Protocol):
    """An algorithm whose memory and time `t2ifb.plan` can predict."""

    def work(self, steps: int, prompts: int) -> Work:
        """Calls for an experience of so many prompts on a schedule of so many steps."""
        ...

    def shortened(self) -> tuple[Self, int]:
        """An algorithm with the same memory of an update, and the steps of the shortest schedule that it needs."""
        ...


def draws_in_each_process(algorithm: Algorithm) -> bool:
    """Whether an update depends on the number of processes: numbers of rows, or a deviation, of each process."""
    if algorithm.data == "preference_pairs":
        return False
    of_process = (getattr(algorithm, name, None) for name in ("pairs_per_update", "samples_per_update"))
    return any(of_process) or getattr(algorithm, "deviation", "") == "batch"


def check_weights(alpha: float, beta: float) -> None:
    """Raise a `ValueError` if a weight of the loss is negative."""
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")


def check_window(
    window: Sequence[int], steps: int, count: int = 1, counted: str = "", name: str = "window"
) -> tuple[int, int]:
    """First and last step of a window within T steps.

    Args:
        window: First and last step, counted from 0.
        steps: T.
        count: Number of different steps that are drawn from the window.
        counted: The argument with that number, for the message.
        name: The argument with the window, for the message.

    Raises:
        ValueError: The window is outside the schedule, or too short.
    """
    if len(window) != 2 or not 0 <= window[0] <= window[1] < steps:
        raise ValueError(f"{name}={list(window)}: first and last step must lie within the steps 0 to {steps - 1}")
    first, last = window
    if not 1 <= count <= last - first + 1:
        raise ValueError(f"{counted}={count} must be from 1 to the {last - first + 1} steps of {name}={[first, last]}")
    return first, last


def drawn_steps(window: tuple[int, int], count: int, stream: Stream, *key: int) -> list[int]:
    """Different steps of a window, rising: a function of a random stream and its key."""
    first, last = window
    drawn = generator(stream, *key).choice(last - first + 1, count, replace=False)
    return sorted(first + int(number) for number in drawn)


def mean_loss(rows: Tensor, part: Experience, **terms: Tensor) -> Loss:
    """The loss of the rows (B,) of a part, with its logged terms.

    A loss that is not finite makes the whole gradient NaN, even if the gradient of its term is finite. The update is
    then skipped, also under a GradScaler.
    """
    total = rows.sum() / part.total
    return Loss(total * (1 + 0 * total.detach()), {**terms, "loss": rows})


def penalised_loss(rows: Tensor, part: Experience, beta: float, kl: Callable[[], Tensor], **terms: Tensor) -> Loss:
    """`mean_loss` of the rows plus beta times their KL divergence, which is computed only if beta is above 0."""
    if not beta:
        return mean_loss(rows, part, **terms)
    nats = kl()
    return mean_loss(rows + beta * nats, part, **terms, kl=nats, **by_step("kl", nats, part.step))


def by_step(name: str, values: Tensor, steps: Index) -> dict[str, Tensor]:
    """Values (B,) of rows by the denoising step they belong to, such as `kl_17`."""
    if isinstance(steps, int):
        return {f"{name}_{steps}": values}
    rows = {step: [row for row, of in enumerate(steps) if of == step] for step in sorted(set(steps))}
    return {f"{name}_{step}": values[some] for step, some in rows.items()}
