import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from t2ifb.scorers.heads import BilinearHead, InteractionHead, LinearHead, MLPHead


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


HEADS = [LinearHead, InteractionHead, BilinearHead]


def pairs(count: int = 6, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, count, dim, generator=generator)
    return normalize(image, dim=1), normalize(text, dim=1)


@pytest.mark.parametrize("kind", HEADS)
def test_each_kind_is_built_again_from_its_arguments(kind: type[nn.Module]) -> None:
    head = kind(embedding_dim=8)
    again = kind(**head.arguments)  # type: ignore[arg-type]
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(*pairs()), head.eval()(*pairs()))
    assert set(head.arguments) == set(inspect.signature(kind).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", HEADS)
def test_every_weight_is_trained_and_rows_do_not_mix(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    head = kind(embedding_dim=8)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    for _ in range(2):  # what begins at zero holds the other's gradient back for a step
        optimizer.zero_grad()
        head(*pairs()).pow(2).sum().backward()
        if _ == 0:
            optimizer.step()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name
    rewards = head.eval()(*pairs())
    torch.testing.assert_close(rewards[2:3], head(*(part[2:3] for part in pairs())))
    assert head(torch.empty(0, 8), torch.empty(0, 8)).shape == (0,)


def test_linear_ranks_images_alike_for_every_prompt() -> None:
    (image, text), head = pairs(), LinearHead(8)
    differences = head(image[:2], text[:2].roll(1, 0)) - head(image[:2], text[:2])
    torch.testing.assert_close(differences.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_bilinear_begins_as_clip_score() -> None:
    image, text = pairs()
    torch.testing.assert_close(BilinearHead(8, log_scale=0.0)(image, text), (image * text).sum(1))


def test_interaction_sees_products_and_differences() -> None:
    head = InteractionHead(2, hidden=(1,), dropout=0.0)
    with torch.no_grad():
        head.layers[1].weight.copy_(torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 10]]))  # type: ignore[operator, union-attr]
        head.layers[1].bias.zero_()  # type: ignore[operator, union-attr]
        head.layers[3].weight.fill_(1)  # type: ignore[operator, union-attr]
        head.layers[3].bias.zero_()  # type: ignore[operator, union-attr]
    reward = head(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))
    assert reward.item() == pytest.approx(2 * 0.6 + 10 * 2**0.5 * 0.8)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(InteractionHead, {"hidden": ()}), (InteractionHead, {"dropout": 1.0}), (BilinearHead, {"rank": 0})],
)
def test_numbers_out_of_range_are_refused(kind: type[nn.Module], arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"got embedding_dim=8|dropout must be"):
        kind(embedding_dim=8, **arguments)
