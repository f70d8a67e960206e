"""Cost of fine-tuning, counted in network evaluations."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

NAME = "train/network_evaluations"
BACKWARD = 2
"""Cost of a backward pass, in forward passes."""


class NetworkEvaluations(Callback):
    """Counts the denoiser's evaluations in training: 1 per row of a forward pass, `BACKWARD` per row of a backward one.

    Guidance evaluates two rows per sample. A call that is checkpointed as a whole has two forward passes; what a model
    with gradient checkpointing computes again inside is not counted, and neither are validations. The total over all
    updates and processes is logged as `NAME`, and resumed with the run.

    Attributes:
        total: Evaluations of all updates so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._since = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Watch the denoiser."""
        denoiser = module.policy.model.denoiser
        # A checkpointed call stops before its end when it is repeated, so forward passes are counted at their start.
        self._hooks = [
            denoiser.register_forward_pre_hook(self._count, with_kwargs=True),
            denoiser.register_forward_hook(self._follow),
        ]

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop watching."""
        while self._hooks:
            self._hooks.pop().remove()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop watching."""
        self.on_fit_end(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Watch again."""
        self.on_fit_start(trainer, module)

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Add the update's evaluations in all processes, and log the total with the other figures."""
        self.total += module.over_processes(self._since)
        self._since = 0
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            module.log(NAME, float(self.total), batch_size=1)
            module.logged.add(NAME)

    def state_dict(self) -> dict[str, Any]:
        """The total."""
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the total."""
        self.total = state_dict["total"]

    def _count(self, denoiser: torch.nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        self._since += len(next(iter((*inputs, *named.values()))))

    def _follow(self, denoiser: torch.nn.Module, inputs: Any, output: Any) -> None:
        rows: torch.Tensor = output[0]
        if rows.requires_grad:
            rows.register_hook(lambda gradient: self._count_backward(len(gradient)))

    def _count_backward(self, rows: int) -> None:
        self._since += BACKWARD * rows
