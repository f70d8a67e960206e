"""`make gpu-check`: fine-tuning on a real GPU, with random weights at Stable Diffusion v1.5's geometry.

Prints one line of JSON for each figure and PASS or FAIL at the end, and writes `gpu_check.json` after each figure, so
that nothing is lost if it is stopped. It needs one GPU, 12 GB of RAM, 6 GB of disk and no network, and is made to take
less than 5 minutes. `--small` checks the embedded domain instead, on any device: that tries the script.
"""

import argparse
import gc
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA
from t2ifb.diffusion.model import DENOISER
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler, generate
from t2ifb.finetuning.module import FineTuningModule, fast_attention
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.run import FineTuner
from t2ifb.profiling.cost import LOOK, RunSpec
from t2ifb.profiling.gpu_memory import CONTEXT, GB, WORKSPACE
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.profiling.savings import MemoryEstimate
from t2ifb.scorers import CLIPScore, RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.meta import MetaCLIP
from t2ifb.shapes.weights import CLIP, PIPELINE
from t2ifb.training.trainer import FIRST_SCALE
from t2ifb.utils.devices import device_facts, true_float32
from tests.diffusion.random_pipeline import write_random_pipeline

ALPHA, BETA = 100.0, 0.01
GUIDANCE = 7.5
UPDATES, VALIDATE_EVERY, STOP_AFTER = 6, 3, 5
LOSS_SCALES = (-8, 0, 8, 12, 14, 16, 18)
"""Powers of two."""
STEPS, SMALL_STEPS = 10, 2
"""Of all rollouts: the last but one gives a gradient."""
CARD = 15.8 * GB
"""What a card sold as 16 GB has."""
IMAGE_REWARD = 448_000_000
"""Weights of ImageReward: as many stand for it among the judges."""
PROMPTS = [f"a red circle and {number} blue squares on a gray background" for number in range(64)]


class Report:
    """Figures on the screen and in a file, and which checks failed."""

    def __init__(self, path: Path) -> None:
        self.path, self.figures, self.failed = path, {}, []
        self.figures: dict[str, dict[str, Any]]
        self.failed: list[str]

    def figure(self, name: str, /, **values: Any) -> None:
        """Note figures under a name."""
        self.figures[name] = values
        print(json.dumps({"figure": name, **values}), flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")

    def check(self, name: str, passed: bool, /, **values: Any) -> None:
        """Note figures that have to be within bounds."""
        self.figure(name, passed=bool(passed), **values)
        if not passed:
            self.failed.append(name)


class Ballast(nn.Module):
    """A judge that is as large as another and always gives 0."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(weights), requires_grad=False)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Zeros (B,)."""
        return torch.zeros(len(images), device=images.device)


@dataclass
class World:
    """What is checked, and where.

    Attributes:
        small: The embedded domain in the place of Stable Diffusion v1.5's geometry.
        device: Where it computes.
        folder: For weights and runs.
        steps: T of all rollouts.
        pipeline: The diffusion model.
        clip: The encoder of reward and judge.
    """

    small: bool
    device: torch.device
    folder: Path
    steps: int
    pipeline: Path = field(init=False)
    clip: CLIPSource = field(init=False)

    def __post_init__(self) -> None:
        if self.small:
            self.pipeline, self.clip = PIPELINE, CLIPSource(f"local-dir:{CLIP}", device=str(self.device))
            return
        import open_clip

        self.pipeline = write_random_pipeline(self.folder / "sd15", dtype=torch.float16)
        torch.manual_seed(0)
        weights = open_clip.create_model("ViT-L-14-quickgelu").state_dict()
        save_file({name: w.contiguous() for name, w in weights.items()}, self.folder / "clip.safetensors")
        file = str(self.folder / "clip.safetensors")
        self.clip = CLIPSource("ViT-L-14-quickgelu", file, quick_gelu=True, device=str(self.device))

    @property
    def cuda(self) -> bool:
        """Whether it is on a GPU."""
        return self.device.type == "cuda"

    @property
    def rollout(self) -> Sampler:
        """As in the `sd15` recipe, with fewer steps."""
        return Sampler(self.steps, GUIDANCE, unconditional="detached")

    @property
    def method(self) -> ReFL:
        """One gradient, at the last step but one: the same work in each update."""
        return ReFL(window=(self.steps - 2, self.steps - 2))

    def source(self, precision: str = "fp16") -> StableDiffusionSource:
        """The diffusion model as in the `sd15` recipe."""
        made = StableDiffusionSource(str(self.pipeline), gradient_checkpointing=True, device=str(self.device))
        return replace(made, precision=precision)  # type: ignore[arg-type]

    def reward(self) -> RewardModel:
        """A reward model that learned nothing."""
        encoder = replace(self.clip, device="cpu").load()
        torch.manual_seed(0)
        return RewardModel(encoder, MLPHead(encoder.embedding_dim)).eval().requires_grad_(False)

    def module(self, precision: str = "fp16") -> FineTuningModule:
        """What is tuned, on the device."""
        optimizer = partial(torch.optim.AdamW, lr=1e-5, fused=True)
        policy = Policy(self.source(precision).load(), LoRA(), self.reward(), self.rollout)
        return FineTuningModule(policy, self.method, optimizer, gradient_clip_norm=None).to(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision as in a run."""
        return torch.autocast(self.device.type, torch.float16, cache_enabled=False)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], times: int = 5) -> float:
        """Median time of a call, after one that warms up."""
        call()
        found = []
        for _ in range(times):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)


def part(count: int) -> PromptBatch:
    """A batch of the first prompts."""
    return PromptBatch(0, PROMPTS[:count], list(range(count)), count)


def gradient_error(world: World, report: Report, batch: int = 2) -> None:
    """The adapters' gradient in fp16 under a loss scale against fp32, of the same latents and cotangent."""
    exact, half = world.module("fp32"), world.module("fp16")
    (step, _), some = world.method.window_of(world.steps), part(batch)
    rollout, of_exact = exact.policy.start(some)
    _, of_half = half.policy.start(some)
    with true_float32(), fast_attention(world.device):
        noisy = rollout.to(step, of_exact)
        with exact.policy.reference():
            reference = of_exact(noisy, step)
        output = of_exact(noisy, step).detach().requires_grad_()
        reward = exact.policy.score(exact.policy.step(output, noisy, step).clean, some.prompts)
        loss = BETA * exact.policy.kl(output, reference, noisy, step) - ALPHA * reward
        (cotangent,) = torch.autograd.grad(loss.sum(), output)
    largest = float(cotangent.abs().max())
    report.figure("cotangent", alpha=ALPHA, norm=float(cotangent.flatten(1).norm(dim=1).mean()), largest=largest)

    def gradient(module: FineTuningModule, denoise: Any, scale: float) -> Tensor:
        for weight in module.policy.adapters:
            weight.grad = None
        ((denoise(noisy, step) * cotangent).sum() * scale).backward()
        return torch.cat([w.grad.flatten().double() / scale for w in module.policy.adapters if w.grad is not None])

    with true_float32(), fast_attention(world.device):
        expected = gradient(exact, of_exact, 1.0)
    errors = {}
    for power in LOSS_SCALES:
        with world.autocast(), fast_attention(world.device):
            found = gradient(half, of_half, 2.0**power)
        errors[power] = float((found - expected).norm() / expected.norm())
        zeros = float(((found == 0) & (expected != 0)).double().mean())
        finite = bool(found.isfinite().all())
        report.figure(f"gradient at loss scale 2^{power}", relative_error=errors[power], zeros=zeros, finite=finite)
    error = errors[int(np.log2(FIRST_SCALE))]  # which a run begins with
    report.check("gradient error below 2 %", error < 0.02, relative_error=error)


def bare_calls(world: World, report: Report, batch: int) -> float:
    """Times of single calls; gives the seconds of those that an update makes."""
    module = world.module()
    (step, _), some = world.method.window_of(world.steps), part(batch)
    rollout, denoise = module.policy.start(some)
    latents = rollout.latents
    found: dict[str, float] = {}

    def backward() -> None:
        denoise(latents, step).square().mean().backward()

    def reward() -> None:
        leaf = latents.clone().requires_grad_()
        torch.autograd.grad(module.policy.score(leaf, some.prompts).sum(), leaf)

    with fast_attention(world.device):
        with torch.no_grad():
            if world.cuda:  # a CPU has no group norm of fp16 weights without autocast
                with module.policy.reference():
                    found["guided step without autocast and adapters"] = world.seconds(lambda: denoise(latents, step))
                found["guided step without autocast"] = world.seconds(lambda: denoise(latents, step))
            with world.autocast(), module.policy.untrained():
                found["guided step"] = world.seconds(lambda: denoise(latents, step))
        with world.autocast():
            with module.policy.reference():
                found["base model's step"] = world.seconds(lambda: denoise(latents, step))
            found["guided step with backward pass"] = world.seconds(backward)
        found["decoder and reward, both ways"] = world.seconds(reward, 3)
    report.figure(f"bare calls, batch {batch}", **{f"{name}, ms": round(s * 1e3, 2) for name, s in found.items()})
    once = ("base model's step", "guided step with backward pass", "decoder and reward, both ways")
    return step * found["guided step"] + sum(found[name] for name in once)


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


def judges(world: World, on_meta: bool = False) -> dict[str, nn.Module]:
    """CLIP Score, and what is as large as ImageReward."""
    with torch.device("meta") if on_meta else nullcontext():
        ballast = Ballast(1 if world.small else IMAGE_REWARD)
    return {"clip_score": CLIPScore.on_meta(world.clip) if on_meta else CLIPScore(world.clip), "ballast": ballast}


def run(world: World, name: str, stop: int | None = None, resume: bool = False) -> Clock:
    """A whole run of a few updates with two validations, as `t2ifb.train` makes it."""
    clock = Clock(world, stop)

    def make(**given: Any) -> lightning.Trainer:
        given["callbacks"] += [clock]
        if not world.cuda:  # a CPU's own mixed precision is bf16
            scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)
            given["plugins"] += [MixedPrecision("16-mixed", "cpu", scaler)]
        return lightning.Trainer(**given)

    on_device = {"accelerator": "gpu", "devices": 1, "precision": "16-mixed"} if world.cuda else {"accelerator": "cpu"}
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
        algorithm=world.method,
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
        with _quiet():
            tuning.fit()
    except Stopped:
        pass
    _free()
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
        method=world.method,
        autocast=torch.float16,
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
    """The same run where the allocator may have no more than the plan says, and no more than on a card of 16 GB."""
    total = torch.cuda.get_device_properties(0).total_memory
    for name, limit in (("planned pool", plan.pool + WORKSPACE), ("card of 16 GB", CARD - CONTEXT)):
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
    moved = max(float(weight.abs().max()) for name, weight in one.items() if "lora_B" in name or "lora.up" in name)
    report.check("the adapters moved", moved > 0, largest=moved)


def throughput(world: World, report: Report) -> None:
    """Images that are drawn, and embeddings that are cached, a second."""
    model = world.source("fp16" if world.cuda else "fp32").load()
    for count in (4, 16) if world.cuda else (2,):
        keys = [(1, number) for number in range(count)]
        draw = partial(generate, model, Sampler(world.steps, GUIDANCE), PROMPTS[:count], keys, count)
        took = world.seconds(lambda draw=draw: list(draw()), 1)  # type: ignore[misc]
        report.figure(f"images, {count} together, {world.steps} guided steps", per_second=round(count / took, 3))
    del model
    _free()
    side, count = (64, 64) if world.small else (512, 256)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    files = [world.folder / f"{number}.webp" for number in range(count)]
    for number, file in enumerate(files):
        Pillow.fromarray(np.roll(pixels, number, 0)).save(file, quality=90)
    for precision in ("fp32", "fp16") if world.cuda else ("fp32",):
        cache = EmbeddingCache(world.folder / "cache", replace(world.clip, precision=precision))
        with _quiet():
            filled = cache.fill(files, PROMPTS)
        report.figure(f"embeddings, encoder in {precision}", per_second=round(filled.encoded / filled.seconds, 1))


def check(world: World, report: Report) -> None:
    """Everything."""
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, **device_facts(world.device)}
    report.figure("machine", **facts)
    gradient_error(world, report)
    _free()
    seconds = {}
    for batch in (1,) if world.small else (1, 8):
        seconds[batch] = bare_calls(world, report, batch)
        _free()
    if world.cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = run(world, "one")
    update = statistics.median(clock.seconds[1:])
    times = {"seconds": round(update, 3), "bare_seconds": round(seconds[1], 3), "ratio": round(update / seconds[1], 3)}
    report.figure("an update", **times)
    report.figure("loss scale after each update", powers=[float(np.log2(scale)) for scale in clock.scales])
    plan = planned(world)
    report.figure("plan", peak_gb=round(plan.peak / GB, 2), pool_gb=round(plan.pool / GB, 2))
    if world.cuda:
        memory(report, clock, plan)
    repeated(world, report)
    if world.cuda:
        in_little_memory(world, report, plan)
    throughput(world, report)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but figures on the screen: what the run itself prints goes to stderr."""
    screen, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = screen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; gives 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="the embedded domain, on any device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the figures go")
    given = parser.parse_args(arguments)
    if not given.small and not given.device.startswith("cuda"):
        parser.error("a GPU is needed, and none is found; --small tries the script on any device")
    report, start = Report(given.output), time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    try:
        check(World(given.small, torch.device(given.device), folder, SMALL_STEPS if given.small else STEPS), report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.figure("all of it", seconds=round(time.perf_counter() - start, 1))
    print("PASS" if not report.failed else f"FAIL: {'; '.join(report.failed)}", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
