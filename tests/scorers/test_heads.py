import inspect

import pytest
import torch
from torch import nn

from t2ifb.scorers.heads import MLPHead


def test_the_default_is_the_reports_head() -> None:
    """PAPER, stage 1: hidden 1024, 256, 128, 32, output 1; dropout 0.2 on the input, 0.2 and 0.1 after two layers."""
    head = MLPHead(768)
    kinds = [(type(m).__name__, getattr(m, "out_features", getattr(m, "p", None))) for m in head.layers]
    assert kinds == [
        ("Dropout", 0.2),
        *[("Linear", 1024), ("ReLU", None), ("Dropout", 0.2)],
        *[("Linear", 256), ("ReLU", None), ("Dropout", 0.1)],
        *[("Linear", 128), ("ReLU", None)],
        *[("Linear", 32), ("ReLU", None)],
        ("Linear", 1),
    ]
    widths = [1536, 1024, 256, 128, 32, 1]
    count = sum(a * b + b for a, b in zip(widths, widths[1:], strict=False))
    assert sum(weight.numel() for weight in head.parameters()) == count == 1_873_345


def test_the_input_is_image_then_text() -> None:
    head = MLPHead(3, hidden=(), dropout=())
    linear = head.layers[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0, 0, 10.0, 0, 0]]))
        linear.bias.zero_()
    image, text = torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 5, 6]])
    assert head(image, text).tolist() == [41.0]


def test_its_arguments_build_it_again() -> None:
    head = MLPHead(5, hidden=(7, 3), dropout=(0.1,))
    again = MLPHead(**head.arguments)
    again.load_state_dict(head.state_dict())
    batch = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(again.eval()(*batch), head.eval()(*batch))
    assert set(head.arguments) == set(inspect.signature(MLPHead).parameters)


def test_an_empty_batch_has_a_gradient() -> None:
    head = MLPHead(5)
    head(torch.empty(0, 5), torch.empty(0, 5)).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in head.parameters())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"hidden": (4, 0)}, "widths must be positive"),
        ({"dropout": (1.0,)}, r"probabilities in \[0, 1\)"),
        ({"hidden": (4,), "dropout": (0.1, 0.1, 0.1)}, "at most 2"),
    ],
)
def test_impossible_layers_are_refused(arguments: dict[str, tuple[float, ...]], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        MLPHead(8, **arguments)  # type: ignore[arg-type]
