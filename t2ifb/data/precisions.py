"""Weight precisions by name, and gradients through fp16 networks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST = 16.0
"""Target for the largest entry of a sample's gradient at the output of an fp16 network; see `computed_in`."""


def dtype_of(precision: str, setting: str = "precision") -> torch.dtype:
    """The torch dtype of a precision.

    Raises:
        ValueError: The precision is not fp32, fp16 or bf16; the message names `setting`.
    """
    if precision not in DTYPES:
        raise ValueError(f"{setting} must be fp32, fp16 or bf16, not {precision!r}")
    return DTYPES[precision]


def computed_in(dtype: torch.dtype, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Evaluate a network in `dtype` and return its output in float32.

    fp16 gradients underflow below 6e-8 and overflow above 65504, regardless of the size of the loss. In fp16 each
    sample's gradient is therefore multiplied by a power of two before it enters the network, so that its largest entry
    is about `LARGEST`, and divided by it afterwards (loss scaling as in arXiv 1710.03740, per sample and backward
    pass).

    Args:
        dtype: Type of the network's weights.
        network: Maps (B, …) in `dtype` to (B, …). The output of a sample depends on that sample alone.
        inputs: (B, …) float32.
    """
    if dtype != torch.float16:
        return network(inputs.to(dtype)).float()
    scale: list[Tensor] = []
    output: Tensor = _Scaled.apply(network(_Unscaled.apply(inputs, scale).to(dtype)).float(), scale)
    return output


class _Scaled(torch.autograd.Function):
    """Identity that scales gradients and records the scale."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        largest = gradient.abs().flatten(1).amax(1) / LARGEST
        ctx.scale[:] = [torch.exp2(-largest.log2().ceil().clamp(-100, 100))]
        return gradient * _like(gradient, ctx.scale[0]), None


class _Unscaled(torch.autograd.Function):
    """Identity that divides gradients by the scale of `_Scaled`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient / _like(gradient, ctx.scale[0]), None


def _like(tensor: Tensor, scale: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, …) for broadcasting with a tensor (B, …)."""
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))
