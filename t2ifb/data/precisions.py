"""Precisions of weights by the names that settings have for them, and gradients through networks in fp16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST = 16.0
"""What the largest entry of a sample's gradient is brought to where it enters a network in fp16; see `computed_in`."""


def dtype_of(precision: str, setting: str = "precision") -> torch.dtype:
    """The type of weights that are kept in `precision`.

    Raises:
        ValueError: It is none of fp32, fp16, bf16; `setting` names what was set to it.
    """
    if precision not in DTYPES:
        raise ValueError(f"{setting} must be fp32, fp16 or bf16, not {precision!r}")
    return DTYPES[precision]


def computed_in(dtype: torch.dtype, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """A network's output in float32, computed in `dtype`.

    fp16 loses gradients below 6e-8 and above 65504, whatever the size of the loss. In fp16 each sample's gradient is
    therefore multiplied by a power of two before it enters the network, so that its largest entry is about `LARGEST`,
    and divided by it afterwards (loss scaling as in arXiv 1710.03740, by sample and at each backward pass).

    Args:
        dtype: Of the network's weights.
        network: Takes (B, …) in `dtype`; its output (B, …) for a sample depends on that sample alone.
        inputs: (B, …) float32.
    """
    if dtype != torch.float16:
        return network(inputs.to(dtype)).float()
    scale: list[Tensor] = []
    output: Tensor = _Scaled.apply(network(_Unscaled.apply(inputs, scale).to(dtype)).float(), scale)
    return output


class _Scaled(torch.autograd.Function):
    """The identity; scales gradients and notes by how much."""

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
    """The identity; takes the scale of `_Scaled` off gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient / _like(gradient, ctx.scale[0]), None


def _like(tensor: Tensor, scale: Tensor) -> Tensor:
    """(B,) in the shape (B, 1, …) of a tensor (B, …)."""
    return scale.reshape(-1, *[1] * (tensor.ndim - 1))
