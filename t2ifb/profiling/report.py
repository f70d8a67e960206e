"""Report of a planned run's costs, on the screen."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t2ifb.diffusion.model import DENOISER
from t2ifb.evaluation.tables import NUMBERS, TEXT
from t2ifb.evaluation.tables import show as show_table
from t2ifb.profiling.cost import JUDGES, OPTIMISER, ModulePart
from t2ifb.profiling.flops import FlopEstimate
from t2ifb.profiling.gpu_memory import CONTEXT, LIBRARIES, SPARE, WORKSPACE
from t2ifb.profiling.memory_tracker import WORK, Operations
from t2ifb.profiling.savings import MemoryEstimate, Suggestion

TERA = 1e12
ACHIEVED_HALF, ACHIEVED_SINGLE = 0.4, 0.7
"""Assumed shares of the published rates for convolutions and matrix products of this size.

Estimates: nothing was measured on a GPU. Tensor cores wait for memory and kernel launches more often than the slower
float32 units.
"""


@dataclass(frozen=True)
class Rates:
    """Published peak rates of a GPU, in operations per second.

    Attributes:
        half: Rate of dense float16 products with float32 accumulation on tensor cores.
        single: Rate in true float32, not TF32.
    """

    half: float
    single: float

    def seconds(self, operations: Operations) -> tuple[float, float]:
        """Seconds for the operations in half precision, and for those in float32."""
        return (
            operations.half / (ACHIEVED_HALF * self.half),
            operations.single / (ACHIEVED_SINGLE * self.single),
        )


GPUS = {
    "T4": Rates(65 * TERA, 8.1 * TERA),
    "V100": Rates(125 * TERA, 15.7 * TERA),
    "L4": Rates(121 * TERA, 30.3 * TERA),
    "A10": Rates(125 * TERA, 31.2 * TERA),
    "RTX 3090": Rates(71 * TERA, 35.6 * TERA),
    "RTX 4090": Rates(165 * TERA, 82.6 * TERA),
    "A100": Rates(312 * TERA, 19.5 * TERA),
    "L40S": Rates(362 * TERA, 91.6 * TERA),
    "H100": Rates(989 * TERA, 66.9 * TERA),
    "H200": Rates(989 * TERA, 66.9 * TERA),
}
"""Rates by a part of the driver's device name, from the vendors' data sheets (H100: SXM)."""
EXAMPLES = ("T4", "A100", "H100")


def known(name: str) -> str | None:
    """The key of `GPUS` that is a word of a GPU's name, such as T4 in `Tesla T4`."""
    return next((key for key in GPUS if re.search(rf"\b{key}\b", name)), None)


ERROR = "only live tensors are counted; on a CPU the measured peak was 1 to 2 % higher"
"""As measured in `tests/profiling/test_savings.py`."""
ESTIMATED = "context, workspaces and rates are estimates, not yet measured on a GPU"


@dataclass(frozen=True)
class Memory:
    """Memory available to a run.

    Attributes:
        total: Total bytes.
        whose: Name of the memory in sentences.
        on_gpu: Whether it is GPU memory.
    """

    total: float
    whose: str
    on_gpu: bool

    @property
    def limit(self) -> float:
        """Maximum bytes of the pool that leave `SPARE` free."""
        return (1 - SPARE) * self.total - (LIBRARIES if self.on_gpu else 0)


def show(
    run: MemoryEstimate,
    counted: FlopEstimate,
    kept: Mapping[str, int],
    memory: Memory | None,
    found: Sequence[Suggestion],
    notes: Sequence[str],
) -> None:
    """Print tables and verdict.

    Args:
        run: The run as configured.
        counted: Its arithmetic.
        kept: Bytes saved by the denoiser for the backward pass, by setting.
        memory: Available memory, if known.
        found: Settings that save memory.
        notes: Assumptions.
    """
    console = Console()
    console.print(Text(_heading(run)))
    show_table(_parts(run))
    console.print(
        Text("Denoiser's saved activations: " + "; ".join(f"{size_text(b)} {how}" for how, b in kept.items()))
    )
    show_table(_operations(run, counted))
    if run.tuning.on_gpu:
        show_table(_seconds(run, counted, memory))
        show_table(_needed(run))
    for note in (*notes, ERROR, *([ESTIMATED] if run.tuning.on_gpu else [])):
        console.print(Text(f"note: {note}"))
    console.print(Text(verdict(run, memory)))
    if found:
        assert memory is not None
        show_table(_savings(found, memory))
        console.print(Text(_outcome(found[-1].run, memory)))


def _heading(run: MemoryEstimate) -> str:
    tuning, source = run.tuning, run.tuning.diffusion
    mixed = "" if tuning.autocast is None else f", mixed precision in {str(tuning.autocast).removeprefix('torch.')}"
    checkpointing = "with" if source.gradient_checkpointing else "without"
    rows = f"{_rows(run.update.rows)} of the loss at a time"
    guidance = ""
    if tuning.drawing.guidance_scale != 1:
        branch = ", unconditional branch without gradient" if tuning.rollout.unconditional != "grad" else ""
        guidance = f"; guidance {tuning.drawing.guidance_scale:g} in rollouts{branch}"
    return (
        f"{source.source}: denoiser in {source.precision}, decoder in {source.decoder_precision}{mixed}, "
        f"{checkpointing} gradient checkpointing, {tuning.attention} attention; {rows}{guidance}"
    )


def verdict(run: MemoryEstimate, memory: Memory | None) -> str:
    """Whether a run fits, is tight or does not fit, in a sentence or two."""
    phase = "an update" if run.update.peak >= run.judging.peak else "a validation"
    needs = f"The run needs {size_text(run.needed)}; its peak is in {phase}"
    if memory is None:
        least = size_text(run.needed / (1 - SPARE))
        return (
            f"{needs}. A GPU of at least {least} leaves {SPARE:.0%} free. No GPU was found for comparison; "
            "set its size with memory_gb=<number>."
        )
    left, whole = memory.total - run.needed, f"{size_text(memory.total)} ({memory.whose})"
    if fits(run, memory):
        return f"{needs}. It fits into {whole}, with {size_text(left)} free."
    if left >= 0:
        spare = size_text(SPARE * memory.total)
        return f"{needs}. It is tight in {whole}: {size_text(left)} are free, but {SPARE:.0%}, {spare}, should be."
    return f"{needs}. It does not fit into {whole}: {size_text(-left)} are missing."


def fits(run: MemoryEstimate, memory: Memory) -> bool:
    """Whether a run fits and leaves `SPARE` free."""
    return run.pool <= memory.limit


def _outcome(run: MemoryEstimate, memory: Memory) -> str:
    if fits(run, memory):
        return "With these settings the run fits. Each includes those above it and was measured."
    judges = run.update.parts.get(JUDGES)
    more = f" The judges' weights are {size_text(judges.weights)}: '~judges.<name>' removes one." if judges else ""
    answer = "is tight" if run.needed <= memory.total else "does not fit"
    return f"Even with all of these the run {answer}: it needs at least {size_text(run.needed)}.{more}"


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, padding=0)
    for name in columns:
        table.add_column(name, **TEXT)
    for name in right:
        table.add_column(name, **NUMBERS)
    return table


def _parts(run: MemoryEstimate) -> Table:
    """Parameters and bytes by part, and live bytes at the two peaks."""
    peaks = ("update\npeak", "valida-\ntion\npeak")
    sizes = ("param-\neters", "trained", "weights", "saved\nactiva-\ntions", "opti-\nmiser", *peaks)  # for 80 columns
    table = _table("Memory by part", "part", right=sizes)
    costs, parts = (run.update, run.judging), run.update.parts
    for name, part in parts.items():
        alive = [part.weights + cost.at_peak.get(name, 0) for cost in costs]
        if name == DENOISER:
            alive = [size + cost.at_peak.get(OPTIMISER, 0) for size, cost in zip(alive, costs, strict=True)]
        table.add_row(name if part.weights else f"{name} (shared)", *_counts([part]), *map(size_text, alive))
    work = (size_text(cost.at_peak.get(WORK, 0)) for cost in costs)
    table.add_row("gradients and work", *[""] * 5, *work, end_section=True)
    table.add_row("all", *_counts(parts.values()), *(size_text(cost.peak) for cost in costs))
    return table


def _counts(parts: Collection[ModulePart]) -> list[str]:
    """Cells from `parameters` to `optimiser` for a group of parts; zeros are left blank."""
    trained = sum(part.trained for part in parts)
    sizes = (sum(part.saved or 0 for part in parts), sum(part.optimiser for part in parts))
    return [
        f"{sum(part.parameters for part in parts) / 1e6:,.2f} M",
        f"{trained:,}" if trained else "",
        size_text(sum(part.weights for part in parts)),
        *(size_text(size) if size else "" for size in sizes),
    ]


def _operations(run: MemoryEstimate, counted: FlopEstimate) -> Table:
    tuning = run.tuning
    title = "Arithmetic (one addition and one multiplication are two operations)"
    table = _table(title, "of", right=["in half precision", "in float32"])

    def add(of: str, count: Operations) -> None:
        table.add_row(of, *(flops_text(each) if each else "" for each in (count.half, count.single)))

    work = tuning.work
    add("one denoising step of one sample", counted.denoising)
    sampling = f"{work.steps:,.1f} sampling steps and {work.images:,} scored images"
    add(f"one row of the loss, with its share of {sampling} for {_rows(work.rows)}", counted.gradient)
    add(f"one update, {_rows(work.rows // tuning.algorithm.updates_per_experience)}", counted.update)
    add(f"{counted.updates:,} updates", counted.training)
    add(f"{counted.validations:,} validations of {run.images} images, and the report", counted.judging)
    add("the run", counted.run)
    return table


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _seconds(run: MemoryEstimate, counted: FlopEstimate, memory: Memory | None) -> Table:
    """Estimated times by precision, on this machine's GPU or on common ones."""
    title = f"Estimated time, at {ACHIEVED_HALF:.0%} (half precision) and {ACHIEVED_SINGLE:.0%} of published rates"
    parts = ["update, half precision", "update, float32", "validation", "the run"]
    table = _table(title, "GPU", right=parts)
    here = known(memory.whose) if memory is not None else None
    for name in [here] if here is not None else EXAMPLES:
        half, single = GPUS[name].seconds(counted.update)
        whole = [sum(GPUS[name].seconds(each)) for each in (counted.validation, counted.run)]
        table.add_row(name, *map(time_text, (half, single, *whole)))
    return table


def _needed(run: MemoryEstimate) -> Table:
    """Required GPU memory, item by item."""
    table = _table("GPU memory of the run", "what", right=["bytes"])
    table.add_row("live tensors at the peak", size_text(run.peak))
    table.add_row("overhead of PyTorch's allocator", size_text(run.pool - run.peak))
    table.add_row("allocator's pool", size_text(run.pool), end_section=True)
    table.add_row("CUDA context", size_text(CONTEXT))
    table.add_row("workspaces of cuDNN and cuBLAS", size_text(WORKSPACE), end_section=True)
    table.add_row("all", size_text(run.needed))
    return table


def _savings(found: Sequence[Suggestion], memory: Memory) -> Table:
    title = "Settings that save memory, cheapest first"
    table = _table(title, "setting", "costs", right=["update\npeak", "validation\npeak"])
    for saving in found:
        costs = (saving.run.update, saving.run.judging)
        fit = [saving.run.pool_of(cost) <= memory.limit for cost in costs]
        peaks = (f"{size_text(c.peak)}{' fits' if enough else ''}" for c, enough in zip(costs, fit, strict=True))
        table.add_row(saving.argument, saving.price, *peaks)
    return table


def size_text(size: float) -> str:
    """Bytes with a unit; a GB is 10^9 bytes."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e9:.2f} GB"


def time_text(seconds: float) -> str:
    """A time with a unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"


def flops_text(count: float) -> str:
    """Operations with a unit."""
    for unit, scale in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= scale / 10:
            return f"{count / scale:.3f} {unit}" if count < 10 * scale else f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.2f} GFLOP"
