"""Settings by which a fine-tuning run would fit into less memory, each tried by measuring the run with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from t2ifb.diffusion.geometry import TAESD_ID
from t2ifb.learning.cost import DIVERSITY, Cost, Tuning
from t2ifb.learning.refl_cost import judging_cost, update_cost

WORTH = 0.005
"""A setting is proposed if it saves at least this part of the limit."""


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
    def of(cls, tuning: Tuning, images: int) -> "Measured":
        """Measure a run."""
        return cls(tuning, images, update_cost(tuning), judging_cost(tuning, images))

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of the run."""
        return max(self.update.peak, self.judging.peak)

    @property
    def weights(self) -> int:
        """Bytes of all networks."""
        return sum(part.weights for part in self.update.parts.values())

    def excess(self, limit: float) -> float:
        """Bytes by which the two phases are beyond a limit, added up."""
        return sum(max(0.0, cost.peak - limit) for cost in (self.update, self.judging))

    def with_tuning(self, tuning: Tuning, update: bool = True, judging: bool = True) -> "Measured":
        """The same with other settings; only the phases that they act on are measured again."""
        return Measured(
            tuning,
            self.images,
            update_cost(tuning) if update else self.update,
            judging_cost(tuning, self.images) if judging else self.judging,
        )


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
        limit: Bytes.
    """
    found: list[Saving] = []
    for candidate in CANDIDATES:
        if run.excess(limit) == 0:
            break
        for saving in candidate(run, limit):
            if run.excess(limit) - saving.run.excess(limit) > WORTH * limit:
                found.append(saving)
                run = saving.run
    return found


def _fewer_images(run: Measured, limit: float) -> Iterator[Saving]:
    together = min(run.images, run.tuning.samples_per_batch)
    if run.judging.peak <= limit or together == 1:
        return

    def measured(count: int) -> Measured:
        return run.with_tuning(replace(run.tuning, samples_per_batch=count), update=False)

    count, changed = _largest(together, run.judging.peak, run.weights, limit, measured, lambda one: one.judging.peak)
    yield Saving(f"algorithm.samples_per_batch={count}", "nothing", changed)


def _checkpointing(run: Measured, limit: float) -> Iterator[Saving]:
    source = run.tuning.diffusion
    if run.update.peak > limit and not source.gradient_checkpointing:
        tuning = replace(run.tuning, diffusion=replace(source, gradient_checkpointing=True))
        more = "U-Net and decoder are computed once more for each gradient"
        yield Saving("diffusion.gradient_checkpointing=true", more, run.with_tuning(tuning, judging=False))


def _smaller_parts(run: Measured, limit: float) -> Iterator[Saving]:
    if run.update.peak <= limit or run.tuning.together == 1:
        return

    def measured(count: int) -> Measured:
        return run.with_tuning(replace(run.tuning, micro_batch_size=count), judging=False)

    together = run.tuning.together
    count, changed = _largest(together, run.update.peak, run.weights, limit, measured, lambda one: one.update.peak)
    yield Saving(f"algorithm.micro_batch_size={count}", "the GPU has less to do at a time", changed)


def _half_decoder(run: Measured, limit: float) -> Iterator[Saving]:
    source = run.tuning.diffusion
    if source.decoder_precision == "fp32":
        tuning = replace(run.tuning, diffusion=replace(source, decoder_precision="bf16"))
        yield Saving("diffusion.decoder_precision=bf16", "images are rounded a little", run.with_tuning(tuning))


def _no_diversity(run: Measured, limit: float) -> Iterator[Saving]:
    if run.tuning.encoder is None:
        return
    changed = run.with_tuning(replace(run.tuning, encoder=None), update=False)
    weights = run.update.parts[DIVERSITY].weights  # an update does not call it
    parts = {name: part for name, part in run.update.parts.items() if name != DIVERSITY}
    update = replace(run.update, peak=run.update.peak - weights, parts=parts)
    yield Saving("algorithm.diversity=null", "validations do not tell diversity", replace(changed, update=update))


def _half_weights(run: Measured, limit: float) -> Iterator[Saving]:
    source = run.tuning.diffusion
    if source.precision == "fp32":
        tuning = replace(run.tuning, diffusion=replace(source, precision="bf16"))
        yield Saving("diffusion.precision=bf16", "the U-Net rounds", run.with_tuning(tuning))


def _tiny_decoder(run: Measured, limit: float) -> Iterator[Saving]:
    source = run.tuning.diffusion
    if run.update.peak > limit and source.tiny_decoder is None:
        tuning = replace(run.tuning, diffusion=replace(source, tiny_decoder=TAESD_ID))
        yield Saving(f"diffusion.tiny_decoder={TAESD_ID}", "the reward sees coarser images", run.with_tuning(tuning))


CANDIDATES: tuple[Callable[[Measured, float], Iterator[Saving]], ...] = (
    _fewer_images, _checkpointing, _smaller_parts, _half_decoder, _no_diversity, _half_weights, _tiny_decoder,
)  # fmt: skip


def _largest(
    count: int,
    peak: float,
    weights: float,
    limit: float,
    measured: Callable[[int], Measured],
    peak_of: Callable[[Measured], int],
) -> tuple[int, Measured]:
    """The largest number below `count` with which the peak is within the limit, or 1.

    What lies on top of the weights grows with the number, so that few have to be tried.
    """
    while True:
        count = max(1, min(count - 1, int(count * (limit - weights) / (peak - weights))))
        run = measured(count)
        peak = peak_of(run)
        if count == 1 or peak <= limit:
            return count, run
