"""Stage 2: the U-Net's adapters tuned by alpha * reward - beta * KL, back-propagated through single late steps."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.lora import LoRA, adapter_state, load_adapter_state
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning.exam import Exam
from t2ifb.learning.losses import gaussian_kl

INDEX_STREAM = 0x0DF1
"""Keeps the draws of steps apart from others with the same seed."""


class ReFLModule(LightningModule):
    """Reward feedback learning (PAPER eq. 5; arXiv 2304.05977, algorithm 1) with a KL divergence to the base model.

    Each rollout goes down the schedule without gradient. At each of m steps of a window the U-Net is called once with
    gradient at the detached latents: its output gives the predicted image, which is decoded and rewarded, and the mean
    of the step's distribution, which enters the KL. What the earlier steps would contribute is dropped, as in ReFL:
    neither the latents' dependence on the adapters nor the score-function term of the expectation's gradient is
    followed.

    Logs `train/loss`, `train/reward`, `train/kl`, `train/kl_<index>`, and what each term sends back to the U-Net's
    output: `train/reward_gradient`, `train/kl_gradient` (norms a sample) and the latter's share, `train/kl_share`.
    """

    def __init__(
        self,
        model: DiffusionModel,
        lora: LoRA,
        reward: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        rollout: Sampler,
        exam: Exam | None = None,
        window: Sequence[int] | None = None,
        gradients_per_rollout: int = 1,
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
            reward: Takes images (B, 3, H, W) in [0, 1] and B prompts, gives (B,), differentiably.
            optimizer: Makes the optimiser from the adapters' weights.
            rollout: How trajectories are made.
            exam: What a validation looks at.
            window: First and last step at which a gradient may be taken, counted from 0; the last ten by default.
            gradients_per_rollout: m, how many different steps of the window each rollout gives a gradient at.
            alpha: Weight of the reward. The optimiser ignores a common factor: only alpha / beta and its learning rate
                act.
            beta: Weight of the KL divergence in nats.
            micro_batch_size: Prompts whose trajectories are in memory together; the whole batch by default.
            gradient_clip_norm: Largest norm of an update's gradient; None for no limit.
            seed: Of adapters, noise and steps.

        Raises:
            ValueError: The window does not fit the schedule, or a number is out of range.
        """
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the adapters alone; `on_load_checkpoint` is strict about them
        self.schedule = rollout.schedule_of(model)
        steps = len(self.schedule)
        if window is not None and len(window) != 2:
            raise ValueError(f"window must be the first and the last step, such as [30, 39], not {list(window)}")
        first, last = (max(0, steps - 10), steps - 1) if window is None else tuple(window)
        if not 0 <= first <= last < steps:
            raise ValueError(f"window={[first, last]} must lie within the steps 0 to {steps - 1}")
        if not 1 <= gradients_per_rollout <= last - first + 1:
            raise ValueError(
                f"gradients_per_rollout={gradients_per_rollout} must be from 1 to the {last - first + 1} steps of "
                f"window={[first, last]}"
            )
        if alpha < 0 or beta < 0 or (micro_batch_size is not None and micro_batch_size < 1):
            raise ValueError(
                f"alpha={alpha} and beta={beta} must not be negative, micro_batch_size={micro_batch_size} not below 1"
            )
        self.window, self.gradients_per_rollout = (first, last), gradients_per_rollout
        self.alpha, self.beta = alpha, beta
        self.micro_batch_size, self.gradient_clip_norm = micro_batch_size, gradient_clip_norm
        self.seed, self.rollout, self.exam = seed, rollout, exam
        self.adapters = lora.add(model.unet, seed)
        self.make_optimizer = optimizer
        self.model, self.reward = model, reward.requires_grad_(False).eval()
        self.terms: dict[str, Tensor] = {}
        self._seen: dict[str, list[Tensor]] = {}

    def training_step(self, batch: PromptBatch, index: int) -> None:
        """One update: the mean over prompts and over the m steps of their rollouts."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        indices = self.indices(batch.position)
        scale = 1 / (batch.total * len(indices))
        with fast_attention(self.device):
            for part in batch.split(self.micro_batch_size):
                keys = [(self.seed, batch.position, number) for number in part.numbers]
                rollout = Rollout(self.schedule, keys, self.model.latent_shape, self.device)
                denoise = self.rollout.denoiser(self.model, self.schedule, part.prompts)
                for step in indices:
                    noisy = rollout.to(step, denoise)
                    with torch.no_grad(), self.model.base():
                        base = denoise(noisy, step)
                    output = denoise(noisy, step)
                    gradient = self.output_gradient(output, base, noisy, step, part.prompts)
                    self.manual_backward((output * gradient).sum() * scale)
                    rollout.take(output)
        optimizer.step()
        self._log()

    def output_gradient(self, output: Tensor, base: Tensor, noisy: Tensor, step: int, prompts: list[str]) -> Tensor:
        """The gradient of a step's loss, summed over samples, with respect to the U-Net's output.

        Both terms depend on the adapters through this output only, so that their gradients can be taken one by one
        up to here and looked at, and go on through the U-Net together.

        Args:
            output: (B, C, h, w), the policy's.
            base: (B, C, h, w), the base model's on the same latents.
            noisy: (B, C, h, w), the latents where the step begins.
            step: Its index.
            prompts: B strings.

        Returns:
            (B, C, h, w) float32.
        """
        with torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            leaf = output.detach().float().requires_grad_()
            reward = self.reward(self.model.decode(self.schedule.transition(leaf, noisy, step).clean), prompts)
            (of_reward,) = torch.autograd.grad(-self.alpha * reward.sum(), leaf)
            policy = self.schedule.kl_transition(leaf, noisy, step)
            reference = self.schedule.kl_transition(base, noisy, step)
            kl = gaussian_kl(policy.mean, reference.mean, policy.variance)
            (of_kl,) = torch.autograd.grad(self.beta * kl.sum(), leaf)
        self.terms = {"U-Net's output": output.detach(), "reward": reward.detach(), "kl": kl.detach()}
        self._note(of_reward, of_kl, step)
        # Zero, but NaN where a term is NaN and its gradient happens to be finite: such a step must not count.
        faults = 0 * (reward.detach() + kl.detach())
        return of_reward + of_kl + faults[:, None, None, None]

    def indices(self, position: int) -> list[int]:
        """The m steps at which an update takes its gradients, rising: a function of (seed, position)."""
        first, last = self.window
        rng = np.random.default_rng([INDEX_STREAM, self.seed, position])
        drawn = rng.choice(last - first + 1, self.gradients_per_rollout, replace=False)
        return sorted(first + int(number) for number in drawn)

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
        for name, value in self.exam.figures(self.exam.answers()).items():
            self.log(f"val/{name}", value, prog_bar=name in ("reward", "kl"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that was asked for."""
        return self.make_optimizer(self.adapters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapters: everything else is read from where it came from."""
        checkpoint["state_dict"] = adapter_state(self.model.unet)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapters in.

        Raises:
            ValueError: They are of other layers or of another rank.
        """
        load_adapter_state(self.model.unet, checkpoint["state_dict"])
        checkpoint["state_dict"] = {}

    def _note(self, of_reward: Tensor, of_kl: Tensor, step: int) -> None:
        """Remember the figures of one step's gradient."""
        reward, kl = self.terms["reward"], self.terms["kl"]
        norms = [gradient.flatten(1).norm(dim=1).mean() for gradient in (of_reward, of_kl)]
        figures = {
            "loss": (self.beta * kl - self.alpha * reward).mean(),
            "reward": reward.mean(),
            "kl": kl.mean(),
            f"kl_{step}": kl.mean(),
            "reward_gradient": norms[0],
            "kl_gradient": norms[1],
        }
        for name, value in figures.items():
            self._seen.setdefault(name, []).append(value)

    def _log(self) -> None:
        """Log the means since the last time, now and then; NaN for a step that no gradient was taken at."""
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        means = {name: float(torch.stack(values).mean()) for name, values in self._seen.items()}
        self._seen = {}
        first, last = self.window
        means = {f"kl_{step}": float("nan") for step in range(first, last + 1)} | means
        means["kl_share"] = means["kl_gradient"] / max(means["kl_gradient"] + means["reward_gradient"], 1e-12)
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name in ("reward", "kl"), batch_size=1)


def fast_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the plain attention: flash attention's backward pass takes twice as long there.

    Held around a whole update: what gradient checkpointing computes again has to be what was computed first.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
