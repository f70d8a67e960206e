"""NaN and infinity: skip the update, count it, and stop a run that cannot be trusted any more."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class FaultGuard(Callback):
    """Skips updates whose loss or gradients are not finite.

    The gradients are dropped, so that the optimiser leaves weights and momenta as they are. Under a GradScaler an
    infinite gradient is no fault but an overflow, and skipping is the scaler's own business; a loss that is not finite
    is counted there too. A module that adds up several backward passes may have `terms`, the parts of its latest loss
    by name: the first that is not finite is named.
    """

    def __init__(self, most: int = 10) -> None:
        """Stop the run after more than `most` skipped updates."""
        self.most, self.skipped = most, 0
        self.first: str | None = None
        self._faulty_loss: str | None = None

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
        """Look at the loss."""
        if self._faulty_loss is None and not loss.isfinite():
            terms: dict[str, torch.Tensor] = getattr(module, "terms", {})
            self._faulty_loss = next((name for name, term in terms.items() if not term.isfinite().all()), "loss")

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, once they are summed over all processes.

        Raises:
            ValueError: More updates were skipped than allowed.
        """
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        faulty, self._faulty_loss = self._faulty_loss, None
        if faulty is None and not scaled:
            faulty = _faulty_gradient(module, optimizer)
        if trainer.world_size > 1:  # all count alike, so that all stop together
            told = trainer.strategy.reduce_boolean_decision(faulty is not None, all=False)
            faulty = faulty or ("loss of another process" if told else None)
        if faulty is None:
            return
        self.skipped += 1
        self.first = self.first or f"the {faulty} at step {trainer.global_step}"
        if not scaled:
            for parameter in module.parameters():
                parameter.grad = None
        if self.skipped > self.most:
            raise ValueError(
                f"{self.skipped} updates had a NaN or an infinity; the first was {self.first}. They changed no weight, "
                "and the last checkpoint from before them, if there was one, is kept. Lower the learning rate, or look "
                "at the data with `python -m t2ifb.prepare`."
            )

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"skipped": self.skipped, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.first = state_dict["skipped"], state_dict["first"]


def _faulty_gradient(module: LightningModule, optimizer: Optimizer) -> str | None:
    """The first gradient with a NaN or an infinity; one sum over all tells cheaply that there is none."""
    updated = (parameter for group in optimizer.param_groups for parameter in group["params"])
    sums = [parameter.grad.sum() for parameter in updated if parameter.grad is not None]
    if not sums or torch.stack(sums).sum().isfinite():
        return None
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return next((f"gradient of {name}" for name, g in gradients.items() if not g.isfinite().all()), None)
