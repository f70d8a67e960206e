"""Latents of given images: any size, once, and anew for another model."""

from dataclasses import replace
from pathlib import Path

import torch

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.finetuning.latents import LatentEncoder, fitted
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import shapes_model


def test_images_are_resized_and_cropped_at_the_centre() -> None:
    wide = torch.zeros(1, 3, 10, 40)
    wide[..., 15:25] = 1  # the middle square
    assert torch.allclose(fitted(wide, 20, 20)[..., 4:16], torch.ones(()), atol=1e-3)
    assert fitted(torch.rand(2, 3, 7, 5), 6, 8).shape == (2, 3, 6, 8)
    exact = torch.rand(1, 3, 6, 8)
    assert torch.equal(fitted(exact, 6, 8), exact)


def test_latents_are_those_of_the_model_and_its_fingerprint_is_of_what_they_depend_on(tmp_path: Path) -> None:
    model, source = shapes_model(), StableDiffusionSource(str(PIPELINE))
    encoder = LatentEncoder(model, source, tmp_path / "hashes.npy")
    assert encoder.size == (64, 64) and encoder.load() is encoder
    images = torch.rand(2, 3, 64, 64)
    found = encoder.encode_images(images)
    assert torch.equal(found.unflatten(1, model.latent_shape), model.encode_images(images))
    known = [
        LatentEncoder(model, changed, tmp_path / "hashes.npy").fingerprint()
        for changed in (source, replace(source, device="cpu"), replace(source, decoder_precision="bf16"))
    ]
    assert known[0] == known[1] != known[2]
