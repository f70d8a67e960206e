"""Stage 2: the loop that every fine-tuning algorithm shares."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import adapter_state, load_adapter_state
from t2ifb.finetuning.algorithm import Algorithm, Experience
from t2ifb.finetuning.evaluator import Evaluator
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL

MINIBATCH_STREAM = 0x0DF6
"""Keeps the seeds of minibatches apart from others with the same seed."""


class FineTuningModule(LightningModule):
    """Trains a policy's adapters by an algorithm: collect, then for each minibatch loss, backward pass and one step.

    Logs the means of the algorithm's terms as `train/<name>`.

    Attributes:
        policy: What is trained.
        algorithm: What is minimised.
        terms: The latest loss's parts, (B,) each, so that a NaN can be traced.
        experience: What the present updates learn from; None before the first and where the batch has no share for this
            process.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        evaluator: Evaluator | None = None,
        micro_batch_size: int | None = None,
        gradient_clip_norm: float | None = 1.0,
    ) -> None:
        """Put the parts together.

        Args:
            policy: What is trained.
            algorithm: What is minimised.
            optimizer: Makes the optimiser from the adapters' weights.
            evaluator: What a validation looks at.
            micro_batch_size: Rows of an experience that are in memory together in a backward pass; by default as many
                as there are prompts in a batch. It does not change an update.
            gradient_clip_norm: Largest norm of an update's gradient; None for no limit.

        Raises:
            ValueError: The algorithm does not fit the schedule, or a number is out of range.
        """
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={micro_batch_size} must be at least 1")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapters alone; `on_load_checkpoint` is strict about them
        algorithm.check(len(policy.schedule))
        self.policy, self.algorithm, self.evaluator = policy, algorithm, evaluator
        self.micro_batch_size, self.gradient_clip_norm = micro_batch_size, gradient_clip_norm
        self.make_optimizer = optimizer
        self.terms: dict[str, Tensor] = {}
        self.experience: Experience | None = None
        self._inside = False
        self._seen: dict[str, list[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Let several processes exchange nothing but adapters: each reads the frozen weights itself."""
        frozen = [name for name, weight in self.named_parameters() if not weight.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*frozen, *(name for name, _ in self.named_buffers())]

    def training_step(self, batch: PromptBatch, index: int) -> None:
        """One update. The first of a batch's updates collects the experience that all of them learn from."""
        optimizer: Any = self.optimizers()
        with fast_attention(self.device), self._apart():
            if batch.update == 0:
                self.experience = self._collect(batch)
            optimizer.zero_grad()
            for part in self._parts(batch):
                loss = self.algorithm.loss(self.policy, part)
                self.terms = loss.terms
                self.manual_backward(loss.total)
                self.terms = {name: term.detach() for name, term in loss.terms.items()}
                self.note(**self.terms)
        self._sum_gradients()
        optimizer.step()
        self._inside = batch.update + 1 < self.algorithm.updates_per_experience
        self._log()

    @torch.no_grad()
    def _collect(self, batch: PromptBatch) -> Experience | None:
        return self.algorithm.collect(self.policy, batch) if batch.prompts else None

    def _parts(self, batch: PromptBatch) -> list[Experience]:
        """The rows of this update in parts that fit into memory; none where this process has no share of the batch."""
        assert self.experience is not None or not batch.prompts, "an update without the experience that it learns from"
        minibatch = None
        if self.experience is not None:
            seed = np.random.SeedSequence([MINIBATCH_STREAM, self.policy.seed, batch.position]).generate_state(1)
            minibatch = next(islice(self.algorithm.minibatches(self.experience, int(seed[0])), batch.update, None))
        total = self._over_processes(0 if minibatch is None else len(minibatch))
        if not minibatch:
            # A GradScaler needs a backward pass.
            self.manual_backward(torch.stack([weight.sum() for weight in self.policy.adapters]).sum() * 0)
            return []
        return list(replace(minibatch, total=total).parts(self.micro_batch_size or len(batch.prompts)))

    def _of_all_processes(self, value: Any) -> list[Any]:
        values = [value] * self.trainer.world_size
        if len(values) > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _over_processes(self, count: int) -> int:
        if self.trainer.world_size == 1:
            return count
        total = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(total)
        return int(total)

    def _apart(self) -> AbstractContextManager[None]:
        """Keeps several processes from averaging at each backward pass: they add up once, when an update is whole."""
        strategy: Any = self.trainer.strategy if self.trainer.world_size > 1 else None
        return nullcontext() if strategy is None else strategy.block_backward_sync()

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes: each has divided by the prompts of the whole batch."""
        if self.trainer.world_size == 1:
            return
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.policy.adapters]
        together = nn.utils.parameters_to_vector(gradients)
        torch.distributed.all_reduce(together)
        nn.utils.vector_to_parameters(together, gradients)
        for weight, gradient in zip(self.policy.adapters, gradients, strict=True):
            weight.grad = gradient

    def note(self, **figures: Tensor) -> None:
        """Remember figures, each (B,) of some samples, until their means are logged."""
        for name, values in figures.items():
            wide = torch.float32 if values.device.type == "mps" else torch.float64  # which MPS does not have
            total = torch.stack([values.detach().to(wide).sum(), values.new_tensor(len(values), dtype=wide)])
            self._seen.setdefault(name, []).append(total)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient, once it is complete and unscaled.

        Raises:
            ValueError: The optimiser takes gradients that are still scaled, so that their norm means nothing.
        """
        if self.gradient_clip_norm is None or all(weight.grad is None for weight in self.policy.adapters):
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                f"gradient_clip_norm={self.gradient_clip_norm} cannot be held with trainer.precision=16-mixed and a "
                "fused optimiser; give optimizer.fused=False, or gradient_clip_norm=None"
            )
        nn.utils.clip_grad_norm_(self.policy.adapters, self.gradient_clip_norm)

    def on_validation_start(self) -> None:
        """Give the memory that updates have used back: what a validation needs is of other sizes."""
        torch.cuda.empty_cache()

    def on_validation_end(self) -> None:
        """Give the memory that the validation has used back."""
        torch.cuda.empty_cache()

    def validation_step(self, batch: list[int], index: int) -> None:
        """Draw some held-out samples from the policy and judge them."""
        assert self.evaluator is not None
        self.evaluator.sample(self.policy.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was found."""
        assert self.evaluator is not None
        self.evaluator.gather()
        for name, value in self.evaluator.figures(self.evaluator.answers()).items():
            self.log(f"val/{name}", value, prog_bar=name in ("reward", "kl"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was asked for."""
        return self.make_optimizer(self.policy.adapters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters, an experience whose updates are not all done, and figures that are not logged yet.

        Figures are those of the first process. Everything else is read from where it came from.
        """
        if self._inside:
            state = None if self.experience is None else self.experience.state()
            checkpoint["experience"] = self._of_all_processes(state)
        checkpoint["state_dict"] = adapter_state(self.policy.model.denoiser)
        checkpoint["noted"] = {name: torch.stack(values).cpu() for name, values in self._seen.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters in.

        Raises:
            ValueError: They are of other layers or of another rank, or an experience is of other processes.
        """
        load_adapter_state(self.policy.model.denoiser, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}
        if (states := checkpoint.get("experience")) is not None:
            if len(states) != self.trainer.world_size:
                raise ValueError(
                    f"the checkpoint was written between the updates of one experience, by {len(states)} processes: "
                    f"resume with as many, not {self.trainer.world_size}"
                )
            state, self._inside = states[self.global_rank], True
            self.experience = None if state is None else Experience.of(state, self.device)
        if self.global_rank == 0:
            self._seen = {name: list(values.to(self.device)) for name, values in checkpoint.get("noted", {}).items()}

    def _log(self) -> None:
        """Log the means since the last time, now and then."""
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        totals = {name: torch.stack(values).sum(0).cpu() for name, values in self._seen.items()}
        self._seen = {}
        parts = self._of_all_processes(totals)
        names = dict.fromkeys(name for part in parts for name in part)
        sums = {name: sum(part[name] for part in parts if name in part) for name in names}
        means = {name: float(total[0] / total[1]) for name, total in sums.items()}
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name in ("reward", "kl"), batch_size=1)


class ReFLModule(FineTuningModule):
    """What the report tunes with: a `FineTuningModule` whose algorithm is `ReFL`."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        alpha: float = 100.0,
        beta: float = 0.01,
        window: Sequence[int] | None = None,
        gradients_per_rollout: int = 1,
        **options: Any,
    ) -> None:
        """Put the parts together; arguments as of `ReFL` and `FineTuningModule`."""
        super().__init__(policy, ReFL(window, gradients_per_rollout, alpha, beta), optimizer, **options)


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain attention: flash attention's backward pass takes twice as long there.

    Held around a whole update: what gradient checkpointing computes again has to be what was computed first.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
