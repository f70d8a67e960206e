"""Run real code on the `meta` device, where tensors have shapes and types but no values, to count its costs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Self

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Attention = Literal["fused", "plain"]

LOWER = ((F, "linear"), (F, "conv2d"), (torch, "matmul"), (torch, "bmm"), (torch, "baddbmm"))
UPPER = ((F, "group_norm"), (F, "layer_norm"), (F, "softmax"), (F, "interpolate"))
"""Functions that a GPU's autocast computes in lower precision and in float32, as far as U-Nets call them.

They are looked up in their modules at each call and are therefore replaced there. Recomputation by gradient
checkpointing in the backward pass also sees the replacements, whereas it would not see a mode.
"""


class MetaMode:
    """Context in which code for a GPU runs on `meta` tensors as on the GPU.

    `meta` has no values, no autocast and no fused attention. Code that reads a number gets 1 or True, and zeros when it
    fetches a tensor; autocast and attention are emulated. Everything else is the real code. A `Ledger` entered within
    this context counts memory and operations.
    """

    def __init__(self, attention: Attention = "fused", autocast: torch.dtype | None = None) -> None:
        """Set the properties of the device.

        Args:
            attention: `fused` keeps queries, keys, values and output for the backward pass, as flash and
                memory-efficient attention do on a GPU; `plain` also keeps the probabilities, in float32.
            autocast: Compute type of automatic mixed precision; None without it.
        """
        self.attention, self.autocast = attention, autocast
        self._casting = autocast is not None
        self._stack = ExitStack()
        self._real_checkpoint = torch.utils.checkpoint.checkpoint

    def __enter__(self) -> Self:
        stack = self._stack
        stack.enter_context(swapped(torch, "autocast", self._switched))  # the real one does not support `meta`
        stack.enter_context(swapped(torch.utils.checkpoint, "checkpoint", self._checkpoint))
        plain = F.scaled_dot_product_attention
        attention = self._casts(_fused(plain) if self.attention == "fused" else plain, self.autocast)
        stack.enter_context(swapped(F, "scaled_dot_product_attention", attention))
        for names, dtype in ((LOWER, self.autocast), (UPPER, torch.float32)):
            for module, name in names if self.autocast is not None else ():
                stack.enter_context(swapped(module, name, self._casts(getattr(module, name), dtype)))
        stack.enter_context(_Answers())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextmanager
    def _switched(self, device_type: str, dtype: Any = None, enabled: bool = True, **options: Any) -> Iterator[None]:
        """Replacement of `torch.autocast`."""
        before, self._casting = self._casting, enabled and self.autocast is not None
        try:
            yield
        finally:
            self._casting = before

    def _checkpoint(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """In the place of `checkpoint`, which computes again under the autocast of the forward pass."""
        casting = self._casting

        def as_before(*values: Any) -> Any:
            with self._switched("meta", enabled=casting):
                return function(*values)

        return self._real_checkpoint(as_before, *args, **options)

    def _casts(self, function: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
        """Wrap a function so that it gets its tensors in another type while autocast is on."""

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point() and value.device.type == "meta"
            return value.to(dtype) if floating else value

        def casting(*args: Any, **options: Any) -> Any:
            if not self._casting:
                return function(*args, **options)
            return function(*map(cast, args), **{name: cast(value) for name, value in options.items()})

        return casting


_NUMBERS: dict[Any, Any] = {
    Tensor.__bool__: True, Tensor.__float__: 1.0, Tensor.__int__: 1, Tensor.__index__: 1, Tensor.item: 1.0
}  # fmt: skip


class _Answers(TorchFunctionMode):
    """Provides values that `meta` tensors do not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].device.type == "meta":
            if func in _NUMBERS:
                return _NUMBERS[func]
            if func is Tensor.cpu:
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


def _fused(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scaled_dot_product_attention` with the memory behaviour of GPU kernels."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **more: Any) -> Tensor:
        if query.device.type != "meta" or args or any(more.get(name) for name in ("dropout_p", "enable_gqa")):
            return plain(query, key, value, attn_mask, *args, **more)
        causal = bool(more.get("is_causal"))
        if query.dtype != torch.float32 and attn_mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal)[0]
        bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, 0.0, causal)[0]

    return attention


@contextmanager
def swapped(module: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily replace an attribute of a module or of an object."""
    own, before = name in vars(module), getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
        if not own:  # a method of its class
            delattr(module, name)
