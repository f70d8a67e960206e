"""A GPU without a driver: PyTorch's `FakeTensorMode` on `cuda`, and a count of what a GPU would be asked to do.

Tensors have shapes, types and a device but no numbers. Devices and types that do not fit together raise as on a GPU,
and autocast is PyTorch's own. There is no backward pass: autograd would ask for the driver.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import t2ifb

PACKAGE = t2ifb.__path__[0]
LENGTH = 90
"""Of what a line is called in a count."""
VIEWS = {
    "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "empty_strided", "expand", "lift_fresh",
    "new_empty", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind",
    "unsqueeze", "view", "_reshape_alias", "_unsafe_view",
}  # fmt: skip
"""Operations without a kernel."""


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within it, tensors on `cuda` can be made and computed with; nothing of it is left afterwards."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for target, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch, "tensor", _tensor),
            (F, "scaled_dot_product_attention", _attention),
            (torch.autograd, "grad", zero_gradients),
            (Tensor, "backward", _no_backward),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def to_gpu(network: Any) -> Any:
    """The same network with its weights on the fake GPU; `Module.to` cannot change fake weights in place."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = torch.empty_like(weight, device="cuda", requires_grad=False)
                module._parameters[name] = nn.Parameter(fake, weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device="cuda")
    return network


class Watch(TorchDispatchMode):
    """Counts what a GPU is asked to do.

    Attributes:
        kernels: Operations with a kernel.
        uploads: Copies to the GPU, by the line of this package that makes them.
        downloads: Copies from it, alike.
        answers: Single numbers that the CPU waits for, alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.restart()

    def restart(self) -> None:
        """Count from nothing."""
        self.kernels = 0
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name == "_local_scalar_dense":
            (value,) = args
            if value.device.type == "cuda":
                self.answers[line()] += 1
            return True if value.dtype == torch.bool else 0.5 if value.is_floating_point() else 1
        result = func(*args, **(kwargs or {}))
        results = [each for each in (result if isinstance(result, (tuple, list)) else [result])]
        results = [each for each in results if isinstance(each, Tensor)]
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], result) if name == "_to_copy" else (args[1], args[0])
            way = (source.device.type, target.device.type)
            if way == ("cpu", "cuda"):
                self.uploads[line()] += 1
            elif way == ("cuda", "cpu"):
                self.downloads[line()] += 1
        if name not in VIEWS and any(each.device.type == "cuda" for each in results):
            self.kernels += 1
        return result


def line() -> str:
    """The innermost line of this package that runs now, as `file: code`, without its number: that changes too often."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(PACKAGE):
            return f"{frame.filename.removeprefix(PACKAGE + '/')}: {frame.line}"[:LENGTH]
    return "elsewhere"


_real_tensor, _real_attention = torch.tensor, F.scaled_dot_product_attention


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """`torch.tensor`, made on the CPU and copied: made on `cuda` it asks for the driver."""
    made = _real_tensor(data, dtype=dtype)
    return (made if device is None else made.to(device)).requires_grad_(requires_grad)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *args: Any, **more: Any) -> Tensor:
    """Memory-efficient attention, as a GPU of any age has it; the choice of a kernel asks for the driver."""
    if query.device.type != "cuda":
        return _real_attention(query, key, value, attn_mask, *args, **more)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (each.to(torch.get_autocast_dtype("cuda")) for each in (query, key, value))
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, float("-inf"))
    if bias is not None:
        bias = bias.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    causal = bool(more.get("is_causal"))
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, 0.0, causal)[0]


def zero_gradients(outputs: Any, inputs: Any, *args: Any, **more: Any) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _no_backward(loss: Tensor, *args: Any, **more: Any) -> None:
    raise AssertionError("there is no backward pass on the fake GPU")
