"""Whole runs: their times, their memory against the plan, and a run that is stopped and resumed."""

import time
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor

from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA
from t2ifb.diffusion.model import DENOISER
from t2ifb.finetuning.run import FineTuner
from t2ifb.profiling.cost import LOOK, RunSpec
from t2ifb.profiling.gpu_memory import CONTEXT, GB, WORKSPACE
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.profiling.savings import MemoryEstimate
from t2ifb.scorers import RewardModel
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.meta import MetaCLIP
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import FIRST_SCALE
from tests.gpu_check.world import ALPHA, BETA, PROMPTS, Report, World, free, judges, quiet

UPDATES, VALIDATE_EVERY, STOP_AFTER = 6, 3, 5
CARD = 15.8 * GB
"""What a card sold as 16 GB has."""


class Clock(lightning.Callback):
    """Seconds of each update, and the most memory by phase; may stop the run.

    Attributes:
        seconds: By update.
        scales: The loss scale after each.
        allocated: Most bytes by phase.
    """

    def __init__(self, world: World, stop: int | None) -> None:
        self.world, self.stop = world, stop
        self.seconds: list[float] = []
        self.scales: list[float] = []
        self.allocated: dict[str, int] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin to measure an update."""
        self._restart()
        self.world.wait()
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Note it."""
        self.world.wait()
        self.seconds.append(time.perf_counter() - self._began)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(float("nan") if scaler is None else scaler.get_scale())
        self._note("update")
        if trainer.global_step == self.stop:
            raise Stopped

    def on_validation_start(self, *_: Any) -> None:
        """Begin to measure a validation."""
        self._restart()

    def on_validation_end(self, *_: Any) -> None:
        """Note it."""
        self._note("validation")

    def _restart(self) -> None:
        if self.world.cuda:
            torch.cuda.reset_peak_memory_stats()

    def _note(self, phase: str) -> None:
        if self.world.cuda:
            self.allocated[phase] = max(self.allocated.get(phase, 0), torch.cuda.max_memory_allocated())


class Stopped(Exception):
    """A run was stopped on purpose."""


def run(world: World, name: str, stop: int | None = None, resume: bool = False) -> Clock:
    """A whole run of a few updates with two validations, as `t2ifb.train` makes it."""
    clock = Clock(world, stop)

    def make(**given: Any) -> lightning.Trainer:
        given["callbacks"] += [clock]
        if not world.cuda and world.kind.half == "fp16":  # a CPU's own mixed precision is bf16
            scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)
            given["plugins"] += [MixedPrecision("16-mixed", "cpu", scaler)]
        return lightning.Trainer(**given)

    on_device: dict[str, Any] = {"accelerator": "gpu", "devices": 1} if world.cuda else {"accelerator": "cpu"}
    if world.cuda or world.kind.half == "bf16":
        on_device["precision"] = {"fp16": "16-mixed", "bf16": "bf16-mixed"}[world.kind.half]
    trainer = partial(make, **on_device)
    tuning = FineTuner(
        model=world.source(),
        lora=LoRA(),
        reward=world.reward(),
        optimizer=partial(torch.optim.AdamW, lr=1e-5, fused=True),
        judges=judges(world),
        prompts=PromptSplits(PromptList(PROMPTS[:UPDATES]), PromptList(PROMPTS[60:62]), PromptList(PROMPTS[62:])),
        rollout=world.rollout,
        sampling=replace(world.rollout, unconditional="grad"),
        algorithm=world.algorithm,
        alpha=ALPHA,
        beta=BETA,
        gradient_clip_norm=None,
        batch_size=1,
        epochs=1,
        validate_every=VALIDATE_EVERY,
        validation_prompts=2,
        images_per_prompt=2,
        samples_per_batch=4,
        output_dir=world.folder / name,
        cache_folder=False,
        trainer=trainer,
        resume=resume,
    )
    try:
        with quiet():
            tuning.fit()
    except Stopped:
        pass
    free()
    return clock


def planned(world: World) -> MemoryEstimate:
    """What `t2ifb.plan` says of the same run."""
    with MetaMode():
        encoder = MetaCLIP.of(world.clip).load()
        with torch.device("meta"):
            reward = RewardModel(encoder, MLPHead(encoder.embedding_dim)).requires_grad_(False)
        others = {name: judge.to("meta") for name, judge in judges(world, on_meta=True).items()}
    tuning = RunSpec(
        diffusion=world.source(),
        lora=LoRA(),
        optimizer=partial(torch.optim.AdamW, lr=1e-5),
        reward=reward,
        rollout=world.rollout,
        sampling=replace(world.rollout, unconditional="grad"),
        judges=others,
        samples_per_batch=4,
        algorithm=world.algorithm,
        autocast=world.half,
        attention="fused" if world.cuda else "plain",
        on_gpu=world.cuda,
    )
    return MemoryEstimate.of(tuning, 4)


def memory(report: Report, clock: Clock, plan: MemoryEstimate) -> None:
    """Peaks by phase, and what the allocator reserved, against the plan; what is above it are kernels' workspaces."""
    optimiser, total = plan.update.parts[DENOISER].optimiser, accumulate(size for _, size in plan.judging.phases[LOOK])
    peaks = {"update": plan.update.peak, "validation": plan.weights + optimiser + max(total)}
    for phase, peak in peaks.items():
        found = clock.allocated[phase]
        gb = {"measured_gb": round(found / GB, 2), "planned_gb": round(peak / GB, 2)}
        passed = 0.95 * peak < found < 1.05 * peak + WORKSPACE
        report.check(f"peak of {phase}s within 5 % of the plan and the workspaces", passed, **gb)
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()  # other programs' memory too, if there are any
    reserved = {"reserved_gb": round(torch.cuda.max_memory_reserved() / GB, 2), "pool_gb": round(plan.pool / GB, 2)}
    report.figure("allocator", **reserved)
    report.figure("CUDA context", measured_gb=round(context / GB, 2), planned_gb=CONTEXT / GB)


def in_little_memory(world: World, report: Report, plan: MemoryEstimate) -> None:
    """The same run where the allocator may have no more than planned, and sd15 also no more than on a card of 16 GB."""
    total = torch.cuda.get_device_properties(0).total_memory
    limits = {"planned pool": plan.pool + WORKSPACE}
    if world.domain == "sd15":
        limits["card of 16 GB"] = CARD - CONTEXT
    for name, limit in limits.items():
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        torch.cuda.reset_peak_memory_stats()
        try:
            run(world, f"in the {name}")
            problem = None
        except (ValueError, RuntimeError) as error:
            problem = str(error)[:300]
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        gb = {"limit_gb": round(limit / GB, 2), "reserved_gb": round(torch.cuda.max_memory_reserved() / GB, 2)}
        report.check(f"runs in the {name}", problem is None, **gb, problem=problem)


def repeated(world: World, report: Report) -> None:
    """A run that was stopped and resumed against two runs that were not: on a GPU runs agree to rounding only."""
    run(world, "again")
    run(world, "stopped", stop=STOP_AFTER)
    run(world, "stopped", resume=True)
    files = (world.folder / name / "export" / LORA_WEIGHTS for name in ("one", "again", "stopped"))
    one, again, resumed = (load_file(file) for file in files)

    def difference(other: dict[str, Tensor]) -> float:
        return max(float((one[name] - other[name]).abs().max()) for name in one)

    of_runs, of_resumed = difference(again), difference(resumed)
    report.figure("two runs", identical=of_runs == 0, largest_difference=of_runs)
    report.check(
        "a resumed run differs no more than two runs do", of_resumed <= 2 * of_runs, largest_difference=of_resumed
    )
    last = torch.load(RunFolder(world.folder / "one").last_checkpoint, map_location="cpu", weights_only=True)
    moved = max(float(weight.abs().max()) for name, weight in last["state_dict"].items() if "lora_B" in name)
    report.check("the adapters moved", moved > 0, largest=moved)
