"""Updates and validations on a fake GPU: devices and types fit, and what a GPU is asked to do is known by line.

Where a list or a number here differs from what the code does, look at why before changing it: each copy makes the CPU
wait, and each kernel costs time at small batches.
"""

import copy
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import without_adapters
from t2ifb.diffusion.models.stable_diffusion import SD15_IDS, StableDiffusionSource
from t2ifb.diffusion.pipeline_model import PipelineModel
from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.evaluation.scoring import ScorerSet
from t2ifb.finetuning.algorithm import Algorithm
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.evaluator import Evaluator
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.reward_weighted import RewardWeighted
from t2ifb.profiling.cost import RunSpec
from t2ifb.profiling.memory_tracker import MemoryTracker, tensors_of
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.profiling.update_cost import update_cost
from t2ifb.training.nan_guard import NanGuard
from t2ifb.utils.random_streams import gaussian
from tests.finetuning.fake_gpu import Watch, fake_gpu, to_gpu, zero_gradients
from tests.profiling.test_savings import small_run

pytestmark = [
    pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this build of PyTorch has no tensors on a GPU"),
    pytest.mark.filterwarnings("ignore:update 1 overflowed"),  # the fake loss scale is 0.5 at each look
]
PROMPTS = ["a red circle", "two blue stars"]
BATCH = PromptBatch(0, PROMPTS, [0, 1], 2)
SD15 = StableDiffusionSource(SD15_IDS[0], precision="fp16", gradient_checkpointing=True)
SAMPLER = Sampler(2, 4.0, unconditional="detached")


def tuning(**changes: Any) -> RunSpec:
    """The embedded domain's networks in the precisions of the `sd15` recipe."""
    made = small_run(
        rollout=SAMPLER, sampling=replace(SAMPLER, unconditional="grad"), autocast=torch.float16, attention="fused",
        batch_size=2,
    )  # fmt: skip
    source = replace(made.diffusion, precision="fp16", gradient_checkpointing=True)
    return replace(made, **{"diffusion": source} | changes)


class FakeRun:
    """A module on the fake GPU beside what Lightning gives it: `16-mixed`, a loss scale, a fused optimiser."""

    def __init__(self, of: RunSpec, algorithm: Algorithm) -> None:
        """Build everything on `meta`; entering puts it on the fake GPU."""
        self.of, self.guard = of, NanGuard()
        with MetaMode():
            self.model = of.diffusion.on_meta()
            reward, optimizer = copy.deepcopy(of.reward), partial(torch.optim.AdamW, fused=True)
            policy = Policy(self.model, of.lora, reward, of.rollout)
            self.module: Any = FineTuningModule(policy, algorithm, optimizer, gradient_clip_norm=None).to("meta")

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(fake_gpu())
        module = to_gpu(self.module)
        module._device = torch.device("cuda", 0)
        module.policy.adapters = [weight for weight in self.model.denoiser.parameters() if weight.requires_grad]
        self.optimizer, self.scaler = module.configure_optimizers(), torch.amp.GradScaler("cuda", init_scale=4096.0)
        plugin = SimpleNamespace(scaler=self.scaler)
        module.trainer = SimpleNamespace(
            world_size=1, global_step=1, log_every_n_steps=2, precision_plugin=plugin
        )  # it does not log at step 1
        module.optimizers = lambda: SimpleNamespace(zero_grad=self.optimizer.zero_grad, step=self.step)
        module.manual_backward, module.log = self.backward, lambda *values, **options: None
        for weight in module.policy.adapters:
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def backward(self, loss: Tensor) -> None:
        self.guard.on_before_backward(self.module.trainer, self.module, self.scaler.scale(loss))
        assert loss.requires_grad
        for weight in self.module.policy.adapters:
            weight.grad = torch.zeros_like(weight)

    def step(self) -> None:
        self.guard.on_before_optimizer_step(self.module.trainer, self.module, self.optimizer)
        self.module.on_before_optimizer_step(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cuda", torch.float16, cache_enabled=False)

    def update(self) -> None:
        self.guard.on_train_batch_start(self.module.trainer, self.module)
        with self.autocast():
            self.module.training_step(BATCH, 0)
        self.guard.on_train_batch_end(self.module.trainer, self.module)


ENCODING = "diffusion/text.py: on_device = {name: each.to(device) for name, each in tokens.items()}"
DOWNLOAD = "diffusion/text.py: return Conditioning({name: each.cpu() for name, each in found.tensors.i"
STATES = "diffusion/model.py: return type(self)({name: each.to(device, dtype or each.dtype) for name"
START = "diffusion/sampling.py: self.latents = gaussian(self.keys, INITIAL, self.shape).to(self.dev"
TIMES = "diffusion/schedule.py: self._copies[device, name] = values.to(device)"
NOISE = "diffusion/sampling.py: drawn = torch.stack([gaussian(self.keys, step + 1, self.shape) for "
NOTE = "finetuning/module.py: total = torch.stack([values.detach().to(wide).sum(), values.new_tens"
MEAN = "scorers/preprocess.py: return torch.tensor(values, dtype=dtype, device=device)[:, None, No"
FILTER = "scorers/preprocess.py: return torch.tensor(weights / weights.sum(1, keepdims=True), dtype="
TOKENS = "scorers/clip.py: return self.encode_tokens(self.tokenize(prompts).to(self._device))"
LEARNED_NOISE = 'finetuning/reward_weighted.py: "noise": torch.cat(noise).to(policy.device),'
UPLOADS = {
    "refl": {STATES: 2, NOISE: 1, NOTE: 4},
    "draft": {STATES: 2, NOISE: 1, NOTE: 4},
    "reward_weighted": {STATES: 3, NOISE: 1, NOTE: 14, LEARNED_NOISE: 1},
}
"""Copies to the GPU in an update of two prompts and two steps, by algorithm.

All make those of `test_an_update` too: two prompts and the empty one are encoded once a run, each rollout has its
noise, and the scorer prepares images and prompts. A real GPU keeps `MEAN` and `FILTER`, which a fake one cannot.
"""
PARTS = {"reward_weighted": 2}
"""Number of parts of the update where it is not 1: four samples of two prompts."""
METHODS: dict[str, Algorithm] = {"refl": ReFL(window=(1, 1)), "draft": DRaFT(2), "reward_weighted": RewardWeighted(2)}


@pytest.mark.parametrize("name", METHODS)
def test_an_update(name: str) -> None:
    """Nothing raises; besides encoding prompts the CPU waits once a part to look for NaN, and once for overflows."""
    with FakeRun(tuning(), METHODS[name]) as run, Watch() as watch:
        run.update()
    assert dict(watch.uploads) == {ENCODING: 3, START: 1, TIMES: 1, FILTER: 2, MEAN: 2, TOKENS: 1, **UPLOADS[name]}
    assert dict(watch.downloads) == {DOWNLOAD: 3}
    assert dict(watch.answers) == {
        "training/nan_guard.py: if self._broken_loss is None and not loss.isfinite():": PARTS.get(name, 1),
        "training/nan_guard.py: scale = scaler.get_scale()": 1,
    }


def test_a_denoising_step() -> None:
    """Each upload waits for the GPU: the noise, and the times of all steps once a run."""
    with FakeRun(tuning(), ReFL()) as run, Watch() as watch, run.autocast():
        rollout, denoise = run.module.policy.start(BATCH)
        watch.restart()
        rollout.to(1, denoise)
    assert dict(watch.uploads) == {TIMES: 1, NOISE: 1}
    assert dict(watch.downloads) == dict(watch.answers) == {}


def test_a_validation() -> None:
    of = tuning()
    with FakeRun(of, ReFL()) as run:
        reward = run.module.policy.reward
        evaluator = to_gpu(
            Evaluator(PROMPTS[:1], of.sampling, ScorerSet({"reward": reward}), 2, encoder=reward.encoder)
        )
        with Watch() as watch:
            evaluator.sample(run.model, [0, 1])
            evaluator.answers()
    steps = {TIMES: 1, NOISE: 1}
    pixels = {
        "evaluation/scoring.py: pixels = images[start : start + BATCH].to(device).float() / 255": 1,
        "finetuning/evaluator.py: pixels = (some.to(self.device).float() / 255 for some in images[s": 1,
    }
    assert dict(watch.uploads) == {ENCODING: 2, STATES: 1, START: 1, FILTER: 4, MEAN: 4, TOKENS: 1} | steps | pixels
    assert dict(watch.downloads) == {
        DOWNLOAD: 2,
        "diffusion/sampling.py: return (images * 255).round().to(torch.uint8).cpu()": 1,
        "finetuning/evaluator.py: nats = torch.stack(list(kl_sums(kl).values()), 1).cpu()": 1,
        "evaluation/scoring.py: found.setdefault(name, []).append(score.float().cpu())": 1,
        'finetuning/evaluator.py: return {"vectors": torch.cat([encode(some).cpu() for some in pixe': 1,
    }
    assert dict(watch.answers) == {}


@pytest.mark.parametrize("sd15", [False, pytest.param(True, marks=pytest.mark.huge)], ids=["shapes", "sd15"])
def test_the_peak_is_the_plans(sd15: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the backward pass, which is left out of the plan here too."""
    of = tuning(diffusion=SD15) if sd15 else tuning()
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", zero_gradients)
        patch.setattr(Tensor, "backward", lambda loss: None)
        planned = update_cost(of).peak
    with FakeRun(of, ReFL(window=(0, 0))) as run, MemoryTracker("cuda") as tracker, Watch():
        tracker.adopt("weights", tensors_of(run.module))
        run.update()
    assert tracker.peak == pytest.approx(planned, rel=0.01)


KERNELS = {"training": 2165, "validation": 1499, "base": 731}
"""Of one call of Stable Diffusion v1.5's U-Net with adapters under autocast, without autocast, and without adapters."""


def test_kernels_of_a_call() -> None:
    of = tuning(diffusion=SD15, rollout=Sampler(3))
    found = {}
    with FakeRun(of, ReFL()) as run, Watch() as watch, torch.no_grad():
        rollout, denoise = run.module.policy.start(replace(BATCH, prompts=PROMPTS[:1], numbers=[0]))
        for name, mixed, base in (("training", True, False), ("validation", False, False), ("base", False, True)):
            watch.restart()
            with (
                run.autocast() if mixed else nullcontext(),
                without_adapters(run.model.denoiser) if base else nullcontext(),
            ):
                denoise(rollout.latents, 0)
            found[name] = watch.kernels
        watch.restart()
        with run.autocast(), run.module.policy.untrained():
            denoise(rollout.latents, 0)
        assert watch.kernels <= 1.05 * KERNELS["validation"]  # a rollout's step, also within training's autocast
    for name, recorded in KERNELS.items():
        assert 0.9 * recorded <= found[name] <= 1.1 * recorded, f"{name}: {found[name]} kernels, {recorded} recorded"


def test_noise_that_is_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(self: Rollout, output: Tensor) -> None:
        step = self.schedule.step(output, self.latents, self.index)
        self.latents = step.sample(gaussian(self.keys, self.index + 1, self.shape))
        self.index += 1

    monkeypatch.setattr(Rollout, "follow", follow)
    with FakeRun(tuning(), ReFL(window=(1, 1))) as run, Watch(), pytest.raises(RuntimeError, match="device"):
        run.update()


def test_latents_that_stay_in_float32_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no autocast."""
    of = tuning()
    monkeypatch.setattr(PipelineModel, "_call", lambda self, x, time, of: self.denoiser(x, time, of["states"])[0])
    with FakeRun(of, ReFL()) as run, Watch(), pytest.raises(RuntimeError, match="dtype|type"):
        to_gpu(Evaluator(PROMPTS, of.sampling, ScorerSet({}))).sample(run.model, [0, 1])


def test_nothing_of_the_fake_gpu_is_left() -> None:
    def patched() -> list[Any]:
        return [
            torch.tensor, torch.autograd.grad, Tensor.backward, F.scaled_dot_product_attention,
            torch.cuda.amp.common.amp_definitely_not_available,
        ]  # fmt: skip

    before = patched()
    with pytest.raises(ValueError, match="within"), fake_gpu():
        assert all(one is not other for one, other in zip(patched(), before, strict=True))
        raise ValueError("within")
    assert patched() == before
    weight = torch.ones(1, requires_grad=True)
    (2 * weight).sum().backward()
    assert weight.grad == 2
