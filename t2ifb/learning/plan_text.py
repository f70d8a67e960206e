"""What a planned run needs, on the screen."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t2ifb.diffusion.ledger import WORK
from t2ifb.evaluation.table_text import NUMBERS, TEXT
from t2ifb.evaluation.table_text import show as show_table
from t2ifb.learning.cost import JUDGES, OPTIMISER, UNET, Part
from t2ifb.learning.refl_arithmetic import Arithmetic
from t2ifb.learning.refl_savings import Measured, Saving

GB = 1e9
RESERVE = 1.0 * GB
"""Bytes of a GPU left to its driver, to libraries' workspaces and to what an allocator cannot give away."""

ERROR = "peaks are those of living tensors; on a CPU, the allocator's own was 1 to 2 % higher"
"""As measured in `tests/learning/test_refl_cost.py`."""


@dataclass(frozen=True)
class Memory:
    """What a run has to fit into.

    Attributes:
        total: Bytes.
        whose: How a sentence calls it.
        reserve: Bytes of it that tensors cannot have.
    """

    total: float
    whose: str
    reserve: float

    @property
    def limit(self) -> float:
        """Bytes that tensors can have."""
        return self.total - self.reserve


def show(
    run: Measured,
    counted: Arithmetic,
    kept: Mapping[str, int],
    memory: Memory | None,
    found: Sequence[Saving],
    notes: Sequence[str],
) -> None:
    """Print tables and verdict.

    Args:
        run: As it is configured.
        counted: Its arithmetic.
        kept: What the U-Net keeps for the backward pass, by setting.
        memory: What it has to fit into, if that is known.
        found: Settings that save memory.
        notes: What was assumed.
    """
    console = Console()
    console.print(Text(_heading(run)))
    show_table(_parts(run))
    console.print(Text("U-Net's saved activations: " + "; ".join(f"{size_text(b)} {how}" for how, b in kept.items())))
    show_table(_operations(run, counted))
    for note in (*notes, ERROR):
        console.print(Text(f"note: {note}"))
    console.print(Text(verdict(run, memory)))
    if found:
        assert memory is not None
        show_table(_savings(found, memory))
        console.print(Text(_outcome(found[-1].run, memory)))


def _heading(run: Measured) -> str:
    tuning, source = run.tuning, run.tuning.diffusion
    mixed = "" if tuning.autocast is None else f", mixed precision in {str(tuning.autocast).removeprefix('torch.')}"
    checkpointing = "with" if source.gradient_checkpointing else "without"
    prompts = f"{tuning.together} prompt{'s' if tuning.together > 1 else ''} at a time"
    return (
        f"{source.source}: U-Net in {source.precision}, decoder in {source.decoder_precision}{mixed}, {checkpointing} "
        f"gradient checkpointing, {tuning.attention} attention; {prompts}"
    )


def verdict(run: Measured, memory: Memory | None) -> str:
    """Whether a run fits, in a sentence or two."""
    phase = "an update" if run.update.peak >= run.judging.peak else "a validation"
    peak = f"The peak is {size_text(run.peak)}, in {phase}"
    if memory is None:
        reserve = f"of which {size_text(RESERVE)} are left to driver and libraries"
        return (
            f"{peak}: a GPU of at least {size_text(run.peak + RESERVE)} is needed, {reserve}. None is found here to "
            "compare with; memory_gb=<number> says how large it is."
        )
    left = f", of which {size_text(memory.reserve)} are left to driver and libraries" if memory.reserve else ""
    fits = run.peak <= memory.limit
    return f"{peak}: it {'fits' if fits else 'does not fit'} into {size_text(memory.total)} ({memory.whose}){left}."


def _outcome(run: Measured, memory: Memory) -> str:
    if run.peak <= memory.limit:
        return "With these it fits. Each is on top of those above it, and was found by measuring the run with it."
    judges = run.update.parts.get(JUDGES)
    more = f" The judges' weights are {size_text(judges.weights)}: '~judges.<name>' leaves one out." if judges else ""
    return f"Even with all of these it does not fit: {size_text(run.peak)} are needed at the least.{more}"


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, padding=0)
    for name in columns:
        table.add_column(name, **TEXT)
    for name in right:
        table.add_column(name, **NUMBERS)
    return table


def _parts(run: Measured) -> Table:
    """Parameters and bytes by part, and what is alive at the two peaks."""
    peaks = ("update\npeak", "valida-\ntion\npeak")
    sizes = ("param-\neters", "trained", "weights", "saved\nactiva-\ntions", "opti-\nmiser", *peaks)  # for 80 columns
    table = _table("Memory by part", "part", right=sizes)
    costs, parts = (run.update, run.judging), run.update.parts
    for name, part in parts.items():
        alive = [part.weights + cost.at_peak.get(name, 0) for cost in costs]
        if name == UNET:
            alive = [size + cost.at_peak.get(OPTIMISER, 0) for size, cost in zip(alive, costs, strict=True)]
        table.add_row(name, *_counts([part]), *map(size_text, alive))
    work = (size_text(cost.at_peak.get(WORK, 0)) for cost in costs)
    table.add_row("gradients and work", *[""] * 5, *work, end_section=True)
    table.add_row("all", *_counts(parts.values()), *(size_text(cost.peak) for cost in costs))
    return table


def _counts(parts: Collection[Part]) -> list[str]:
    """Cells from `parameters` to `optimiser` for some parts together; what there is nothing of is left blank."""
    trained = sum(part.trained for part in parts)
    sizes = (sum(part.saved or 0 for part in parts), sum(part.optimiser for part in parts))
    return [
        f"{sum(part.parameters for part in parts) / 1e6:,.2f} M",
        f"{trained:,}" if trained else "",
        size_text(sum(part.weights for part in parts)),
        *(size_text(size) if size else "" for size in sizes),
    ]


def _operations(run: Measured, counted: Arithmetic) -> Table:
    tuning = run.tuning
    title = "Arithmetic (one addition and one multiplication are two operations)"
    table = _table(title, "of", right=["operations"])
    rollout = f"{tuning.steps_to_window:.1f} steps of a rollout for {tuning.method.gradients_per_rollout}"
    table.add_row("one denoising step of one sample", flops_text(counted.denoising))
    table.add_row(f"one reward gradient of one sample, with its share of {rollout}", flops_text(counted.gradient))
    gradients = f"{tuning.batch_size} x {tuning.method.gradients_per_rollout}"
    table.add_row(f"one update, {gradients} reward gradients", flops_text(counted.update))
    table.add_row(f"{counted.updates:,} updates", flops_text(counted.training))
    table.add_row(
        f"{counted.validations:,} validations of {run.images} images, and the report", flops_text(counted.judging)
    )
    table.add_row("the run", flops_text(counted.run))
    return table


def _savings(found: Sequence[Saving], memory: Memory) -> Table:
    title = "What makes it smaller, the cheapest first"
    table = _table(title, "setting", "costs", right=["update\npeak", "validation\npeak"])
    for saving in found:
        costs = (saving.run.update, saving.run.judging)
        peaks = (f"{size_text(cost.peak)}{'' if cost.peak > memory.limit else ' fits'}" for cost in costs)
        table.add_row(saving.argument, saving.price, *peaks)
    return table


def size_text(size: float) -> str:
    """Bytes with a unit; a GB is 10^9 bytes."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e9:.2f} GB"


def flops_text(count: float) -> str:
    """Operations with a unit."""
    for unit, scale in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= scale / 10:
            return f"{count / scale:.3f} {unit}" if count < 10 * scale else f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.2f} GFLOP"
