"""A fine-tuning run before anything of it is loaded, and what it is found to need."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from t2ifb.diffusion.dry_run import Attention
from t2ifb.diffusion.ledger import Event, Operations
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.learning.refl import ReFL

TEXT, UNET, DECODER, REWARD = "text encoder", "U-Net", "decoder", "reward"
JUDGES, DIVERSITY = "judges", "diversity encoder"
WEIGHTS, OPTIMISER = "weights", "optimiser"
UPDATE, LOOK, ROUNDING = "update", "validation", "rounding"


@dataclass(frozen=True)
class Tuning:
    """A run as `FineTuning` and `FineTuningModule` take it; its scorers are on the `meta` device.

    Attributes:
        diffusion: Which model.
        lora: Which adapters.
        optimizer: Makes the optimiser; one that runs on `meta` tensors, so not a fused one.
        reward: What is raised.
        rollout: How training trajectories are made.
        sampling: How images are drawn when they are judged.
        judges: Other scorers, by name; they stay on the device with the reward.
        encoder: A `CLIPEncoder` that measures diversity, if there is one.
        batch_size: Prompts an update, of one process.
        micro_batch_size: Prompts in memory together.
        method: At which steps gradients are taken.
        samples_per_batch: Images that are drawn together.
        autocast: What mixed precision computes in; None for none.
        attention: `fused` as on a GPU, `plain` as on a CPU.
        on_gpu: Whether memory is that of a GPU, whose allocator keeps what is freed.
    """

    diffusion: DiffusionSource
    lora: LoRA
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer]
    reward: nn.Module
    rollout: Sampler
    sampling: Sampler
    judges: Mapping[str, nn.Module]
    encoder: Any = None
    batch_size: int = 1
    micro_batch_size: int | None = None
    method: ReFL = ReFL()
    samples_per_batch: int = 32
    autocast: torch.dtype | None = None
    attention: Attention = "fused"
    on_gpu: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.samples_per_batch < 1:
            raise ValueError(
                f"batch_size={self.batch_size} and samples_per_batch={self.samples_per_batch} must be at least 1"
            )

    @property
    def together(self) -> int:
        """Prompts whose gradients are in memory together."""
        return min(self.batch_size, self.micro_batch_size or self.batch_size)

    @property
    def steps_to_window(self) -> float:
        """Expected denoising steps of a rollout: those before its last gradient, all of them without gradient."""
        m = self.method.gradients_per_rollout
        first, last = self.method.window_of(self.rollout.num_inference_steps)
        return first + m * (last - first + 2) / (m + 1) - 1


@dataclass(frozen=True)
class Part:
    """One network, or what is tuned.

    Attributes:
        parameters: How many.
        trained: How many of them are tuned.
        weights: Bytes, buffers included.
        saved: Bytes that are kept for the backward pass; None where there is none.
        optimiser: Bytes of gradients and of the optimiser's state.
    """

    parameters: int
    trained: int
    weights: int
    saved: int | None = None
    optimiser: int = 0


@dataclass(frozen=True)
class Cost:
    """What updates need, or what judging needs.

    Attributes:
        peak: Bytes of all living tensors at the worst moment, weights included.
        at_peak: The same by part, weights left out: what each network had allocated, and `WORK`.
        denoising: Floating point operations of one denoising step of one sample, guidance included.
        sample: Those of all that is done once for one sample: an update's gradient at one step with the base model's
            call; or decoding and judging an image.
        parts: By name; of updates alone.
        phases: Allocations and frees by phase: `WEIGHTS`, `OPTIMISER` (its state) and `UPDATE` of updates; `LOOK` and
            `ROUNDING` of judging. Of two costs of one run, the numbers of the weights are the same.
    """

    peak: int
    at_peak: dict[str, int]
    denoising: Operations
    sample: Operations
    parts: dict[str, Part] = field(default_factory=dict)
    phases: dict[str, list[Event]] = field(default_factory=dict)
