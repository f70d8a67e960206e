"""Description of a fine-tuning run before loading, and its measured costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import ModelSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.algorithm import Planned, Work
from t2ifb.finetuning.refl import ReFL
from t2ifb.profiling.memory_tracker import Event, Operations
from t2ifb.profiling.meta_mode import Attention

REWARD, JUDGES, DIVERSITY = "reward", "judges", "diversity encoder"
WEIGHTS, OPTIMISER = "weights", "optimiser"
UPDATE, LOOK, ROUNDING = "update", "validation", "rounding"


@dataclass(frozen=True)
class RunSpec:
    """A run with the arguments of `FineTuner` and `FineTuningModule`. Its scorers are on the `meta` device.

    Attributes:
        diffusion: Source of the diffusion model.
        lora: Configuration of the adapters.
        optimizer: Builds the optimiser. It must run on `meta` tensors, so not a fused one.
        reward: The reward to maximise.
        rollout: Sampler of training rollouts.
        sampling: Sampler of evaluation images.
        judges: Other scorers by name; they stay on the device with the reward.
        encoder: A `CLIPEncoder` for the diversity, or None.
        batch_size: Prompts per update, of one process.
        micro_batch_size: Rows of the loss in memory together.
        algorithm: The algorithm.
        samples_per_batch: Images per sampling batch.
        guidance_scales: Scales at which the run's end compares two models.
        best_of: Images that the reward chooses from in that comparison.
        autocast: Compute type of mixed precision; None without it.
        attention: `fused` as on a GPU, `plain` as on a CPU.
        on_gpu: Whether memory is a GPU's, whose allocator caches freed blocks.
    """

    diffusion: ModelSource
    lora: LoRA
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer]
    reward: nn.Module
    rollout: Sampler
    sampling: Sampler
    judges: Mapping[str, nn.Module]
    encoder: Any = None
    batch_size: int = 1
    micro_batch_size: int | None = None
    algorithm: Planned = ReFL()
    samples_per_batch: int = 32
    guidance_scales: Sequence[float] = ()
    best_of: int = 1
    autocast: torch.dtype | None = None
    attention: Attention = "fused"
    on_gpu: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.samples_per_batch < 1:
            raise ValueError(
                f"batch_size={self.batch_size} and samples_per_batch={self.samples_per_batch} must be at least 1"
            )

    @property
    def work(self) -> Work:
        """Expected calls for one experience."""
        return self.algorithm.work(self.rollout.num_inference_steps, self.batch_size)

    @property
    def drawing(self) -> Sampler:
        """The sampler of rollouts, with the algorithm's `rollout_scale` where it has a guidance of its own."""
        scale = getattr(self.algorithm, "rollout_scale", self.rollout.guidance_scale)
        return replace(self.rollout, guidance_scale=scale)

    @property
    def cheapest(self) -> "RunSpec | None":
        """The run with the cheapest updates alone, by the algorithm's `cheapest`; None if all updates cost the same.

        `shortened` gives the dearest. Costs between them are equally frequent, so that the mean is that of these two.
        """
        found = getattr(self.algorithm, "cheapest", lambda: None)()
        return None if found is None else replace(self, algorithm=found)


@dataclass(frozen=True)
class ModulePart:
    """Costs of one network, or of the trained weights.

    Attributes:
        parameters: Number of parameters.
        trained: Number of trained parameters.
        weights: Bytes of the weights, including buffers.
        saved: Bytes saved for the backward pass; None without one.
        optimiser: Bytes of gradients and of the optimiser's state.
    """

    parameters: int
    trained: int
    weights: int
    saved: int | None = None
    optimiser: int = 0


@dataclass(frozen=True)
class Cost:
    """Costs of updates or of evaluations.

    Attributes:
        peak: Peak bytes of live tensors, including weights.
        at_peak: Bytes at the peak by part, without weights: allocations of each network, and `WORK`.
        denoising: Floating point operations of one denoising step of one sample, including guidance.
        sample: Operations per sample: in updates, the loss of one row and its gradient; in evaluations, decoding and
            scoring an image.
        scoring: Operations of decoding and rewarding an image without gradient; only for updates.
        rows: Rows of the loss in memory together; only for updates.
        parts: Costs by network; only for updates.
        phases: Allocations and frees by phase: `WEIGHTS`, `OPTIMISER` (its state) and `UPDATE` for updates; `LOOK` and
            `ROUNDING` for evaluations. Two costs of one run share the block ids of the weights.
    """

    peak: int
    at_peak: dict[str, int]
    denoising: Operations
    sample: Operations
    scoring: Operations = Operations()
    rows: int = 0
    parts: dict[str, ModulePart] = field(default_factory=dict)
    phases: dict[str, list[Event]] = field(default_factory=dict)
