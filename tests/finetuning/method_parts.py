"""A fine-tuning module outside of a trainer, and its gradient."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.path import cps_variance
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.schedule import flow
from t2ifb.finetuning.best_of_n import BestOfN
from t2ifb.finetuning.dpo import DPO
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.grpo import GRPO
from t2ifb.finetuning.guidance_distillation import GuidanceDistillation
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.nft import NFT
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.reward_weighted import RewardWeighted
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.finetuning.tuning_worlds import Redness

ALGORITHMS: dict[str, Any] = {
    "refl": ReFL([1, 2], 2, alpha=1.0, beta=1e-3),
    "draft": DRaFT(2, alpha=1.0, beta=1e-3),
    "reward_weighted": RewardWeighted(2, alpha=1.0, beta=1e-3),
    "grpo": GRPO(group_size=2, window=[0, 1], updates=2),
    "own pairs": DPO(group_size=2, best=1, updates=2, pairs_per_update=2, beta_dpo=100.0),
    "best of n": BestOfN(group_size=2, updates=2, samples_per_update=2, beta=1e-3),
    "nft": NFT(group_size=2, updates=2, old_decay_rise=0.5, beta=1e-3),
    "given pairs": DPO(group_size=None, steps=[1, 2], beta_dpo=100.0, empty_prompts=0.0),
    "distillation": GuidanceDistillation(3.0, gradients_per_rollout=2),
}
"""Every algorithm, for schedules of four steps."""
FLOW = Sampler(4, 2.0, partial(flow, variance=partial(cps_variance, level=0.5)))
PIPELINES = {"sdxl": Sampler(4, 2.0), "sd3": FLOW}
"""Families with tiny pipelines, and their samplers."""
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
