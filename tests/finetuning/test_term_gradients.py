"""Norms of the gradients of a loss's terms, against autograd of each alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from t2ifb.finetuning.algorithm import Experience
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.term_gradients import TermGradients
from tests.finetuning.method_parts import ALGORITHMS, BATCH, make_module


def test_the_norms_are_those_of_each_term_alone() -> None:
    module: Any = make_module(ReFL([2, 2]))
    noted: dict[str, torch.Tensor] = {}
    module.note = lambda **figures: noted.update(figures)
    experience: Experience = module._collect(BATCH)
    norms = {}
    for name, (alpha, beta) in {"reward_gradient": (3.0, 0.0), "kl_gradient": (0.0, 0.02)}.items():
        algorithm = ReFL([2, 2], alpha=alpha, beta=beta)
        loss = algorithm.loss(module.policy, Experience(experience.prompts, experience.tensors, len(experience)))
        norms[name] = float(parameters_to_vector(torch.autograd.grad(loss.total, module.policy.adapters)).norm())
    callback, trainer = TermGradients(), SimpleNamespace(global_step=0, log_every_n_steps=2)
    module.manual_backward = lambda loss: callback.on_before_backward(trainer, module, loss)  # type: ignore[arg-type]
    module.training_step(BATCH, 0)
    assert "kl_gradient" not in noted  # the figures of this update are not logged
    trainer.global_step = 1
    module.training_step(BATCH, 0)
    for name, norm in norms.items():
        assert float(noted[name]) == pytest.approx(norm, rel=1e-3)
    share = norms["kl_gradient"] / sum(norms.values())
    assert float(noted["kl_share"]) == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("name", ["refl", "grpo", "nft", "best of n"])
def test_without_beta_the_kl_has_no_gradient(name: str) -> None:
    module: Any = make_module(ALGORITHMS[name], beta=0.0)
    noted: dict[str, torch.Tensor] = {}
    module.note = lambda **figures: noted.update(figures)
    callback, trainer = TermGradients(), SimpleNamespace(global_step=0, log_every_n_steps=1)
    module.manual_backward = lambda loss: callback.on_before_backward(trainer, module, loss)  # type: ignore[arg-type]
    module.training_step(BATCH, 0)
    assert float(noted["kl_gradient"]) == float(noted["kl_share"]) == 0 < float(noted["reward_gradient"])
