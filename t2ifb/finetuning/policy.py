"""The policy of fine-tuning: a text-to-image model with adapters, a sampler, a reward and random streams."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA, untrained, without_adapters
from t2ifb.diffusion.model import TextToImageModel
from t2ifb.diffusion.path import GaussianStep
from t2ifb.diffusion.sampling import Denoise, Rollout, Sampler
from t2ifb.diffusion.schedule import Index
from t2ifb.finetuning.algorithm import Experience

START = "start"
"""Name of the adapters that tuning started from."""


class Policy(nn.Module):
    """A text-to-image model with trained adapters.

    Attributes:
        model: The model; its own weights are frozen.
        reward: Maps images (B, 3, H, W) in [0, 1] and B prompts to (B,).
        sampler: Sampler of training rollouts.
        schedule: Steps of training rollouts.
        seed: Seed of adapters, noise and all draws of an algorithm.
        adapters: The trained weights.
        rows_in_memory: Rows of an experience that a backward pass has in memory; None for as many as a batch has.
        samples_per_batch: Samples that are drawn or scored together without gradient.
    """

    rows_in_memory: int | None = None
    samples_per_batch: int = 32

    def __init__(self, model: TextToImageModel, lora: LoRA, reward: nn.Module, sampler: Sampler, seed: int = 0) -> None:
        """Add adapters to the model's denoiser and freeze all other weights.

        Args:
            model: The base model.
            lora: Configuration of the adapters.
            reward: The reward to maximise.
            sampler: Sampler of training rollouts.
            seed: Seed of adapters and noise.
        """
        super().__init__()
        self.adapters = lora.add(model, seed)
        self.model, self.reward = model, reward.requires_grad_(False).eval()
        self.sampler, self.schedule, self.seed = sampler, sampler.schedule_of(model), seed
        self.copies: dict[str, list[Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return self.model.device

    def start(self, batch: PromptBatch) -> tuple[Rollout, Denoise]:
        """Rollouts at pure noise for the prompts of a batch, and their denoiser.

        The noise is a function of (seed, batch, sample) and independent of the process.
        """
        keys = [(self.seed, batch.position, number) for number in batch.numbers]
        rollout = Rollout(self.schedule, keys, self.model.latent_shape, self.device)
        return rollout, self.denoiser(batch.prompts)

    def resume_state(self, rollout: Rollout) -> dict[str, Tensor]:
        """State for `resume` besides the latents: the step (B,) and the noise keys (B, K), on the CPU."""
        return {"step": torch.full((len(rollout.keys),), rollout.index), "key": torch.tensor(rollout.keys)}

    def resume(self, part: Experience) -> tuple[Rollout, Denoise]:
        """The rollouts of some rows, all at the same step, and their denoiser."""
        assert isinstance(part.step, int)
        shape = self.model.latent_shape
        rollout = Rollout(self.schedule, part["key"].tolist(), shape, self.device, part.step, part["latents"])
        return rollout, self.denoiser(part.prompts)

    def denoiser(self, prompts: Sequence[str], guided: bool = True) -> Denoise:
        """The denoiser for B prompts: maps latents (B, C, H, W) and a step to its output (B, C, H, W) float32.

        Args:
            prompts: B strings.
            guided: Use the sampler's guidance; False for the conditional branch alone.
        """
        sampler = self.sampler if guided else replace(self.sampler, guidance_scale=1.0)
        return sampler.denoiser(self.model, self.schedule, prompts)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model: the same denoiser with its adapters off, without gradient."""
        with torch.no_grad(), without_adapters(self.model.denoiser):
            yield

    def keep_start(self) -> None:
        """Keep the adapters as they are now for `beginning`, unless they leave the base model unchanged (B = 0)."""
        weights = self.model.denoiser.named_parameters()
        if any(weight.any() for name, weight in weights if "lora_B" in name):
            self.average(START, 1.0)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """The model that tuning started from, without gradient: that of `keep_start`, or the base model."""
        with torch.no_grad(), self.adapters_of(START) if START in self.copies else self.reference():
            yield

    @torch.no_grad()
    def average(self, name: str, decay: float) -> None:
        """Move the adapters `name` to decay * themselves + (1 - decay) * the trained ones; new ones are a copy."""
        if name not in self.copies:
            self.copies[name] = [weight.detach().clone() for weight in self.adapters]
        for copy, weight in zip(self.copies[name], self.adapters, strict=True):
            copy.lerp_(weight, 1 - decay)

    @contextmanager
    def adapters_of(self, name: str) -> Iterator[None]:
        """The denoiser with the adapters `name` instead of the trained ones."""
        trained = [weight.data for weight in self.adapters]
        self._set_adapters(self.copies[name])
        try:
            yield
        finally:
            self._set_adapters(trained)

    def _set_adapters(self, values: Sequence[Tensor]) -> None:
        for weight, value in zip(self.adapters, values, strict=True):
            weight.data = value
        torch.clear_autocast_cache()  # which has the weights in half precision

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Faster calls for steps without gradient and without probability ratio (see `t2ifb.diffusion.lora`)."""
        with untrained(self.model.denoiser):
            yield

    def step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The sampler's step in float32, outside of autocast; arguments as in `Schedule.step`."""
        with torch.autocast(self.device.type, enabled=False):
            return self.schedule.step(output.float(), noisy, index)

    def kl(self, output: Tensor, reference: Tensor, noisy: Tensor, index: Index) -> Tensor:
        """KL divergence (B,) of a step outside of autocast; arguments as in `Schedule.kl`."""
        with torch.autocast(self.device.type, enabled=False):
            return self.schedule.kl(output.float(), reference.float(), noisy, index)

    def kl_to_base(self, denoise: Denoise, output: Tensor, noisy: Tensor, index: Index) -> Tensor:
        """KL divergence (B,) as of `kl`, with the base model's output computed here by the same denoiser."""
        with self.reference():
            reference = denoise(noisy, index)
        return self.kl(output, reference, noisy, index)

    @torch.no_grad()
    def draw(self, batch: PromptBatch) -> Tensor:
        """Finished samples (B, C, H, W) of a batch, without gradient."""
        rollout, denoise = self.start(batch)
        with self.untrained():
            return rollout.to(len(self.schedule), denoise)

    @torch.no_grad()
    def scores(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) as of `score`, without gradient and in parts that fit memory."""
        size = self.samples_per_batch
        starts = range(0, len(prompts), size)
        return torch.cat([self.score(latents[n : n + size], prompts[n : n + size]) for n in starts])

    def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) of the images that latents (B, C, H, W) decode to; gradients reach the latents."""
        with torch.autocast(self.device.type, enabled=False):
            rewards: Tensor = self.reward(self.model.decode(latents), list(prompts))
            return rewards
