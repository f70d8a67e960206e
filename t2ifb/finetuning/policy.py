"""What an algorithm works with: a diffusion model with adapters, a sampler, a reward and their random numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.path import GaussianStep, gaussian_kl
from t2ifb.diffusion.sampling import Denoise, Rollout, Sampler
from t2ifb.diffusion.schedule import Index
from t2ifb.finetuning.algorithm import Experience


class Policy(nn.Module):
    """A diffusion model whose adapters are trained.

    Attributes:
        model: Its own weights are frozen.
        reward: Takes images (B, 3, H, W) in [0, 1] and B prompts, gives (B,).
        sampler: How training trajectories are drawn.
        schedule: Their steps.
        seed: Of adapters, noise and whatever an algorithm draws.
        adapters: The trained weights.
    """

    def __init__(self, model: DiffusionModel, lora: LoRA, reward: nn.Module, sampler: Sampler, seed: int = 0) -> None:
        """Put adapters into the model's denoiser and freeze everything else.

        Args:
            model: The base model.
            lora: Which adapters.
            reward: What is raised.
            sampler: How training trajectories are drawn.
            seed: Of adapters and noise.
        """
        super().__init__()
        self.adapters = lora.add(model.denoiser, seed)
        self.model, self.reward = model, reward.requires_grad_(False).eval()
        self.sampler, self.schedule, self.seed = sampler, sampler.schedule_of(model), seed

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.model.device

    def start(self, batch: PromptBatch) -> tuple[Rollout, Denoise]:
        """Rollouts at pure noise for the prompts of a batch, and the denoiser that takes them on.

        The noise is a function of (seed, batch, sample), whichever process draws it.
        """
        keys = [(self.seed, batch.position, number) for number in batch.numbers]
        rollout = Rollout(self.schedule, keys, self.model.latent_shape, self.device)
        return rollout, self.denoiser(batch.prompts)

    def resume_state(self, rollout: Rollout) -> dict[str, Tensor]:
        """What `resume` needs besides the latents: the step (B,) and the noise keys (B, K), on the CPU."""
        return {"step": torch.full((len(rollout.keys),), rollout.index), "key": torch.tensor(rollout.keys)}

    def resume(self, part: Experience) -> tuple[Rollout, Denoise]:
        """Continue the rollouts of some rows, all at the same step; also gives the denoiser for them."""
        assert isinstance(part.step, int)
        shape = self.model.latent_shape
        rollout = Rollout(self.schedule, part["key"].tolist(), shape, self.device, part.step, part["latents"])
        return rollout, self.denoiser(part.prompts)

    def denoiser(self, prompts: Sequence[str], guided: bool = True) -> Denoise:
        """The denoiser for B prompts: from latents (B, C, H, W) and a step to its output (B, C, H, W) float32.

        Args:
            prompts: B strings.
            guided: As the sampler guides; False for the conditional branch alone.
        """
        sampler = self.sampler if guided else replace(self.sampler, guidance_scale=1.0)
        return sampler.denoiser(self.model, self.schedule, prompts)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base model: the same denoiser with its adapters off, without gradient."""
        with torch.no_grad(), self.model.base():
            yield

    def step(self, output: Tensor, noisy: Tensor, index: Index) -> GaussianStep:
        """The sampler's step in float32, outside of autocast; arguments as of `Schedule.step`."""
        with torch.autocast(self.device.type, enabled=False):
            return self.schedule.step(output.float(), noisy, index)

    def kl(self, output: Tensor, reference: Tensor, noisy: Tensor, index: Index) -> Tensor:
        """KL divergence (B,) float32, in nats, of a step's distribution to the base model's.

        Args:
            output: (B, C, H, W), the policy's.
            reference: (B, C, H, W), the base model's on the same latents.
            noisy: (B, C, H, W), the latents where the step begins.
            index: Of the step; of each sample's step if they differ.
        """
        with torch.autocast(self.device.type, enabled=False):
            ours, theirs = (self.schedule.kl_step(each.float(), noisy, index) for each in (output, reference))
            return gaussian_kl(ours.mean, theirs.mean, ours.variance)

    def score(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (B,) of the images that latents (B, C, H, W) decode to; gradients reach the latents."""
        with torch.autocast(self.device.type, enabled=False):
            rewards: Tensor = self.reward(self.model.decode(latents), list(prompts))
            return rewards
