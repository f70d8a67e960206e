"""Stage 1: the head of a reward model, and CLIP's last layers if they are tuned, trained on comparisons."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from t2ifb.data.comparisons import RewardBatch
from t2ifb.learning.losses import bradley_terry_loss
from t2ifb.scorers.clip_encoder import CLIPEncoder


class RewardModule(LightningModule):
    """Trains r(x, z) so that the image people preferred has the higher reward (PAPER eq. 4).

    Logs `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`; accuracies are preference accuracies over
    comparisons, ties counted as wrong.
    """

    def __init__(
        self,
        head: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        seed: int = 0,
        encoder: CLIPEncoder | None = None,
        encoder_lr: float = 1e-5,
    ) -> None:
        """Put head and optimiser together.

        Args:
            head: Takes image embeddings (B, D) and prompt embeddings (B, D), gives (B,).
            optimizer: Makes the optimiser from groups of parameters.
            seed: Of the dropout.
            encoder: Its last layers are tuned, and batches hold pixels and tokens; without it they hold embeddings.
            encoder_lr: Learning rate of those layers. Weight decay is for the head: it would draw them away from what
                they were trained to.
        """
        super().__init__()
        self.head = head
        self.encoder = encoder
        self.encoder_lr = encoder_lr
        self.tuned = encoder.thaw() if encoder is not None else []
        self.strict_loading = encoder is None  # checkpoints leave out what is frozen
        self.make_optimizer = optimizer
        self.seed = seed
        # A NaN is to be seen in the curve, not dropped.
        self.loss_sum, self.right, self.asked = (SumMetric(nan_strategy="disable") for _ in range(3))

    def training_step(self, batch: RewardBatch, index: int) -> Tensor:
        """One update: the mean over all comparisons of the batch, whichever process holds them."""
        seed_noise(dropout_seed(self.seed, self.global_step, self.global_rank), self.device)
        # Lightning averages gradients over processes, so that each one's share counts world-size times.
        comparisons = max(1, batch.total_comparisons) / self.trainer.world_size
        better, worse = self.compare(batch)
        loss = bradley_terry_loss(better, worse, comparisons)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss.detach(), batch_size=1, sync_dist=True)
            accuracy = (better > worse).sum() / comparisons
            self.log("train/accuracy", accuracy, prog_bar=True, batch_size=1, sync_dist=True)
        return loss

    def validation_step(self, batch: RewardBatch, index: int) -> None:
        """Add up loss and right comparisons of some whole rankings."""
        better, worse = self.compare(batch)
        self.loss_sum.update(bradley_terry_loss(better, worse, comparisons=1))
        self.right.update((better > worse).sum())
        self.asked.update(len(better))

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures, weighted by comparisons over all processes."""
        asked = self.asked.compute().clamp(min=1)
        self.log("val/loss", self.loss_sum.compute() / asked)
        self.log("val/accuracy", self.right.compute() / asked, prog_bar=True)
        for metric in (self.loss_sum, self.right, self.asked):
            metric.reset()

    def compare(self, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """Rewards of the better and of the worse image of each comparison."""
        rewards = self.head(*self.embed(batch.images, batch.prompts)).float()
        return rewards[batch.better], rewards[batch.worse]

    def embed(self, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """What the head takes, (n, D) each, of n images and their prompts as batches hold them."""
        if self.encoder is None:
            return images, prompts
        count = len(images)
        if count == 0:  # a process without a share of the batch has a gradient all the same: zero
            images, prompts = images.new_zeros(1, *images.shape[1:]), prompts.new_zeros(1, *prompts.shape[1:])
        texts, place = prompts.unique(dim=0, return_inverse=True)
        # Not `[place]`, whose backward adds up in any order, so that no two runs would be alike.
        of_images = self.encoder.encode_tokens(texts).index_select(0, place)
        return self.encoder.encode_images(images)[:count], of_images[:count]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was asked for; the encoder's layers have their own learning rate and no weight decay."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}]
        if self.tuned:
            groups.append({"params": self.tuned, "lr": self.encoder_lr, "weight_decay": 0.0})
        return self.make_optimizer(groups)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training changes: frozen layers are read again from where they came from."""
        tuned = {f"encoder.model.{name}" for name in self.encoder.tuned_state()} if self.encoder is not None else set()
        state = checkpoint["state_dict"]
        kept = {name: state[name] for name in state if not name.startswith("encoder.") or name in tuned}
        checkpoint["state_dict"] = kept


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """What noise inside the network depends on: nothing else, so that a resumed run repeats it."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 63)


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed what is drawn on a device, and nothing else.

    `torch.manual_seed` also keeps a call with its stack for each accelerator that was not started, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
