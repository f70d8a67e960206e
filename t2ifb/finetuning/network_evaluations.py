"""Cost of fine-tuning, counted in network evaluations."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

BACKWARD = 2
"""Cost of a backward pass, in forward passes."""


class NetworkEvaluations(Callback):
    """Counts what training asks of the denoiser: 1 per row of a forward pass, and `BACKWARD` if it is differentiated.

    Guidance evaluates two rows per sample. Validations are not counted. The total over all updates and processes is
    logged as `train/network_evaluations`, and resumed with the run.

    Attributes:
        total: Evaluations of all updates so far.
    """

    def __init__(self) -> None:
        self.total = 0
        self._since = 0
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        """Watch the denoiser."""
        self._hook = module.policy.model.denoiser.register_forward_hook(self._count)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()

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
            module.log("train/network_evaluations", float(self.total), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The total."""
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the total."""
        self.total = state_dict["total"]

    def _count(self, denoiser: torch.nn.Module, inputs: Any, output: Any) -> None:
        rows: torch.Tensor = output[0]
        self._since += len(rows) * (1 + BACKWARD * rows.requires_grad)
