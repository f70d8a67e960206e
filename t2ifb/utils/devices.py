"""Choice of device and its support by this PyTorch build, precisions by name, and TF32 settings."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Environment variables of torchrun, Lightning and SLURM with the local rank."""


def device_of(wish: str) -> torch.device:
    """Resolve a device name.

    Args:
        wish: PyTorch device name, or `auto`: this process's GPU if PyTorch can use it, else the CPU.

    Raises:
        ValueError: No such device exists, or this PyTorch build cannot use it.
    """
    if wish == "auto":
        return torch.device("cuda", own_gpu()) if accelerator_of("auto") == "cuda" else torch.device("cpu")
    try:
        device = torch.device(wish)
        problem = gpu_error(device.index or 0) if device.type == "cuda" else None
        if problem is None:
            return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={wish} is not on this machine; use auto, cpu or cuda [{error}]") from error
    raise ValueError(f"device={wish}: {problem}")


def accelerator_of(wish: str) -> str:
    """Resolve Lightning's accelerator: `auto` becomes `cuda` if PyTorch can use this process's GPU, else `cpu`.

    An Apple GPU (MPS) is used only if named, since it is untested.

    Raises:
        ValueError: This PyTorch build cannot use the requested GPU.
    """
    problem = gpu_error(own_gpu()) if wish in ("auto", "gpu", "cuda") and torch.cuda.is_available() else None
    if wish != "auto":
        if problem is not None:
            raise ValueError(f"accelerator={wish}: {problem}")
        return wish
    if torch.cuda.is_available() and problem is None:
        return "cuda"
    if problem is not None:
        _say(f"{problem} The CPU is used.")
    elif torch.backends.mps.is_available():
        _say(
            "the Apple GPU (MPS) is not used, because nothing was tested on one; give trainer.accelerator=mps "
            "or device=mps to use it"
        )
    return "cpu"


def own_gpu() -> int:
    """Index of this process's GPU. Each process on a machine has its own."""
    return local_rank() % max(1, torch.cuda.device_count())


def local_rank() -> int:
    """Rank of this process on its machine."""
    return next((int(os.environ[name]) for name in LOCAL_RANKS if os.environ.get(name, "").isdigit()), 0)


def gpu_error(index: int = 0) -> str | None:
    """Why this PyTorch build cannot use the NVIDIA GPU; None if it can."""
    built_for = torch.cuda.get_arch_list()
    if not torch.cuda.is_available() or torch.version.hip or not built_for:
        return None
    major, minor = torch.cuda.get_device_capability(index)
    for kind, *numbers in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(built_for)):
        at_least = (int(numbers[0]), int(numbers[1])) <= (major, minor)
        if at_least and (kind == "compute" or int(numbers[0]) == major):  # machine code is for one major version
            return None
    return (
        f"the GPU {torch.cuda.get_device_name(index)} has compute capability {major}.{minor} (sm_{major}{minor}), but "
        f"this build of PyTorch {torch.__version__} supports {', '.join(built_for)}. Install another build, or use "
        "the CPU (trainer.accelerator=cpu; device=cpu for scoring and sampling)."
    )


def has_bf16() -> bool:
    """Whether the GPU computes in bf16 without emulation; True if no GPU is present."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def fast_cpu_dtype() -> torch.dtype:
    """bf16 if this CPU has matrix units for it (AMX), else float32.

    With AVX-512's bf16 alone small U-Nets take 1.5 times as long as in float32, and emulated bf16 thirty times as long.
    """
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def device_facts(device: torch.device) -> dict[str, Any]:
    """Device facts that can affect results: its name, and whether float32 may be rounded to TF32 (10 bits)."""
    if device.type != "cuda":
        return {"name": device.type, "tf32": False}
    return {"name": torch.cuda.get_device_name(device), "tf32": "tf32" in [_get(part) for part in _float32_parts()]}


@contextmanager
def true_float32() -> Iterator[None]:
    """Compute convolutions and matrix products of float32 tensors in float32, not TF32."""
    parts = _float32_parts()
    before = [_get(part) for part in parts]
    try:
        for part in parts:
            _set(part, "ieee")
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            _set(part, value)


def _float32_parts() -> list[Any]:
    """PyTorch's TF32 switches: one per kind of operation since PyTorch 2.9."""
    convolutions: Any = torch.backends.cudnn
    if hasattr(convolutions, "conv"):
        return [convolutions.conv, convolutions.rnn, torch.backends.cuda.matmul]
    return [convolutions, torch.backends.cuda.matmul]


def _get(part: Any) -> str:
    return str(part.fp32_precision) if hasattr(part, "fp32_precision") else "tf32" if part.allow_tf32 else "ieee"


def _set(part: Any, value: str) -> None:
    if hasattr(part, "fp32_precision"):
        part.fp32_precision = value
    else:
        part.allow_tf32 = value == "tf32"


@cache
def _say(message: str) -> None:
    """Print a message once per process."""
    print(message, file=sys.stderr, flush=True)


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
