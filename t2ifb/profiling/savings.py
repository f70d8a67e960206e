"""Settings that reduce a fine-tuning run's memory, each measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from t2ifb.diffusion.model import DENOISER
from t2ifb.profiling.cost import Cost, RunSpec
from t2ifb.profiling.gpu_memory import LIBRARIES, pool_size
from t2ifb.profiling.update_cost import judging_cost, update_cost
from t2ifb.utils.devices import has_bf16

WORTH = 0.005
"""Minimum saving of a proposed setting, relative to the limit."""
SMALLER = "smaller batches in memory"
AGAIN = "denoiser and decoder are computed twice for each gradient"


@dataclass(frozen=True)
class MemoryEstimate:
    """A run and its costs.

    Attributes:
        tuning: The run.
        images: Images per validation.
        update: Cost of an update.
        judging: Cost of a validation, with the peak of the end's evaluations if that is higher.
        at_end: Most images of an evaluation at the run's end.
    """

    tuning: RunSpec
    images: int
    update: Cost
    judging: Cost
    at_end: int = 0

    @classmethod
    def of(
        cls, tuning: RunSpec, images: int, at_end: int = 0, update: Cost | None = None, judging: Cost | None = None
    ) -> "MemoryEstimate":
        """Measure the costs that are not given."""
        update, most = update or update_cost(tuning), max(images, at_end)
        judging = judging or judging_cost(tuning, most, update.parts[DENOISER].optimiser)
        return cls(tuning, images, update, judging, at_end)

    def changed(self, tuning: RunSpec, judging: Cost | None = None) -> "MemoryEstimate":
        """The run with other settings; measured are the costs that are not given."""
        return MemoryEstimate.of(tuning, self.images, self.at_end, judging=judging)

    @property
    def peak(self) -> int:
        """Peak bytes of the run."""
        return max(self.update.peak, self.judging.peak)

    @property
    def weights(self) -> int:
        """Bytes of all networks' weights."""
        return sum(part.weights for part in self.update.parts.values())

    @cached_property
    def pool(self) -> int:
        """Device bytes for tensors: on a GPU the allocator's pool, on a CPU the peak."""
        return pool_size(self.update, self.judging) if self.tuning.on_gpu else self.peak

    @property
    def needed(self) -> float:
        """Device bytes in total: the pool and, on a GPU, the libraries."""
        return self.pool + (LIBRARIES if self.tuning.on_gpu else 0)

    def pool_of(self, cost: Cost) -> float:
        """Pool bytes of one phase: its peak plus the pool's overhead over the run's peak."""
        return cost.peak * self.pool / self.peak

    def excess(self, limit: float) -> float:
        """Sum of the bytes by which the two phases exceed a limit of the pool."""
        return sum(max(0.0, self.pool_of(cost) - limit) for cost in (self.update, self.judging))


@dataclass(frozen=True)
class Suggestion:
    """A setting, and the run with it and all settings proposed before.

    Attributes:
        argument: Command-line argument.
        price: Disadvantage of the setting.
        run: The run with the setting.
    """

    argument: str
    price: str
    run: MemoryEstimate


def savings(run: MemoryEstimate, limit: float) -> list[Suggestion]:
    """Settings that make a run fit, cheapest first. Each is applied on top of the previous ones.

    Settings without effect are omitted. The last run is the best one found, whether it fits or not.

    Args:
        run: The run as configured.
        limit: Maximum bytes of the pool.
    """
    found: list[Suggestion] = []
    for candidate in CANDIDATES:
        saving = candidate(run, limit) if run.excess(limit) else None
        if saving is not None and run.excess(limit) - saving.run.excess(limit) > WORTH * limit:
            found.append(saving)
            run = saving.run
    return found


def _fewer_rows(run: MemoryEstimate, limit: float) -> Suggestion | None:
    """Largest number of rows of the loss in memory together that keeps updates within the limit, or 1.

    Memory beyond the weights grows with the number, so few values must be tried.
    """
    count, changed = run.update.rows, run
    while count > 1 and (pool := changed.pool_of(changed.update)) > limit:
        count = _reduced(count, pool, run.weights, limit)
        changed = run.changed(replace(run.tuning, micro_batch_size=count), run.judging)
    return None if changed is run else Suggestion(f"algorithm.micro_batch_size={count}", SMALLER, changed)


def _fewer_samples(run: MemoryEstimate, limit: float) -> Suggestion | None:
    """Largest number of samples drawn together that keeps evaluations within the limit, or 1.

    Updates that draw and score samples are kept within it too, as far as these are what they need memory for.
    """
    drawn = run.tuning.work.images
    count, changed = min(max(run.images, run.at_end, drawn), run.tuning.samples_per_batch), run

    def pool(of: MemoryEstimate) -> float:
        return max(of.pool_of(of.judging), of.pool_of(of.update) if drawn else 0.0)

    while count > 1 and pool(changed) > limit:
        fewer = _reduced(count, pool(changed), run.weights, limit)
        other = run.changed(replace(run.tuning, samples_per_batch=fewer))
        if other.excess(limit) >= changed.excess(limit):
            break
        count, changed = fewer, other
    return None if changed is run else Suggestion(f"algorithm.samples_per_batch={count}", SMALLER, changed)


def _reduced(count: int, pool: float, weights: int, limit: float) -> int:
    """A smaller number, by the memory beyond the weights."""
    return max(1, min(count - 1, int(count * (limit - weights) / (pool - weights))))


def _no_diversity(run: MemoryEstimate, limit: float) -> Suggestion | None:
    if run.tuning.encoder is None:
        return None
    changed = run.changed(replace(run.tuning, encoder=None))
    return Suggestion("algorithm.diversity=null", "validations do not measure diversity", changed)


def _other_model(
    setting: str, usual: Any, value: Any, price: str, run: MemoryEstimate, limit: float
) -> Suggestion | None:
    """Change a setting of the diffusion model that has its default value."""
    source = run.tuning.diffusion
    if getattr(source, setting) != usual or (value == "bf16" and not has_bf16()):
        return None
    changed = run.changed(replace(run.tuning, diffusion=replace(source, **{setting: value})))
    return Suggestion(f"diffusion.{setting}={str(value).lower()}", price, changed)


def _tiny_decoder(run: MemoryEstimate, limit: float) -> Suggestion | None:
    """Use the published tiny decoder for the model's latents, if there is one."""
    if (tiny := run.tuning.diffusion.fitting_tiny_decoder()) is None:
        return None
    return _other_model("tiny_decoder", None, tiny, "the reward is computed on coarser images", run, limit)


CANDIDATES: tuple[Callable[[MemoryEstimate, float], Suggestion | None], ...] = (
    _fewer_samples,
    partial(_other_model, "gradient_checkpointing", False, True, AGAIN),
    _fewer_rows,
    partial(_other_model, "decoder_precision", "fp32", "bf16", "images are slightly rounded"),
    _no_diversity,
    partial(_other_model, "precision", "fp32", "bf16", "the denoiser is rounded"),
    partial(_other_model, "precision", "fp32", "fp16", "the denoiser is rounded"),
    _tiny_decoder,
)
