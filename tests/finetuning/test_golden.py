"""What a refactoring must not change: an update against plain diffusers, and adapters after two updates."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.reward_weighted import RewardWeighted
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.random_streams import gaussian
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module
from tests.finetuning.tuning_worlds import Redness


def refl_in_plain_diffusers(steps: int, at: int, guidance: float, adapters: list[Tensor], keys: list[Any]) -> Tensor:
    """The gradient of -alpha r + beta KL at one step, with the pipeline's own parts and DDIMScheduler."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(PIPELINE, safety_checker=None, dtype=torch.float32)
    unet, vae = pipeline.unet.requires_grad_(False).eval(), pipeline.vae.requires_grad_(False).eval()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    weights = [weight for name, weight in unet.named_parameters() if "lora_" in name]
    for weight, value in zip(weights, adapters, strict=True):
        weight.data = value.clone()
    scheduler: Any = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        prompt, empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=[""] * len(PROMPTS))
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)

    def predict(latents: Tensor, t: Tensor) -> Tensor:
        without, conditional = unet(torch.cat([latents] * 2), t, torch.cat([empty, prompt])).sample.chunk(2)
        return without + guidance * (conditional - without)

    latents = gaussian(keys, 0, shape)
    for index in range(at):
        t, noise = scheduler.timesteps[index], gaussian(keys, index + 1, shape)
        with torch.no_grad():
            latents = scheduler.step(predict(latents, t), t, latents, eta=1.0, variance_noise=noise).prev_sample
    t = scheduler.timesteps[at]
    with torch.no_grad():
        unet.disable_adapters()
        base = predict(latents, t)
        unet.enable_adapters()
    for weight in weights:
        weight.requires_grad_(True)
    output, zero = predict(latents, t), torch.zeros_like(latents)
    step, of_base = (scheduler.step(each, t, latents, eta=1.0, variance_noise=zero) for each in (output, base))
    image = (vae.decode(step.pred_original_sample / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    variance = scheduler._get_variance(t, t - scheduler.config.num_train_timesteps // steps)
    kl = (step.prev_sample - of_base.prev_sample).square().sum((1, 2, 3)) / (2 * variance)
    loss = (0.02 * kl - 3.0 * Redness()(image, PROMPTS)).mean()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)])


def test_an_update_of_refl_is_that_of_plain_diffusers() -> None:
    module = make_module(ReFL([2, 2]))
    keys = [(module.policy.seed, BATCH.position, number) for number in BATCH.numbers]
    module.training_step(BATCH, 0)
    adapters = [weight.detach() for weight in module.policy.adapters]
    assert_alike(gradient(module), refl_in_plain_diffusers(4, 2, 2.0, adapters, keys))


RECORDED = {
    "refl": [0.12748695, -0.20280164, 1.11353574],
    "draft": [0.31838149, -0.14945684, 0.75774589],
    "reward_weighted": [1.52374318, -1.12628486, 1.06333132],
}
"""Two projections of the adapters' B onto fixed random directions, and its norm."""


@pytest.mark.parametrize("name", RECORDED)
def test_adapters_after_two_updates_are_as_recorded(tmp_path: Path, name: str) -> None:
    """Within a tolerance, as bits differ between processors."""
    algorithms = {"refl": ReFL([1, 3], 2), "draft": DRaFT(2, beta=0.02), "reward_weighted": RewardWeighted(2, 0.5)}
    algorithm: Any = algorithms[name]
    policy = Policy(shapes_model(), LoRA(), Redness(), Sampler(4, 2.0))
    module = FineTuningModule(policy, algorithm, partial(torch.optim.SGD, lr=1.0), gradient_clip_norm=1.0)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, PromptDataModule(PROMPTS, batch_size=2))
    named = {key: weight for key, weight in policy.model.denoiser.named_parameters() if "lora_B" in key}
    moved = torch.cat([weight.detach().flatten() for weight in named.values()]).double()
    directions = torch.randn(2, len(moved), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [*(directions @ moved).tolist(), float(moved.norm())]
    assert found == pytest.approx(RECORDED[name], abs=1e-3)
