"""Updates and validations on a fake GPU: devices and types fit, and what a GPU is asked to do is known by line.

Where a list or a number here differs from what the code does, look at why before changing it: each copy makes the CPU
wait, and each kernel costs time at small batches.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import pytest
import torch
from torch import Tensor

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.dry_run import DryRun
from t2ifb.diffusion.ledger import Ledger, tensors_of
from t2ifb.diffusion.outline import Outline
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.evaluation.judges import Judges
from t2ifb.learning.cost import Tuning
from t2ifb.learning.draft import DRaFT
from t2ifb.learning.exam import Exam
from t2ifb.learning.fault_guard import FaultGuard
from t2ifb.learning.refl import ReFL
from t2ifb.learning.refl_cost import update_cost
from t2ifb.learning.reward_weighted import RewardWeighted
from t2ifb.learning.tuning_module import Method, TuningModule
from tests.learning.fake_gpu import Watch, fake_gpu, to_gpu
from tests.learning.test_refl_cost import small_run

PROMPTS = ["a red circle", "two blue stars"]
SAMPLER = Sampler(3, 4.0, unconditional="detached")


def tuning(**changes: Any) -> Tuning:
    """The embedded domain's networks in the precisions of the `sd15` recipe."""
    made = small_run(
        rollout=SAMPLER, sampling=replace(SAMPLER, unconditional="grad"), autocast=torch.float16, attention="fused",
        batch_size=2,
    )  # fmt: skip
    source = replace(made.diffusion, precision="fp16", gradient_checkpointing=True)
    return replace(made, diffusion=source, **changes)


class FakeRun:
    """A module on the fake GPU beside what Lightning gives it: `16-mixed`, a loss scale, a fused optimiser."""

    def __init__(self, of: Tuning, method: Method) -> None:
        """Build everything on `meta`; entering puts it on the fake GPU."""
        self.of, self.guard = of, FaultGuard()
        with DryRun():
            self.model = Outline.of(of.diffusion).load()
            self.module: Any = TuningModule(
                self.model, of.lora, of.reward, partial(torch.optim.AdamW, fused=True), of.rollout, method,
                gradient_clip_norm=None,
            ).to("meta")  # fmt: skip

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(fake_gpu())
        module = to_gpu(self.module)
        module._device = torch.device("cuda", 0)
        module.adapters = [weight for weight in self.model.unet.parameters() if weight.requires_grad]
        self.optimizer, self.scaler = module.configure_optimizers(), torch.amp.GradScaler("cuda", init_scale=4096.0)
        plugin = SimpleNamespace(scaler=self.scaler)
        module.trainer = SimpleNamespace(
            world_size=1, global_step=1, log_every_n_steps=2, precision_plugin=plugin
        )  # it does not log at step 1
        module.optimizers = lambda: SimpleNamespace(zero_grad=self.optimizer.zero_grad, step=self.step)
        module.manual_backward = self.backward
        for weight in module.adapters:
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def backward(self, loss: Tensor) -> None:
        self.guard.on_before_backward(self.module.trainer, self.module, self.scaler.scale(loss))
        assert loss.requires_grad
        for weight in self.module.adapters:
            weight.grad = torch.zeros_like(weight)

    def step(self) -> None:
        self.guard.on_before_optimizer_step(self.module.trainer, self.module, self.optimizer)
        self.module.on_before_optimizer_step(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def update(self) -> None:
        with torch.autocast("cuda", torch.float16, cache_enabled=False):
            self.module.training_step(PromptBatch(0, PROMPTS, [0, 1], 2), 0)


