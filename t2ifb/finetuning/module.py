"""Stage 2: the loop that every fine-tuning algorithm shares."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from t2ifb.finetuning.algorithm import Algorithm, Begun, Experience, draws_in_each_process
from t2ifb.finetuning.evaluator import Evaluator
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.training.processes import of_all
from t2ifb.utils.random_streams import Stream

EMA = "ema"
"""Name of the moving average of the adapters."""


class FineTuningModule(LightningModule):
    """Trains a policy's adapters: collects an experience, then does one optimiser step per minibatch.

    Logs the means of the algorithm's terms as `train/<name>`.

    Attributes:
        policy: The trained policy.
        algorithm: The algorithm.
        terms: Terms (B,) of the latest loss, so that a NaN can be traced.
        logged: Names of the metrics that were logged last.
        experience: Experience of the current updates; None before the first one, and if this process has no share of
            the batch.
    """

    def __init__(
        self,
        policy: Policy,
        algorithm: Algorithm,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        evaluator: Evaluator | None = None,
        micro_batch_size: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        ema: float | None = None,
    ) -> None:
        """Store the settings.

        Args:
            policy: The trained policy.
            algorithm: The algorithm.
            optimizer: Builds the optimiser from the adapters' weights.
            evaluator: Evaluation of validations.
            micro_batch_size: Rows of an experience in memory together in a backward pass; by default the number of
                prompts in a batch. It does not change an update.
            gradient_clip_norm: Maximum norm of an update's gradient; None for no limit.
            ema: Decay of a moving average of the adapters, which is evaluated and exported instead of them.

        Raises:
            ValueError: The algorithm does not fit the schedule, or a number is out of range.
        """
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size={micro_batch_size} must be at least 1")
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"ema={ema} must be from 0 to below 1")
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapters alone; `on_load_checkpoint` is strict about them
        algorithm.check(len(policy.schedule))
        self.policy, self.algorithm, self.evaluator = policy, algorithm, evaluator
        policy.rows_in_memory = micro_batch_size
        self.micro_batch_size, self.gradient_clip_norm = micro_batch_size, gradient_clip_norm
        self.make_optimizer, self.ema = optimizer, ema
        self.terms: dict[str, Tensor] = {}
        self.logged: set[str] = set()
        self.experience: Experience | None = None
        self._inside = False
        self._minibatches: Iterator[Experience] | None = None
        self._sums: dict[str, list[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Synchronise only the adapters between processes; each process reads the frozen weights itself."""
        frozen = [name for name, weight in self.named_parameters() if not weight.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*frozen, *(name for name, _ in self.named_buffers())]

    def training_step(self, batch: PromptBatch, index: int) -> None:
        """One update. The first update of a batch collects the experience of all its updates."""
        optimizer: Any = self.optimizers()
        self.logged = set()
        with fast_attention(self.device), self._apart():
            if batch.update == 0:
                self.experience, self._minibatches = self._collect(batch), None
            optimizer.zero_grad()
            for part in self._parts(batch):
                loss = self.algorithm.loss(self.policy, part)
                self.terms = loss.terms
                self.manual_backward(loss.total)
                self.terms = {name: term.detach() for name, term in loss.terms.items()}
                self.note(**self.terms)
        self._sum_gradients()
        optimizer.step()  # clips first, see `on_before_optimizer_step`
        if self.ema is not None:
            self.policy.average(EMA, self.ema)
        self._inside = batch.update + 1 < self.algorithm.updates_per_experience
        self._log()

    @torch.no_grad()
    def _collect(self, batch: PromptBatch) -> Experience | None:
        if isinstance(self.algorithm, Begun):
            self.algorithm.begin(self.policy, batch.position)
        return self.algorithm.collect(self.policy, batch) if batch.prompts else None

    def _parts(self, batch: PromptBatch) -> list[Experience]:
        """The rows of this update in parts that fit into memory; none if this process has no share of the batch."""
        assert self.experience is not None or not batch.prompts, "an update has no experience"
        minibatch = None
        if self.experience is not None:
            if self._minibatches is None:
                key = Stream.MINIBATCHES, self.policy.seed, batch.position, batch.numbers[0]
                seed = int(np.random.SeedSequence(key).generate_state(1)[0])
                self._minibatches = islice(self.algorithm.minibatches(self.experience, seed), batch.update, None)
            minibatch = next(self._minibatches)
        total = self.over_processes(0 if minibatch is None else len(minibatch))
        if not minibatch:
            # A GradScaler needs a backward pass.
            self.manual_backward(torch.stack([weight.sum() for weight in self.policy.adapters]).sum() * 0)
            return []
        return list(replace(minibatch, total=total).parts(self.micro_batch_size or len(batch.prompts)))

    def over_processes(self, count: int) -> int:
        """Sum of a count over all processes, which must call this together."""
        if self.trainer.world_size == 1:
            return count
        total = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(total)
        return int(total)

    def _apart(self) -> AbstractContextManager[None]:
        """Disable averaging over processes at each backward pass; gradients are added up once per update."""
        strategy: Any = self.trainer.strategy if self.trainer.world_size > 1 else None
        return nullcontext() if strategy is None else strategy.block_backward_sync()

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes. Each loss is already divided by the rows of the whole minibatch."""
        if self.trainer.world_size == 1:
            return
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.policy.adapters]
        together = nn.utils.parameters_to_vector(gradients)
        torch.distributed.all_reduce(together)
        nn.utils.vector_to_parameters(together, gradients)
        for weight, gradient in zip(self.policy.adapters, gradients, strict=True):
            weight.grad = gradient

    def note(self, **figures: Tensor) -> None:
        """Add figures, each (B,) of some samples, to the means that are logged."""
        for name, values in figures.items():
            wide = torch.float32 if values.device.type == "mps" else torch.float64  # which MPS lacks
            total = torch.stack([values.detach().to(wide).sum(), values.new_tensor(len(values), dtype=wide)])
            self._sums.setdefault(name, []).append(total)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the complete, unscaled gradient.

        Raises:
            ValueError: The optimiser takes scaled gradients, whose norm is meaningless.
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
        """Free the memory cache of updates: a validation needs blocks of other sizes."""
        torch.cuda.empty_cache()

    def on_validation_end(self) -> None:
        """Free the memory cache of the validation."""
        torch.cuda.empty_cache()

    def validation_step(self, batch: list[int], index: int) -> None:
        """Sample some held-out images from the policy."""
        assert self.evaluator is not None
        with self._evaluated():
            self.evaluator.sample(self.policy.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Score the samples and log the figures."""
        assert self.evaluator is not None
        for name, value in self.evaluator.figures(self.evaluator.answers()).items():
            self.log(f"val/{name}", value, prog_bar=name in ("reward", "kl"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the adapters' weights."""
        return self.make_optimizer(self.policy.adapters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the adapters, an unfinished experience, and the figures of the first process that are not logged yet."""
        if self._inside:
            state = None if self.experience is None else self.experience.state()
            checkpoint["experience"] = of_all(state)
        denoiser = self.policy.model.denoiser
        with self._evaluated():
            checkpoint["state_dict"] = {name: weight.clone() for name, weight in adapter_state(denoiser).items()}
        if self.policy.copies:
            checkpoint["trained"] = adapter_state(denoiser)
            checkpoint["copies"] = self.policy.copies
        checkpoint["processes"] = self.trainer.world_size
        checkpoint["sums"] = {name: torch.stack(values).cpu() for name, values in self._sums.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the adapters, and the experience if it is unfinished.

        Raises:
            ValueError: The adapters belong to other layers or have another rank, or the number of processes differs.
        """
        before, now = checkpoint.get("processes"), self.trainer.world_size
        if before not in (None, now) and draws_in_each_process(self.algorithm):
            raise ValueError(
                f"each process draws and learns samples of its own: resume with {before} processes, not {now}"
            )
        load_adapter_state(self.policy.model.denoiser, checkpoint.get("trained", checkpoint["state_dict"]))
        checkpoint["state_dict"] = {}
        copies = checkpoint.get("copies", {})
        self.policy.copies = {name: [value.to(self.device) for value in values] for name, values in copies.items()}
        if (states := checkpoint.get("experience")) is not None:
            if len(states) != self.trainer.world_size:
                raise ValueError(
                    f"the checkpoint was written between the updates of one experience, by {len(states)} processes: "
                    f"resume with as many, not {self.trainer.world_size}"
                )
            state, self._inside = states[self.global_rank], True
            self.experience = None if state is None else Experience.of(state, self.device)
        if self.global_rank == 0:
            self._sums = {name: list(values.to(self.device)) for name, values in checkpoint.get("sums", {}).items()}

    def _evaluated(self) -> AbstractContextManager[None]:
        """The adapters that are evaluated and exported: their moving average, if there is one."""
        return self.policy.adapters_of(EMA) if EMA in self.policy.copies else nullcontext()

    def _log(self) -> None:
        """Log the means since the last log, every `log_every_n_steps` updates."""
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        totals = {name: torch.stack(values).sum(0).cpu() for name, values in self._sums.items()}
        self._sums = {}
        parts: list[Any] = of_all(totals)
        names = dict.fromkeys(name for part in parts for name in part)  # an empty share has no names
        self.logged |= {f"train/{name}" for name in names}
        for name in names:
            total, count = sum(part[name] for part in parts if name in part)
            self.log(f"train/{name}", float(total / count), prog_bar=name in ("reward", "kl"), batch_size=1)


class ReFLModule(FineTuningModule):
    """The report's setting: a `FineTuningModule` with the algorithm `ReFL`."""

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
        """Store the settings; arguments as in `ReFL` and `FineTuningModule`."""
        super().__init__(policy, ReFL(window, gradients_per_rollout, alpha, beta), optimizer, **options)


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on a CPU, where the backward pass of flash attention takes twice as long.

    Use it around a whole update: gradient checkpointing must recompute exactly the first computation.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
