"""How large the gradients of the reward's term and of the KL's term are."""

from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torch.nn.utils import parameters_to_vector


class TermGradients(Callback):
    """Logs norms of the gradients with respect to the adapters, for the updates whose figures are logged.

    `train/kl_gradient` is that of beta times the KL divergence, `train/reward_gradient` that of the rest of the loss,
    and `train/kl_share` the former over the sum of both. It costs two more backward passes each time.
    """

    def on_before_backward(self, trainer: Trainer, module: Any, loss: Tensor) -> None:
        """Take the gradients of the latest part's terms."""
        terms: dict[str, Tensor] = module.terms
        if (trainer.global_step + 1) % trainer.log_every_n_steps or not terms or not terms["loss"].requires_grad:  # type: ignore[attr-defined]
            return
        whole = self._gradient(terms["loss"], module)
        beta = module.algorithm.beta  # without it some losses have no KL term
        of_kl = beta * self._gradient(terms["kl"], module) if beta else torch.zeros_like(whole)
        norms = (whole - of_kl).norm(), of_kl.norm()
        share = norms[1] / (norms[0] + norms[1]).clamp(min=1e-12)
        module.note(reward_gradient=norms[0][None], kl_gradient=norms[1][None], kl_share=share[None])

    def _gradient(self, rows: Tensor, module: Any) -> Tensor:
        """(P,), of the mean of a part's rows; zero where they do not depend on the adapters."""
        weights = module.policy.adapters
        found = torch.autograd.grad(rows.mean(), weights, retain_graph=True, allow_unused=True)
        return parameters_to_vector(
            [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        )
