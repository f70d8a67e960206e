"""Settings by which a fine-tuning run would fit into less memory, each tried by measuring the run with it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from t2ifb.data.devices import has_bf16
from t2ifb.diffusion.geometry import SD15, TAESD_ID, geometry_of
from t2ifb.learning.cost import UNET, Cost, Tuning
from t2ifb.learning.gpu_memory import LIBRARIES, pool_size
from t2ifb.learning.refl_cost import judging_cost, update_cost

WORTH = 0.005
"""A setting is proposed if it saves at least this part of the limit."""
AGAIN = "U-Net and decoder are computed once more for each gradient"


@dataclass(frozen=True)
class Measured:
    """A run and what it needs.

    Attributes:
        tuning: The run.
        images: How many a validation looks at.
        update: What an update needs.
        judging: What a validation needs.
    """

    tuning: Tuning
    images: int
    update: Cost
    judging: Cost

    @classmethod
    def of(cls, tuning: Tuning, images: int, update: Cost | None = None, judging: Cost | None = None) -> "Measured":
        """Measure a run, but for what is known already."""
        update = update or update_cost(tuning)
        return cls(tuning, images, update, judging or judging_cost(tuning, images, update.parts[UNET].optimiser))

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of the run."""
        return max(self.update.peak, self.judging.peak)

    @property
    def weights(self) -> int:
        """Bytes of all networks."""
        return sum(part.weights for part in self.update.parts.values())

    @cached_property
    def pool(self) -> int:
        """Bytes that tensors need of the device: on a GPU the allocator's pool, on a CPU the peak."""
        return pool_size(self.update, self.judging) if self.tuning.on_gpu else self.peak

    @property
    def needed(self) -> float:
        """Bytes of the device: the pool, and on a GPU what libraries take."""
        return self.pool + (LIBRARIES if self.tuning.on_gpu else 0)

    def pool_of(self, cost: Cost) -> float:
        """The share of the pool that one phase needs: its peak, and what the pool holds beyond the run's peak."""
        return cost.peak * self.pool / self.peak

    def excess(self, limit: float) -> float:
        """Bytes by which the two phases are beyond a limit of the pool, added up."""
        return sum(max(0.0, self.pool_of(cost) - limit) for cost in (self.update, self.judging))


@dataclass(frozen=True)
class Saving:
    """A setting, and the run with it and with those proposed before it.

    Attributes:
        argument: As it is given on the command line.
        price: What it costs.
        run: The run with it.
    """

    argument: str
    price: str
    run: Measured


def savings(run: Measured, limit: float) -> list[Saving]:
    """The settings by which a run would fit, the cheapest first; each is taken on top of those before it.

    Those that do not help are left out. The run of the last one is the best that was found, whether it fits or not.

    Args:
        run: As it is configured.
        limit: Bytes that the pool may have.
    """
    found: list[Saving] = []
    for candidate in CANDIDATES:
        saving = candidate(run, limit) if run.excess(limit) else None
        if saving is not None and run.excess(limit) - saving.run.excess(limit) > WORTH * limit:
            found.append(saving)
            run = saving.run
    return found


def _fewer(setting: str, run: Measured, limit: float) -> Saving | None:
    """The largest number of samples at a time with which one phase is within the limit, or 1.

    What lies on top of the weights grows with the number, so that few have to be tried.
    """
    of_update = setting == "micro_batch_size"
    count = run.tuning.together if of_update else min(run.images, run.tuning.samples_per_batch)
    known: dict[str, Any] = {"judging": run.judging} if of_update else {"update": run.update}
    changed = run
    while count > 1 and (pool := changed.pool_of(changed.update if of_update else changed.judging)) > limit:
        count = max(1, min(count - 1, int(count * (limit - run.weights) / (pool - run.weights))))
        changes: dict[str, Any] = {setting: count}
        changed = Measured.of(replace(run.tuning, **changes), run.images, **known)
    return None if changed is run else Saving(f"algorithm.{setting}={count}", "less is computed at a time", changed)


def _no_diversity(run: Measured, limit: float) -> Saving | None:
    if run.tuning.encoder is None:
        return None
    changed = Measured.of(replace(run.tuning, encoder=None), run.images)
    return Saving("algorithm.diversity=null", "validations do not tell diversity", changed)


def _other_model(setting: str, usual: Any, value: Any, price: str, run: Measured, limit: float) -> Saving | None:
    """Another value of a setting of the diffusion model that has its usual one."""
    source = run.tuning.diffusion
    if getattr(source, setting) != usual or (value == "bf16" and not has_bf16()):
        return None
    changed = Measured.of(replace(run.tuning, diffusion=replace(source, **{setting: value})), run.images)
    return Saving(f"diffusion.{setting}={str(value).lower()}", price, changed)


def _tiny_decoder(run: Measured, limit: float) -> Saving | None:
    """TAESD, which knows the latents of Stable Diffusion's first versions and no others."""
    scale = SD15.vae["scaling_factor"]
    if geometry_of(run.tuning.diffusion).vae.get("scaling_factor", scale) != scale:
        return None
    return _other_model("tiny_decoder", None, TAESD_ID, "the reward sees coarser images", run, limit)


CANDIDATES: tuple[Callable[[Measured, float], Saving | None], ...] = (
    partial(_fewer, "samples_per_batch"),
    partial(_other_model, "gradient_checkpointing", False, True, AGAIN),
    partial(_fewer, "micro_batch_size"),
    partial(_other_model, "decoder_precision", "fp32", "bf16", "images are rounded a little"),
    _no_diversity,
    partial(_other_model, "precision", "fp32", "bf16", "the U-Net rounds"),
    partial(_other_model, "precision", "fp32", "fp16", "the U-Net rounds"),
    _tiny_decoder,
)
