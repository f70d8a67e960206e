"""Facts of scenes, and whether they can be read from embeddings that hold them."""

from pathlib import Path

import torch

from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.renderer import Placed
from t2ifb.shapes.training.auxiliary import COMBINATIONS, SceneFacts, SceneReader
from t2ifb.shapes.training.loop import fit, rendered


def test_facts_are_counts_places_and_the_background() -> None:
    scene = Scene.parse("two red circles and a blue square on a black background")
    x = [16.0, 48.0, 32.0]
    layout = [Placed(thing, at, 32.0, 8.0) for thing, at in zip(scene.things, x, strict=True)]
    facts = SceneFacts.of([scene], [layout])
    circles, squares = (COMBINATIONS.index(kind) for kind in (("red", "circle"), ("blue", "square")))
    assert facts.at_least[0, circles].tolist() == [1, 1, 0]
    assert facts.at_least[0, squares].tolist() == [1, 0, 0]
    assert facts.at_least.sum() == 3
    assert facts.place[0, circles].tolist() == [0, 0]  # the mean of a quarter and three quarters
    assert facts.background.tolist() == [2]


def test_what_an_embedding_holds_can_be_read(tmp_path: Path) -> None:
    renders = rendered("train", 20, seed=0)
    facts, rows = SceneFacts.of(renders.scenes, renders.layouts), torch.arange(20)
    embeddings, severity = torch.eye(20), torch.rand(20, 5)
    reader = SceneReader(20)
    first = reader(embeddings, facts, rows, severity).item()
    fit("reader", reader, lambda _: reader(embeddings, facts, rows, severity), tmp_path, steps=200, learning_rate=0.1)
    assert reader(embeddings, facts, rows, severity).item() < 0.1 * first
    assert reader(embeddings.roll(1, 0), facts, rows).item() > first / 2  # another scene's facts are not its own
