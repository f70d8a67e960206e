"""A fine-tuning module outside of a trainer, and its gradient."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.finetuning.tuning_worlds import Redness

BATCH = PromptBatch(position=5, prompts=PROMPTS, numbers=[0, 1], total=2)


def make_module(
    algorithm: Any,
    away: bool = True,
    guidance_scale: float = 2.0,
    alpha: float = 3.0,
    beta: float = 0.02,
    micro_batch_size: int | None = None,
) -> FineTuningModule:
    """A module outside of a trainer; `away` moves the policy from the base model."""
    policy = Policy(shapes_model(), LoRA(), Redness(), Sampler(4, guidance_scale), seed=1)
    if hasattr(algorithm, "alpha"):
        algorithm = replace(algorithm, alpha=alpha, beta=beta)
    module = FineTuningModule(
        policy, algorithm, partial(torch.optim.SGD, lr=1.0), None, micro_batch_size, gradient_clip_norm=None
    )
    if away:
        generator = torch.Generator().manual_seed(0)
        for weight in module.policy.adapters:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, log_every_n_steps=1)  # type: ignore[assignment]
    step = SimpleNamespace(zero_grad=lambda: module.zero_grad(), step=lambda: None)
    module.optimizers = lambda: step  # type: ignore[method-assign, assignment, return-value]
    return module


def gradient(module: FineTuningModule) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in module.policy.adapters if weight.grad is not None])


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Alike but for rounding, which is relative to the largest entries."""
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
