"""What Stable Diffusion v1.5 costs, against figures that were known before."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.models.stable_diffusion import SD15_IDS, StableDiffusionSource
from t2ifb.profiling.memory_tracker import ActivationBytes, MemoryTracker, tensors_of
from t2ifb.profiling.meta_mode import Attention, MetaMode

GB, TFLOP = 1e9, 1e12


@pytest.fixture(scope="module")
def unet() -> Iterator[Any]:
    with MetaMode():
        model = StableDiffusionSource(SD15_IDS[0], precision="fp16").on_meta()
        LoRA(rank=4).add(model)
    yield model.denoiser


def kept(unet: Any, attention: Attention, batch: int = 1) -> float:
    """GB that the U-Net keeps for the backward pass."""
    latents, states = _inputs(batch)
    with MetaMode(attention), ActivationBytes(tensors_of(unet)) as saved:
        unet(latents, 1, states)
    return saved.total / GB


def _inputs(batch: int) -> list[torch.Tensor]:
    shapes = ((batch, 4, 64, 64), (batch, 77, 768))
    return [torch.empty(shape, dtype=torch.float16, device="meta") for shape in shapes]


def test_parameters(unet: Any) -> None:
    trained = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    assert trained == 797_184
    assert (sum(weight.numel() for weight in unet.parameters()) - trained) / 1e6 == pytest.approx(859.52, abs=0.01)


@pytest.mark.parametrize("batch", [1, 2])
def test_operations_of_a_forward_pass(unet: Any, batch: int) -> None:
    latents, states = _inputs(batch)
    with MetaMode(), torch.no_grad(), MemoryTracker() as tracker:
        unet(latents, 1, states)
    assert tracker.operations.total / TFLOP == pytest.approx(0.804 * batch, rel=0.01)


def test_saved_activations(unet: Any) -> None:
    """The known 3.98 GB are those of plain attention: 3 GB of it, in float32, are not kept by fused attention."""
    assert kept(unet, "plain") == pytest.approx(3.98, rel=0.02)
    assert kept(unet, "fused") == pytest.approx(1.04, rel=0.02)
    assert kept(unet, "fused", batch=2) == pytest.approx(2 * 1.04, rel=0.02)


def test_saved_activations_with_checkpointing(unet: Any) -> None:
    """The known 0.14 are GiB: 0.149 GB of 10^9 bytes."""
    unet.enable_gradient_checkpointing()
    try:
        assert kept(unet, "plain") / 1.024**3 == pytest.approx(0.14, abs=0.005)
    finally:
        unet.disable_gradient_checkpointing()
