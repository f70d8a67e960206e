"""A learning rate that falls during the run."""

from typing import Any

from lightning import Callback, Trainer

START = "initial_lr"
"""Key of a parameter group's first learning rate, as in `torch.optim.lr_scheduler`; checkpoints keep it."""


class LinearDecay(Callback):
    """Before update n of N, sets each learning rate to (1 - n / N) of its first value."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Set the learning rates of the next update."""
        for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
            group["lr"] = group.setdefault(START, group["lr"]) * (1 - trainer.global_step / trainer.max_steps)
