"""Experience can be indexed, split and restored, and losses of parts add up to the loss of the whole."""

import math
from typing import Any

import pytest
import torch

from t2ifb.finetuning.algorithm import Experience, by_step, check_weights, mean_loss


def experience(rows: int = 5) -> Experience:
    generator = torch.Generator().manual_seed(0)
    tensors = {"latents": torch.randn(rows, 2, 3, generator=generator), "step": torch.arange(rows) % 2}
    return Experience([f"prompt {row}" for row in range(rows)], tensors, total=rows)


def same(one: Experience, other: Experience) -> bool:
    alike = one.prompts == other.prompts and one.total == other.total and one.tensors.keys() == other.tensors.keys()
    return alike and all(torch.equal(one[name], other[name]) for name in one.tensors)


def test_every_tensor_has_a_row_for_each_prompt() -> None:
    with pytest.raises(ValueError, match=r"expected 2 rows, one for each prompt, got \{'x': 3\}"):
        Experience(["a", "b"], {"x": torch.zeros(3), "y": torch.zeros(2, 9)})


def test_rows_stay_together_however_they_are_chosen() -> None:
    whole = experience()
    some = whole.rows([3, 0, 3])
    assert some.prompts == ["prompt 3", "prompt 0", "prompt 3"] and some.total == 5 and len(some) == 3
    assert torch.equal(some["latents"], whole["latents"][[3, 0, 3]])
    assert same(whole.rows(slice(1, 3)), whole.rows([1, 2]))
    assert len(whole.rows([])) == 0


@pytest.mark.parametrize(("size", "sizes"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_parts_are_the_whole_in_order(size: int | None, sizes: list[int]) -> None:
    whole, parts = experience(), list(experience().parts(size))
    assert [len(part) for part in parts] == sizes
    assert {part.total for part in parts} == {5}
    assert [prompt for part in parts for prompt in part.prompts] == whole.prompts
    assert torch.equal(torch.cat([part["latents"] for part in parts]), whole["latents"])


def test_no_rows_are_no_parts() -> None:
    assert list(experience(0).parts(None)) == []


def test_a_step_is_a_number_where_all_rows_have_it() -> None:
    assert experience().step == [0, 1, 0, 1, 0]
    assert experience().rows([0, 2]).step == 0


def test_it_comes_back_from_its_state_through_a_file(tmp_path: Any) -> None:
    torch.save(experience().state(), tmp_path / "state.pt")
    again = Experience.of(torch.load(tmp_path / "state.pt", weights_only=True), "cpu")
    assert same(again, experience())
    moved = Experience.of(experience().state(), "meta")
    assert (moved["latents"].device.type, moved["step"].device.type) == ("meta", "cpu")  # steps index a schedule


@pytest.mark.parametrize("size", [None, 1, 2, 3])
def test_losses_of_parts_add_up_to_the_mean(size: int | None) -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    whole = experience()
    for part in whole.parts(size):
        mean_loss((weight * part["latents"]).square().sum((1, 2)), part).total.backward()
    expected = 2 * 2.0 * whole["latents"].square().sum((1, 2)).mean()
    torch.testing.assert_close(weight.grad, expected)


def test_terms_are_those_of_the_rows_and_the_loss_is_one_of_them() -> None:
    part = experience().rows([0, 1])
    loss = mean_loss(torch.tensor([1.0, 4.0]), part, reward=torch.tensor([7.0, 8.0]))
    assert loss.total.item() == pytest.approx(5 / 5)  # of five rows, two are here
    assert {name: term.tolist() for name, term in loss.terms.items()} == {"reward": [7, 8], "loss": [1, 4]}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_makes_the_whole_gradient_nan(wrong: float) -> None:
    """Also where the broken row alone has no gradient."""
    weight = torch.ones(2, requires_grad=True)
    rows = weight * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, wrong])
    mean_loss(rows, experience(2)).total.backward()
    assert weight.grad is not None and weight.grad.isnan().all()


def test_values_are_named_by_the_step_they_belong_to() -> None:
    values = torch.tensor([1.0, 2.0, 3.0])
    assert {name: rows.tolist() for name, rows in by_step("kl", values, 7).items()} == {"kl_7": [1, 2, 3]}
    found = {name: rows.tolist() for name, rows in by_step("kl", values, [9, 2, 9]).items()}
    assert found == {"kl_2": [2], "kl_9": [1, 3]} and list(found) == ["kl_2", "kl_9"]


@pytest.mark.parametrize("weights", [(-1.0, 0.0), (0.0, -0.1)])
def test_negative_weights_are_refused(weights: tuple[float, float]) -> None:
    check_weights(0.0, 0.0)
    with pytest.raises(ValueError, match="must not be negative"):
        check_weights(*weights)
