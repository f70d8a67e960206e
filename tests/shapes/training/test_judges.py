from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.scorers import BLIPScore, ImageReward
from t2ifb.shapes import annotators
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.training import judges
from t2ifb.shapes.training.judges import BLIPPupil, Ranked, RewardPupil, Words

PROMPTS = ["a red circle on a gray background", "two blue squares to the left of a star on a black background"]


def ranked(images: int = 8) -> Ranked:
    generator = torch.Generator().manual_seed(0)
    return Ranked(
        images=torch.randint(256, (images, 3, 64, 64), generator=generator, dtype=torch.uint8),
        prompts=PROMPTS * (images // 2),
        ranks=torch.arange(images),
        fidelity=torch.ones(images),
        ranking=torch.arange(images) // 4,
    )


def test_every_word_of_prompts_and_captions_is_one_token() -> None:
    words = Words()
    for scene in scenes("test", 300, seed=0):
        caption = f"{scene.prompt}, poor, blurry"
        ids, mask = words([caption])
        assert ids.shape[1] == len(caption.replace(",", " ,").split()) + 2 <= 35
        assert words.words.index("[UNK]") not in ids
        assert mask.all()


def test_the_judges_prompts_are_not_those_of_the_data_set() -> None:
    for split, count in annotators.JUDGES_PROMPTS.items():
        theirs = {scene.prompt for scene in scenes(split, annotators.PROMPTS[split], seed=0)}
        jobs = annotators.judges_jobs(split)
        ours = {scene.prompt for job in jobs for scene in job.scenes}
        assert len(ours) == count
        assert not ours & theirs


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=12))
def test_pairs_are_the_comparisons_within_rankings(items: list[tuple[int, int]]) -> None:
    ranking, ranks = torch.tensor(items).T
    some = Ranked(torch.empty(0), [""] * len(items), ranks, torch.empty(0), ranking)
    rows = torch.arange(len(items)).flip(0)
    pairs = {(int(rows[a]), int(rows[b])) for a, b in zip(*some.pairs(rows), strict=True)}
    expected = set()
    for a, b in combinations(range(len(items)), 2):
        if ranking[a] == ranking[b] and ranks[a] != ranks[b]:
            expected.add((a, b) if ranks[a] < ranks[b] else (b, a))
    assert pairs == expected


@pytest.fixture(scope="module")
def pupil() -> RewardPupil:
    torch.manual_seed(0)
    return RewardPupil(BLIPPupil(Words()).blip, Words()).eval()


def test_what_is_saved_scores_as_what_was_trained(pupil: RewardPupil, tmp_path: Path) -> None:
    some = ranked()
    with torch.no_grad():
        expected = (pupil(some.images, some.prompts) - judges.MEAN) / judges.STD
    tensors = {f"blip.{name}": tensor for name, tensor in pupil.blip.original_state().items()}
    tensors |= {f"mlp.layers.{name}": tensor for name, tensor in pupil.head.state_dict().items()}
    judges.save(tensors, tmp_path / "image_reward.safetensors")
    scores = ImageReward.from_pretrained(tmp_path)(some.images.float() / 255, some.prompts)
    torch.testing.assert_close(scores, expected, atol=3e-3, rtol=0.02)  # half precision
    judges.save(pupil.blip.original_state(), tmp_path / "blip.safetensors")
    assert BLIPScore.from_pretrained(tmp_path)(some.images.float() / 255, some.prompts).abs().max() <= 1


def test_rewards_are_standardised_on_the_images_they_learned_from(pupil: RewardPupil) -> None:
    some = ranked()
    with torch.no_grad():
        before = pupil(some.images, some.prompts)
        after = (judges._standardised(pupil, some)(some.images, some.prompts) - judges.MEAN) / judges.STD
    torch.testing.assert_close(after.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert torch.equal(before.argsort(), after.argsort())
