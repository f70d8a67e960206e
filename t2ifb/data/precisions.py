"""Precisions of weights by the names that settings have for them."""

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(precision: str, setting: str = "precision") -> torch.dtype:
    """The type of weights that are kept in `precision`.

    Raises:
        ValueError: It is none of fp32, fp16, bf16; `setting` names what was set to it.
    """
    if precision not in DTYPES:
        raise ValueError(f"{setting} must be fp32, fp16 or bf16, not {precision!r}")
    return DTYPES[precision]
