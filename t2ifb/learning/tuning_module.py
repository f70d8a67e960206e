"""Stage 2: the U-Net's adapters tuned by alpha * reward - beta * KL, whichever way the gradient is taken."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.lora import LoRA, adapter_state, load_adapter_state
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.rollout import Denoise, Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning.exam import Exam


class Method(Protocol):
    """How a batch of prompts becomes a gradient: what the fine-tuning algorithms differ in."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward has to be differentiable."""
        ...

    def steps_with_kl(self, steps: int) -> Sequence[int]:
        """The steps, of so many, that `note` may be given a KL divergence of.

        Raises:
            ValueError: The method's settings do not fit a schedule of so many steps.
        """
        ...

    def learn(self, policy: "TuningModule", part: PromptBatch) -> None:
        """Add the gradient of the part's loss, summed over its prompts and divided by `part.total`."""
        ...


class TuningModule(LightningModule):
    """A diffusion model whose adapters are tuned; a `Method` says how, everything else is the same for all of them.

    Logs `train/loss`, `train/reward`, `train/kl`, `train/kl_<index>` of single steps, and what else the method notes.

    Attributes:
        schedule: The steps of the training rollouts.
        terms: The latest loss's parts, so that a NaN can be traced.
    """

    def __init__(
        self,
        model: DiffusionModel,
        lora: LoRA,
        reward: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        rollout: Sampler,
        method: Method,
        exam: Exam | None = None,
        alpha: float = 100.0,
        beta: float = 0.01,
        micro_batch_size: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        """Put the parts together and adapters into the U-Net.

        Args:
            model: Frozen.
            lora: Which adapters.
            reward: Takes images (B, 3, H, W) in [0, 1] and B prompts, gives (B,).
            optimizer: Makes the optimiser from the adapters' weights.
            rollout: How trajectories are made.
            method: How a batch of prompts becomes a gradient.
            exam: What a validation looks at.
            alpha: Weight of the reward. The optimiser ignores a common factor, and so does a limit that every gradient
                is above: only alpha / beta and the learning rate act.
            beta: Weight of the KL divergence in nats.
            micro_batch_size: Prompts whose trajectories are in memory together; the whole batch by default.
            gradient_clip_norm: Largest norm of an update's gradient; None for no limit.
            seed: Of adapters, noise and steps.

        Raises:
            ValueError: The method does not fit the schedule, or a number is out of range.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapters alone; `on_load_checkpoint` is strict about them
        self.schedule = rollout.schedule_of(model)
        self.method, self._steps_with_kl = method, list(method.steps_with_kl(len(self.schedule)))
        if alpha < 0 or beta < 0 or (micro_batch_size is not None and micro_batch_size < 1):
            raise ValueError(
                f"alpha={alpha} and beta={beta} must not be negative, micro_batch_size={micro_batch_size} not below 1"
            )
        self.alpha, self.beta = alpha, beta
        self.micro_batch_size, self.gradient_clip_norm = micro_batch_size, gradient_clip_norm
        self.seed, self.sampler, self.exam = seed, rollout, exam
        self.adapters = lora.add(model.unet, seed)
        self.make_optimizer = optimizer
        self.model, self.reward = model, reward.requires_grad_(False).eval()
        self.terms: dict[str, Tensor] = {}
        self._seen: dict[str, list[Tensor]] = {}

    def setup(self, stage: str) -> None:
        """Let several processes exchange nothing but adapters: each reads the frozen weights itself."""
        frozen = [name for name, weight in self.named_parameters() if not weight.requires_grad]
        self._ddp_params_and_buffers_to_ignore = [*frozen, *(name for name, _ in self.named_buffers())]

    def training_step(self, batch: PromptBatch, index: int) -> None:
        """One update: the mean over the batch's prompts."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        with fast_attention(self.device), self._apart():
            for part in batch.split(self.micro_batch_size):
                self.method.learn(self, part)
        self._sum_gradients()
        optimizer.step()
        self._log()

    def begin(self, part: PromptBatch) -> tuple[Rollout, Denoise]:
        """Rollouts at pure noise for the part's prompts, and the U-Net for them; functions of (seed, position)."""
        keys = [(self.seed, part.position, number) for number in part.numbers]
        rollout = Rollout(self.schedule, keys, self.model.latent_shape, self.device)
        return rollout, self.sampler.denoiser(self.model, self.schedule, part.prompts)

    @torch.no_grad()
    def base_output(self, denoise: Denoise, noisy: Tensor, step: int) -> Tensor:
        """The base model's output (B, C, h, w) on latents (B, C, h, w): the same U-Net with its adapters off."""
        with self.model.base():
            return denoise(noisy, step)

    def kl(self, output: Tensor, base: Tensor, noisy: Tensor, step: int) -> Tensor:
        """KL divergence (B,) float32, in nats, of a step's distributions by the policy's and the base model's output.

        Args:
            output: (B, C, h, w), the policy's.
            base: (B, C, h, w), the base model's on the same latents.
            noisy: (B, C, h, w), the latents where the step begins.
            step: Its index.
        """
        with torch.autocast(self.device.type, enabled=False):
            policy, reference = (self.schedule.kl_step(each.float(), noisy, step) for each in (output, base))
            return gaussian_kl(policy.mean, reference.mean, policy.variance)

    def _apart(self) -> AbstractContextManager[None]:
        """Keeps several processes from averaging at each backward pass: they add up once, when an update is whole."""
        strategy: Any = self.trainer.strategy if self.trainer.world_size > 1 else None
        return nullcontext() if strategy is None else strategy.block_backward_sync()

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes: each has divided by the prompts of the whole batch."""
        if self.trainer.world_size == 1:
            return
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.adapters]
        together = nn.utils.parameters_to_vector(gradients)
        torch.distributed.all_reduce(together)
        nn.utils.vector_to_parameters(together, gradients)
        for weight, gradient in zip(self.adapters, gradients, strict=True):
            weight.grad = gradient

    def note(self, **figures: Tensor) -> None:
        """Remember figures, each (B,) of some samples, until their means are logged."""
        for name, values in figures.items():
            total = torch.stack([values.detach().double().sum(), values.new_tensor(len(values), dtype=torch.float64)])
            self._seen.setdefault(name, []).append(total)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit the gradient, once it is complete and unscaled.

        Raises:
            ValueError: The optimiser takes gradients that are still scaled, so that their norm means nothing.
        """
        if self.gradient_clip_norm is None or all(weight.grad is None for weight in self.adapters):
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                "algorithm.gradient_clip_norm cannot be held with trainer.precision=16-mixed and a fused optimiser; "
                "give optimizer.fused=false, or algorithm.gradient_clip_norm=null"
            )
        nn.utils.clip_grad_norm_(self.adapters, self.gradient_clip_norm)

    def validation_step(self, batch: list[int], index: int) -> None:
        """Draw some held-out samples from the policy and judge them."""
        assert self.exam is not None
        self.exam.look(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was found."""
        assert self.exam is not None
        self.exam.gather()
        for name, value in self.exam.figures(self.exam.answers()).items():
            self.log(f"val/{name}", value, prog_bar=name in ("reward", "kl"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was asked for."""
        return self.make_optimizer(self.adapters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters, and figures that are not logged yet (of several processes those of the first).

        Everything else is read from where it came from.
        """
        checkpoint["state_dict"] = adapter_state(self.model.unet)
        checkpoint["noted"] = {name: torch.stack(values).cpu() for name, values in self._seen.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters in.

        Raises:
            ValueError: They are of other layers or of another rank.
        """
        load_adapter_state(self.model.unet, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}
        if self.global_rank == 0:
            self._seen = {name: list(values.to(self.device)) for name, values in checkpoint.get("noted", {}).items()}

    def _log(self) -> None:
        """Log the means since the last time, now and then; NaN for a step that no gradient was taken at."""
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        totals = {name: torch.stack(values).sum(0).cpu() for name, values in self._seen.items()}
        self._seen = {}
        parts: list[Any] = [totals] * self.trainer.world_size
        if len(parts) > 1:
            torch.distributed.all_gather_object(parts, totals)
        names = dict.fromkeys(name for part in parts for name in part)
        sums = {name: sum(part[name] for part in parts if name in part) for name in names}
        means = {name: float(total[0] / total[1]) for name, total in sums.items()}
        means = {f"kl_{step}": float("nan") for step in self._steps_with_kl} | means
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name in ("reward", "kl"), batch_size=1)


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain attention: flash attention's backward pass takes twice as long there.

    Held around a whole update: what gradient checkpointing computes again has to be what was computed first.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
