"""Handling of NaN and infinity: skip and count the update, and stop the run after too many."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

MOST_IN_A_ROW = 20
"""Maximum consecutive updates that a GradScaler may drop."""
SMALLEST_SCALE = 2.0**-8
"""Minimum loss scale. Below it gradients vanish in fp16: error 0.8 % at 2^-8, two thirds at 2^-16."""


class NanGuard(Callback):
    """Skips updates whose loss or gradients are not finite.

    The gradients are dropped, so that the optimiser leaves weights and momenta unchanged. Under a GradScaler a
    non-finite gradient is an overflow: the scaler drops the update and halves its scale. Overflows are counted
    separately, and `train/loss_scale` is logged; a non-finite loss counts as skipped there too. A module with several
    backward passes may have `terms`, the components of its latest loss by name; the first non-finite one is named.

    Attributes:
        skipped: Number of skipped updates with NaN or infinity.
        overflowed: Number of updates that a GradScaler dropped only for their gradients.
    """

    def __init__(self, most: int = 10) -> None:
        """Stop the run after more than `most` skipped updates."""
        self.most, self.skipped = most, 0
        self.overflowed = self.in_a_row = 0
        self.first: str | None = None
        self._broken_loss: str | None = None
        self._is_broken, self._scale = False, 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Record the loss scale before the update."""
        self._is_broken, scaler = False, _scaler(trainer)
        self._scale = 0.0 if scaler is None else scaler.get_scale()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Count the update if the scaler dropped it, which a lower scale shows.

        Raises:
            ValueError: Too many consecutive updates were dropped.
        """
        if (scaler := _scaler(trainer)) is None:
            return
        scale = scaler.get_scale()
        module.log("train/loss_scale", scale, batch_size=1)
        if self._is_broken:
            return
        self.in_a_row = self.in_a_row + 1 if scale < self._scale else 0
        if not self.in_a_row:
            return
        self.overflowed += 1
        if self.overflowed == 1:
            rank_zero_warn(
                f"update {trainer.global_step} overflowed in fp16 and was dropped; the loss scale falls to {scale:g}. "
                "Single overflows are normal; summary.json counts them as overflowed_updates.",
            )
        if self.in_a_row > MOST_IN_A_ROW or scale < SMALLEST_SCALE:
            smaller = " A smaller alpha and beta help too." if hasattr(module, "algorithm") else ""
            raise ValueError(
                f"{self.in_a_row} consecutive updates overflowed in fp16 and were dropped; the loss scale fell to "
                f"{scale:g}. Use trainer.precision=bf16-mixed or 32-true.{smaller}"
            )

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: torch.Tensor) -> None:
        """Check the loss."""
        if self._broken_loss is None and not loss.isfinite():
            terms: dict[str, torch.Tensor] = getattr(module, "terms", {})
            self._broken_loss = next((name for name, term in terms.items() if not term.isfinite().all()), "loss")

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients after they are summed over all processes.

        Raises:
            ValueError: Too many updates were skipped.
        """
        scaled = _scaler(trainer) is not None
        broken, self._broken_loss = self._broken_loss, None
        if broken is None and not scaled:
            broken = _bad_gradient(module, optimizer)
        if trainer.world_size > 1:  # all processes count alike, so that they stop together
            told = trainer.strategy.reduce_boolean_decision(broken is not None, all=False)
            broken = broken or ("loss of another process" if told else None)
        if broken is None:
            return
        self.skipped, self._is_broken = self.skipped + 1, True
        self.first = self.first or f"the {broken} at step {trainer.global_step}"
        if not scaled:
            for parameter in module.parameters():
                parameter.grad = None
        if self.skipped > self.most:
            raise ValueError(
                f"{self.skipped} updates had a NaN or an infinity; the first was {self.first}. They were skipped, and "
                "the last good checkpoint is unchanged. Lower the learning rate, or check the data with "
                "`python -m t2ifb.prepare`."
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        names = ("skipped", "first", "overflowed", "in_a_row")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def _scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    return getattr(trainer.precision_plugin, "scaler", None)


def _bad_gradient(module: LightningModule, optimizer: Optimizer) -> str | None:
    """The first gradient with NaN or infinity. A sum over all gradients is a cheap first check."""
    updated = (parameter for group in optimizer.param_groups for parameter in group["params"])
    sums = [parameter.grad.sum() for parameter in updated if parameter.grad is not None]
    if not sums or torch.stack(sums).sum().isfinite():
        return None
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return next((f"gradient of {name}" for name, g in gradients.items() if not g.isfinite().all()), None)
