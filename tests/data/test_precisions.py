"""Gradients through networks in fp16."""

import pytest
import torch
from torch import Tensor, nn

from t2ifb.data.precisions import computed_in


def gradient(dtype: torch.dtype, inputs: Tensor, cotangent: Tensor) -> Tensor:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8)).to(dtype)
    leaf = inputs.clone().requires_grad_()
    output = computed_in(dtype, network, leaf)
    assert output.dtype == torch.float32
    (found,) = torch.autograd.grad((output * cotangent).sum(), leaf)
    assert found.dtype == torch.float32
    return found


def test_gradients_of_any_size_pass_fp16_and_each_sample_has_its_own_scale() -> None:
    inputs, cotangent = torch.randn(5, 16), torch.randn(5, 8)
    cotangent *= torch.tensor([1e-20, 1e-7, 1.0, 1e6, 1e20])[:, None]
    true, found = (gradient(dtype, inputs, cotangent) for dtype in (torch.float32, torch.float16))
    error = (found - true).norm(dim=1) / true.norm(dim=1)
    assert float(error.max()) < 3e-3
    alone = torch.cat([gradient(torch.float16, inputs[n : n + 1], cotangent[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(found / true.norm(dim=1)[:, None], alone / true.norm(dim=1)[:, None], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    inputs, cotangent = torch.randn(2, 16), torch.randn(2, 8)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8)).to(dtype)
    leaf = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad((network(leaf.to(dtype)).float() * cotangent).sum(), leaf)
    assert torch.equal(gradient(dtype, inputs, cotangent), expected)


def test_zero_stays_zero_and_what_is_not_finite_is_seen() -> None:
    inputs, cotangent = torch.randn(3, 16), torch.ones(3, 8)
    cotangent[0], cotangent[1, 0], cotangent[2, 0] = 0.0, float("nan"), float("inf")
    found = gradient(torch.float16, inputs, cotangent)
    assert not found[0].any()
    assert not found[1].isfinite().any() and not found[2].isfinite().any()
