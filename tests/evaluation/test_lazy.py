"""Components that are built on demand."""

from functools import partial
from pathlib import Path

from t2ifb.evaluation.lazy import build, owner
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.gold import GoldScore
from tests.evaluation.parts import Both, Brightness, weights


def test_components_inside_are_built_first(tmp_path: Path) -> None:
    files = [weights(tmp_path / f"{factor}.json", factor) for factor in (1, 2)]
    built = build(partial(Both, scorers=[partial(Brightness, file) for file in files]))
    assert isinstance(built, Both)
    assert [scorer.factor for scorer in built.scorers] == [1, 2]
    assert isinstance(build(partial(partial, MLPHead, hidden=[3])), partial)


def test_the_name_is_the_classes(tmp_path: Path) -> None:
    assert owner(partial(CLIPScore.from_pretrained, source="x")).name == "CLIP Score"
    assert owner(partial(Brightness, tmp_path)).name == "Brightness"
    assert not hasattr(owner(partial(GoldScore)), "name")
