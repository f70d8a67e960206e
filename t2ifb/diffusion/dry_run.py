"""Running real code on the `meta` device: tensors have shapes and types but no numbers, and costs can be counted."""

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
"""What a GPU's autocast computes in the lower precision and in float32, of the functions that U-Nets call.

They are looked up in their modules at each call, and so are replaced there. What gradient checkpointing computes again
within the backward pass sees them too, as it would not see a mode.
"""


class DryRun:
    """Within it, code that was written for a GPU runs on `meta` tensors as it would there.

    `meta` has no numbers, no autocast and no fused attention. Where code asks for a number it is told 1 or True, and
    zeros when it fetches a tensor; autocast and attention are put in by hand. What remains is the code itself. A
    `Ledger` entered within it counts memory and operations.
    """

    def __init__(self, attention: Attention = "fused", autocast: torch.dtype | None = None) -> None:
        """Describe the device.

        Args:
            attention: `fused` keeps queries, keys, values and output for the backward pass, as flash and
                memory-efficient attention do on a GPU; `plain` also keeps the probabilities, in float32.
            autocast: The type that automatic mixed precision computes in; None for none.
        """
        self.attention, self.autocast = attention, autocast
        self._casting = autocast is not None
        self._stack = ExitStack()
        self._real_checkpoint = torch.utils.checkpoint.checkpoint

    def __enter__(self) -> Self:
        stack = self._stack
        stack.enter_context(_swapped(torch, "autocast", self._switched))  # the real one knows no `meta`
        stack.enter_context(_swapped(torch.utils.checkpoint, "checkpoint", self._checkpoint))
        plain = F.scaled_dot_product_attention
        attention = self._casts(_fused(plain) if self.attention == "fused" else plain, self.autocast)
        stack.enter_context(_swapped(F, "scaled_dot_product_attention", attention))
        for names, dtype in ((LOWER, self.autocast), (UPPER, torch.float32)):
            for module, name in names if self.autocast is not None else ():
                stack.enter_context(_swapped(module, name, self._casts(getattr(module, name), dtype)))
        stack.enter_context(_Answers())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextmanager
    def _switched(self, device_type: str, dtype: Any = None, enabled: bool = True, **options: Any) -> Iterator[None]:
        """In the place of `torch.autocast`."""
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
        """A function that is given its tensors in another type while autocast is on."""

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
    """Answers what `meta` cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].device.type == "meta":
            if func in _NUMBERS:
                return _NUMBERS[func]
            if func is Tensor.cpu:
                return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


def _fused(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scaled_dot_product_attention` by the kernels that a GPU takes."""

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
def _swapped(module: Any, name: str, value: Any) -> Iterator[None]:
    """Another function under a module's name."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
