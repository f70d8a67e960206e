"""Which device is used. There is no GPU here: what PyTorch says of one is made up."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from t2ifb.utils import devices
from t2ifb.utils.devices import (
    accelerator_of,
    computed_in,
    device_facts,
    device_of,
    fast_cpu_dtype,
    gpu_error,
    has_bf16,
    true_float32,
)

GPUs = Callable[..., None]
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> GPUs:
    """Pretends that there are GPUs of one kind."""
    devices._say.cache_clear()
    for name in devices.LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)

    def pretend(capability: tuple[int, int] = (9, 0), count: int = 4, built_for: list[str] = BUILT_FOR) -> None:
        found = {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "get_arch_list": lambda: built_for,
            "get_device_capability": lambda index=0: capability,
            "get_device_name": lambda index=0: "Tesla X100",
            "is_bf16_supported": lambda including_emulation: including_emulation or capability >= (8, 0),
        }
        for name, value in found.items():
            monkeypatch.setattr(torch.cuda, name, value)

    return pretend


@pytest.mark.parametrize(
    ("environment", "index"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"SLURM_LOCALID": "2"}, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "2"}, 1),
        ({"SLURM_LOCALID": "5"}, 1),
        ({"LOCAL_RANK": ""}, 0),
    ],
)
def test_each_process_has_its_own_gpu(
    gpus: GPUs, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], index: int
) -> None:
    gpus()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert device_of("auto") == torch.device("cuda", index)


@pytest.mark.parametrize(
    ("capability", "built_for", "usable"),
    [
        ((7, 5), BUILT_FOR, True),
        ((8, 9), BUILT_FOR, True),  # runs the code for sm_86
        ((12, 0), BUILT_FOR, True),
        ((6, 0), BUILT_FOR, False),
        ((7, 0), BUILT_FOR, False),
        ((11, 0), BUILT_FOR, False),
        ((12, 0), ["sm_80", "compute_90"], True),  # compiled when it is first used
        ((9, 0), ["sm_90a"], True),
        ((6, 0), [], True),  # nothing is known of such a build
    ],
)
def test_which_gpus_a_build_of_pytorch_can_use(
    gpus: GPUs, capability: tuple[int, int], built_for: list[str], usable: bool
) -> None:
    gpus(capability, built_for=built_for)
    assert (gpu_error() is None) == usable


def test_a_gpu_that_cannot_be_used_is_named(gpus: GPUs, capsys: pytest.CaptureFixture[str]) -> None:
    gpus((6, 0))
    for ask in (lambda: device_of("cuda"), lambda: device_of("cuda:1"), lambda: accelerator_of("gpu")):
        with pytest.raises(ValueError, match=r"X100 has compute capability 6\.0 \(sm_60\).* supports sm_75, .*CPU"):
            ask()
    assert (device_of("auto"), device_of("auto"), accelerator_of("auto")) == (torch.device("cpu"),) * 2 + ("cpu",)
    assert capsys.readouterr().err.count("sm_60") == 1
    assert accelerator_of("cpu") == "cpu"


def test_a_gpu_is_used_without_being_touched(gpus: GPUs) -> None:
    gpus()
    assert accelerator_of("auto") == "cuda"
    assert accelerator_of("gpu") == "gpu"


def test_an_apple_gpu_is_used_by_its_name_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices._say.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (device_of("auto"), accelerator_of("auto")) == (torch.device("cpu"), "cpu")
    assert "(MPS) is not used" in capsys.readouterr().err
    assert accelerator_of("mps") == "mps"


def test_bf16_is_that_of_the_hardware(gpus: GPUs) -> None:
    assert has_bf16()  # nothing to ask
    for capability, found in (((7, 5), False), ((8, 0), True)):
        gpus(capability)
        assert has_bf16() == found


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_matrix_units_for_bf16_computes_in_fp32(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    assert fast_cpu_dtype() == dtype


def test_tf32_is_off_within_and_as_before_afterwards(gpus: GPUs) -> None:
    parts = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    before = [part.fp32_precision for part in parts]
    gpus()
    assert device_facts(torch.device("cuda", 0)) == {"name": "Tesla X100", "tf32": True}  # PyTorch's default
    with pytest.raises(KeyError), true_float32():
        assert [part.fp32_precision for part in parts] == ["ieee", "ieee"]
        assert device_facts(torch.device("cuda", 0))["tf32"] is False
        raise KeyError
    assert [part.fp32_precision for part in parts] == before
    assert device_facts(torch.device("cpu")) == {"name": "cpu", "tf32": False}


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
