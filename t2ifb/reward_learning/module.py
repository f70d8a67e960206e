"""Stage 1: training of a reward head, and optionally CLIP's last layers, on comparisons."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from t2ifb.data.datamodules import RewardBatch
from t2ifb.scorers.clip import CLIPEncoder
from t2ifb.training.losses import bradley_terry_loss, votes_predicted


class RewardModule(LightningModule):
    """Trains r(x, z) so that preferred images get the higher reward (PAPER eq. 4).

    Logs `train/loss`, `train/accuracy`, `val/loss` and `val/accuracy`. Accuracies are preference accuracies over
    comparisons, with equal rewards counted as wrong; where there are votes, over votes.
    """

    def __init__(
        self,
        head: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        seed: int = 0,
        encoder: CLIPEncoder | None = None,
        encoder_lr: float = 1e-5,
    ) -> None:
        """Store head, optimiser and encoder.

        Args:
            head: Maps image embeddings (B, D) and prompt embeddings (B, D) to (B,).
            optimizer: Builds the optimiser from parameter groups.
            seed: Seed of the dropout.
            encoder: Encoder with trainable last layers; batches then contain pixels and tokens instead of embeddings.
            encoder_lr: Learning rate of those layers. Weight decay applies only to the head, because it would pull
                tuned layers away from their pre-trained weights.
        """
        super().__init__()
        self.head = head
        self.encoder = encoder
        self.encoder_lr = encoder_lr
        self.tuned = encoder.thaw() if encoder is not None else []
        self.strict_loading = encoder is None  # checkpoints omit frozen weights
        self.make_optimizer = optimizer
        self.seed = seed
        # Keep NaN values visible in the curve.
        self.loss_sum, self.right, self.asked = (SumMetric(nan_strategy="disable") for _ in range(3))

    def training_step(self, batch: RewardBatch, index: int) -> Tensor:
        """One update: the mean loss over all comparisons of the batch, over all processes."""
        seed_noise(dropout_seed(self.seed, self.global_step, self.global_rank), self.device)
        # Lightning averages gradients over processes, so each share is multiplied by the world size.
        comparisons = (batch.total_comparisons or 1) / self.trainer.world_size
        better, worse = self.compare(batch)
        loss = bradley_terry_loss(better, worse, comparisons, batch.shares, batch.weights)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss.detach(), batch_size=1, sync_dist=True)
            accuracy = votes_predicted(better, worse, batch.shares, batch.weights) / comparisons
            self.log("train/accuracy", accuracy, prog_bar=True, batch_size=1, sync_dist=True)
        return loss

    def validation_step(self, batch: RewardBatch, index: int) -> None:
        """Accumulate loss and correct comparisons of whole rankings."""
        better, worse = self.compare(batch)
        self.loss_sum.update(bradley_terry_loss(better, worse, 1, batch.shares, batch.weights))
        self.right.update(votes_predicted(better, worse, batch.shares, batch.weights))
        self.asked.update(len(better) if batch.weights is None else batch.weights.sum())

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, weighted by comparisons over all processes."""
        asked = self.asked.compute()
        asked = asked.masked_fill(asked == 0, 1)
        self.log("val/loss", self.loss_sum.compute() / asked)
        self.log("val/accuracy", self.right.compute() / asked, prog_bar=True)
        for metric in (self.loss_sum, self.right, self.asked):
            metric.reset()

    def compare(self, batch: RewardBatch) -> tuple[Tensor, Tensor]:
        """Rewards of the better and of the worse image of each comparison."""
        rewards = self.head(*self.embed(batch.images, batch.prompts)).float()
        return rewards[batch.better], rewards[batch.worse]

    def embed(self, images: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (n, D) each of a batch's images and prompts."""
        if self.encoder is None:
            return images, prompts
        count = len(images)
        if count == 0:  # a process with an empty share still has a zero gradient
            images, prompts = images.new_zeros(1, *images.shape[1:]), prompts.new_zeros(1, *prompts.shape[1:])
        texts, place = prompts.unique(dim=0, return_inverse=True)
        # Not `[place]`, whose backward sums in arbitrary order, so that runs would differ.
        of_images = self.encoder.encode_tokens(texts).index_select(0, place)
        return self.encoder.encode_images(images)[:count], of_images[:count]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimiser. The encoder's layers have their own learning rate and no weight decay."""
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}]
        if self.tuned:
            groups.append({"params": self.tuned, "lr": self.encoder_lr, "weight_decay": 0.0})
        return self.make_optimizer(groups)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trained weights. Frozen layers are loaded again from their source."""
        tuned = {f"encoder.model.{name}" for name in self.encoder.tuned_state()} if self.encoder is not None else set()
        state = checkpoint["state_dict"]
        kept = {name: state[name] for name in state if not name.startswith("encoder.") or name in tuned}
        checkpoint["state_dict"] = kept


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the dropout as a function of (seed, step, rank), so that a resumed run repeats it."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 63)


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed the generator of one device only.

    `torch.manual_seed` also queues a call with its stack for each uninitialised accelerator, at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
