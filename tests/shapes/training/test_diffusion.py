"""The base model of the world: its networks, its noise, and a training of few steps."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from t2ifb.shapes.training import diffusion
from t2ifb.shapes.training.diffusion import NOISE, TextToLatent
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH
from t2ifb.shapes.weights import load_pipeline


def test_the_noise_is_stable_diffusions() -> None:
    levels = DDPMScheduler(**NOISE).alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(levels.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)
    shipped = load_pipeline(torch.float32).scheduler
    torch.testing.assert_close(shipped.alphas_cumprod, levels)


def test_the_words_reach_the_prediction_and_the_prediction_reaches_both_networks() -> None:
    model = TextToLatent(600, 599)
    model.unet.set_default_attn_processor()
    noisy, times = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    ids = torch.randint(0, 598, (2, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(0))
    output = model(noisy, times, ids)
    assert output.shape == noisy.shape
    assert not torch.equal(model(noisy, times, ids.flip(1)), output)
    assert not torch.equal(model(noisy, times.flip(0), ids), output)
    output.square().mean().backward()
    for network in (model.unet, model.text_encoder):
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


def test_a_training_of_few_steps_gives_a_pipeline_and_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "STEPS", 2)
    monkeypatch.setattr(diffusion, "BATCH", 2)
    autoencoder = load_pipeline(torch.float32).vae
    first = diffusion.train(autoencoder, tmp_path, images=4)
    assert not (first.unet.training or first.text_encoder.training)
    again = diffusion.train(autoencoder, tmp_path, seed=1, images=4)  # from the state that was saved
    for one, other in zip(first.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    first.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = [
        first(prompt, num_inference_steps=2, guidance_scale=4.0, latents=noise, output_type="np").images[0]
        for prompt in ("a red circle on a gray background", "two blue stars on a white background")
    ]
    assert images[0].shape == (64, 64, 3)
    assert abs(images[0] - images[1]).max() > 0
