"""`meta` as a GPU: against PyTorch's own autocast on tensors that claim to be on one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from t2ifb.profiling.memory_tracker import ActivationBytes, tensors_of
from t2ifb.profiling.meta_mode import LOWER, UPPER, MetaMode
from tests.diffusion.geometries import small_geometry


def kept_by_unet(device: str, dtype: torch.dtype) -> tuple[int, torch.dtype]:
    """Bytes that a U-Net with trained attention projections in float32 keeps, and the type of what it gives."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake networks cannot be converted
    try:
        with torch.device(device):
            unet = small_geometry().network("unet").requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    for layer in unet.modules():
        if hasattr(layer, "to_q"):
            shape = layer.to_q.weight.shape
            layer.to_q.weight = nn.Parameter(torch.empty(shape, device=device))
    latents, states = (torch.empty(shape, dtype=dtype, device=device) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    with ActivationBytes(tensors_of(unet)) as saved:
        output = unet(latents, 1, states).sample
    return saved.total, output.dtype


@contextmanager
def autocast_without_gpu() -> Iterator[None]:
    """PyTorch's own autocast, which `torch.autocast` refuses to turn on where there is no GPU."""
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_mixed_precision_keeps_what_it_keeps_on_a_gpu(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        try:
            torch.empty(1, device="cuda")
        except Exception as error:  # a build of PyTorch without CUDA
            pytest.skip(f"no tensor can claim to be on a GPU: {error!r}")
        with autocast_without_gpu():
            expected = kept_by_unet("cuda", dtype)
    with MetaMode("plain", torch.float16):
        assert kept_by_unet("meta", dtype) == expected
    with MetaMode("plain"):
        assert kept_by_unet("meta", dtype)[0] != expected[0]


def test_attention_keeps_no_probabilities_when_it_is_fused() -> None:
    def kept(*options: Any) -> int:
        with MetaMode(*options), ActivationBytes([]) as saved:
            query = torch.empty(1, 2, 100, 8, device="meta", requires_grad=True)
            mask = torch.zeros(100, 100, device="meta")
            F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
            F.scaled_dot_product_attention(query, query, query)
        return saved.total

    one, probabilities = 100 * 8 * 2 * 4, 100 * 100 * 2 * 4
    assert kept("fused") < 10 * one + probabilities / 2
    assert kept("plain") > 2 * probabilities


def test_code_that_asks_for_numbers_goes_on() -> None:
    with MetaMode():
        value = torch.empty((), device="meta")
        assert bool(value > 0)
        assert float(value.exp()) == 1.0
        assert int(value) == 1
        assert value.item() == 1.0
        fetched = torch.empty(2, 3, dtype=torch.float16, device="meta").cpu()
        assert (fetched.device.type, fetched.dtype, fetched.shape) == ("cpu", torch.float16, (2, 3))
    with pytest.raises(RuntimeError):
        bool(value > 0)


def test_nothing_is_left_behind() -> None:
    names = [(torch, "autocast"), (F, "scaled_dot_product_attention"), *LOWER, *UPPER]
    before = [getattr(module, name) for module, name in names]
    with pytest.raises(ValueError, match="within"), MetaMode("fused", torch.float16):
        weight = torch.empty(2, 2, device="meta")
        assert F.linear(weight, weight).dtype == torch.float16
        with torch.autocast("meta", enabled=False):
            assert F.linear(weight, weight).dtype == torch.float32
        raise ValueError("within")
    assert [getattr(module, name) for module, name in names] == before
