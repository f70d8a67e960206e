"""One vocabulary, read alike by both libraries."""

from pathlib import Path

import open_clip
import pytest
from transformers import CLIPTokenizer

from t2ifb.shapes.grammar import FAMILY_WEIGHTS, family_scenes
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH, build_tokenizer, write_merges
from t2ifb.shapes.weights import CLIP, PIPELINE

TEXTS = [
    "a red circle above a blue square on a gray background",
    "two purple stars and a cyan triangle on a white background, poor, blurry",
    "A Zebra, 8k!",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_and_open_clip_give_the_same_ids(text: str, tmp_path: Path) -> None:
    write_merges(tmp_path)
    simple = open_clip.SimpleTokenizer(bpe_path=str(tmp_path / "bpe_merges.txt.gz"), context_length=CONTEXT_LENGTH)
    ids = build_tokenizer()(text).input_ids
    assert simple([text])[0].tolist() == ids + [0] * (CONTEXT_LENGTH - len(ids))


def test_every_word_of_the_world_is_one_token_and_every_prompt_fits() -> None:
    tokenizer = build_tokenizer()
    for family in FAMILY_WEIGHTS:
        for scene in list(family_scenes(family))[::97]:
            ids = tokenizer(scene.prompt).input_ids
            assert len(ids) == len(scene.prompt.replace(",", " ,").split()) + 2
            assert len(ids) <= CONTEXT_LENGTH


def test_the_shipped_tokenizers_are_this_vocabulary() -> None:
    fresh = build_tokenizer()
    shipped = CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")
    of_clip = open_clip.get_tokenizer(f"local-dir:{CLIP}")
    assert len(fresh) < 1000
    for text in TEXTS:
        assert shipped(text).input_ids == fresh(text).input_ids
        assert of_clip([text])[0].tolist()[: len(fresh(text).input_ids)] == fresh(text).input_ids
