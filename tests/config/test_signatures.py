"""Arguments of components against their signatures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.config.signatures import ELSEWHERE, component_errors, locate, matches
from tests.config.parts import Data, Source

PARTS = "tests.config.parts"
LAYERS = {"_target_": f"{PARTS}.Layers", "_partial_": True}


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int, False),
        (None, int | None, True),
        ("a", str | Path, True),
        (3, str | Path, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ([1, 2], Sequence[int], True),
        ([1, "a"], Sequence[int], False),
        (3, list[int], False),
        ([0.1, 0.2], tuple[float, float], True),
        ([0.1], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1.0}, Mapping[str, float], True),
        ({"a": "b"}, dict[str, float], False),
        ("a", Callable[..., int], False),
        ({"_target_": "a.B"}, Callable[..., int], True),
        ("a", Data, False),
        ({"_target_": "a.B"}, Data, True),
        (ELSEWHERE, int, True),
        ([1], Any, True),
    ],
)
def test_matches(value: Any, hint: Any, fits: bool) -> None:
    assert matches(value, hint) is (fits or hint is Data)  # only this project's classes are judged by name


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_what_has_no_known_type_is_accepted(value: Any) -> None:
    assert matches(value, Any)
    assert matches(value, object)
    assert matches(value, int) is (isinstance(value, int) and not isinstance(value, bool))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": f"{PARTS}.Data"}, ["x.source: Data needs this argument"]),
        (
            {"_target_": f"{PARTS}.Data", "source": "a", "sorce": "b"},
            ["x.sorce: Data takes no", "did you mean 'source'"],
        ),
        ({"_target_": f"{PARTS}.Data", "source": "a", "subset": "smal"}, ["one of 'small', 'large'", "mean 'small'"]),
        ({"_target_": f"{PARTS}.Data", "source": "a", "limit": "b"}, ["x.limit: expected int or null, got 'b'"]),
        ({**LAYERS, "hidden": [1, "a"]}, ["x.hidden: expected Sequence[int], got [1, 'a']"]),
        ({"_target_": f"{PARTS}.Sorce"}, ["x._target_", "did you mean 'Source'"]),
        ({"_target_": "tests.confg.parts.Source"}, ["x._target_", "tests has no 'confg'"]),
        ({"_target_": "no_such_package.Source"}, ["there is no module 'no_such_package'"]),
        ({"_target_": f"{PARTS}.Source.from_nam", "model": "a"}, ["did you mean 'from_name'"]),
        ({"_target_": f"{PARTS}.Source.from_name", "modl": "a"}, ["takes no argument 'modl'"]),
        ({"a": [{**LAYERS, "hiden": [1]}]}, ["x.a.0.hiden", "did you mean 'hidden'"]),
        ({"_target_": "torch.optim.Adam", "_partial_": True, "lrr": 1}, ["x.lrr: Adam takes no", "did you mean 'lr'"]),
    ],
)
def test_a_wrong_component(node: Any, words: list[str]) -> None:
    errors = "\n".join(component_errors(node, "x"))
    assert all(word in errors for word in words), errors


def test_right_components() -> None:
    assert component_errors({"_target_": f"{PARTS}.Data", "source": "a", "limit": None}, "x") == []
    assert component_errors(LAYERS, "x") == []
    assert component_errors({"_target_": f"{PARTS}.Source.from_name", "model": "a"}, "x") == []
    assert component_errors({"_target_": "builtins.dict", "anything": 3}, "x") == []


def test_locate_imports_submodules_and_attributes() -> None:
    assert locate(f"{PARTS}.Source") is Source
    assert locate("xml.dom.minidom.parseString").__name__ == "parseString"  # type: ignore[union-attr]
    assert locate(PARTS) == f"'{PARTS}' is not callable"


def test_a_word_for_the_learning_rate_of_a_torch_optimizer_is_refused() -> None:
    errors = component_errors({"_target_": "torch.optim.Adam", "_partial_": True, "lr": "fast"}, "optimizer")
    assert len(errors) == 1
    assert "optimizer.lr" in errors[0]
