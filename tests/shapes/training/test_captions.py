"""Hard negative captions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.shapes.grammar import Scene, scenes
from t2ifb.shapes.training.captions import corrupt


@given(st.deferred(lambda: st.sampled_from(scenes("train", 500, seed=0))), st.integers(0, 2**32 - 1))
def test_a_corrupted_caption_is_a_prompt_with_another_meaning(scene: Scene, seed: int) -> None:
    wrong = corrupt(scene, np.random.default_rng(seed))
    assert wrong.meaning() != scene.meaning()
    assert wrong.split == "train"
    assert Scene.parse(wrong.prompt) == wrong
