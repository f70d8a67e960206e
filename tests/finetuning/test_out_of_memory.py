"""Errors of memory are explained, and no other error is."""

import pytest
import torch

from t2ifb.finetuning.out_of_memory import explained_memory


def test_the_largest_savings_and_the_plan_are_named() -> None:
    out_of_memory = pytest.raises(ValueError, match=r"^out of memory: Tried to allocate")
    with out_of_memory as told, explained_memory(lambda: ["a=1", "b=true"]):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB\nand a long report")
    text = str(told.value)
    assert "Largest savings: a=1, b=true." in text and "`python -m t2ifb.plan`" in text
    assert "long report" not in text
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)


def test_a_run_that_is_not_planned_names_no_plan_and_no_savings_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="out of memory") as told, explained_memory(lambda: [], planned=False):
        raise torch.OutOfMemoryError("Tried")
    assert str(told.value) == "out of memory: Tried"


def test_savings_are_not_asked_for_without_need() -> None:
    def asked() -> list[str]:
        raise AssertionError("asked")

    with explained_memory(asked):
        pass
    for error in (RuntimeError("shapes do not match"), ValueError("can't allocate memory"), KeyError("x")):
        with pytest.raises(type(error)) as told, explained_memory(asked):
            raise error
        assert told.value is error


@pytest.mark.parametrize(
    ("message", "explained"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_libraries_without_memory_are_recognised(message: str, explained: bool) -> None:
    expected = ValueError if explained else RuntimeError, "^out of memory: " if explained else f"^{message}"
    with pytest.raises(expected[0], match=expected[1]), explained_memory(lambda: []):
        raise RuntimeError(message)
