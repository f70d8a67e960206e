"""A fine-tuning module outside of a trainer, and its gradient."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning.tuning_module import Method, TuningModule
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.learning.tuning_worlds import Redness

BATCH = PromptBatch(position=5, prompts=PROMPTS, numbers=[0, 1], total=2)


def make_module(method: Method, away: bool = True, guidance_scale: float = 2.0, **changes: Any) -> TuningModule:
    """A module outside of a trainer; `away` moves the policy from the base model."""
    settings: dict[str, Any] = {"alpha": 3.0, "beta": 0.02, "gradient_clip_norm": None, "seed": 1}
    module = TuningModule(
        shapes_model(), LoRA(), Redness(), partial(torch.optim.SGD, lr=1.0), Sampler(4, guidance_scale), method,
        **(settings | changes),
    )  # fmt: skip
    if away:
        generator = torch.Generator().manual_seed(0)
        for weight in module.adapters:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    module._trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0, log_every_n_steps=1)  # type: ignore[assignment]
    step = SimpleNamespace(zero_grad=lambda: module.zero_grad(), step=lambda: None)
    module.optimizers = lambda: step  # type: ignore[method-assign, assignment, return-value]
    return module


def gradient(module: TuningModule) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in module.adapters if weight.grad is not None])


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Alike but for rounding, which is relative to the largest entries."""
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
