from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from t2ifb.scorers import BLIPScore, ImageReward
from t2ifb.shapes import annotators
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.samples import FULL
from t2ifb.shapes.training import judges
from t2ifb.shapes.training.contrastive import HARD_NEGATIVES, Batch
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
        gold=torch.arange(images) / images,
        full=torch.arange(images) % 4 < 3,
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
        samplers = [sampler for job in jobs for sampler in job.samplers]
        assert samplers.count(FULL) / len(samplers) == pytest.approx(0.5, abs=0.05)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=12))
def test_pairs_are_the_comparisons_within_rankings(items: list[tuple[int, int]]) -> None:
    ranking, ranks = torch.tensor(items).T
    empty = torch.empty(0)
    some = Ranked(empty, [""] * len(items), ranks, empty, ranking, empty, empty)
    rows = torch.arange(len(items)).flip(0)
    pairs = {(int(rows[a]), int(rows[b])) for a, b in zip(*some.pairs(rows), strict=True)}
    expected = set()
    for a, b in combinations(range(len(items)), 2):
        if ranking[a] == ranking[b] and ranks[a] != ranks[b]:
            expected.add((a, b) if ranks[a] < ranks[b] else (b, a))
    assert pairs == expected


def test_full_images_of_a_prompt_are_compared_by_gold() -> None:
    better, worse = ranked(8).full_pairs()
    assert {*zip(better.tolist(), worse.tolist(), strict=True)} == {(1, 0), (2, 0), (2, 1), (5, 4), (6, 4), (6, 5)}


@pytest.fixture(scope="module")
def pupil() -> RewardPupil:
    torch.manual_seed(0)
    return RewardPupil(BLIPPupil(Words()).blip, Words()).eval()


class TwoPictures:
    """A black and a white picture, each twice; the caption of one is wrong for the other."""

    def batch(self, _: int) -> Batch:
        wrong = [prompt for prompt in PROMPTS[::-1] for _ in range(HARD_NEGATIVES)]
        return Batch(torch.arange(4), torch.arange(2).repeat(2), [""] * 4, PROMPTS * 2, wrong * 2)

    def images(self, rows: Tensor) -> Tensor:
        return (rows % 2)[:, None, None, None].float().expand(-1, 3, 64, 64)


def test_matching_learns_which_caption_belongs_to_which_picture() -> None:
    torch.manual_seed(0)
    pupil, pictures = RewardPupil(BLIPPupil(Words()).blip, Words()), TwoPictures()
    before = judges.matching_loss(pupil, pictures, 0).item()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(pupil.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        judges.matching_loss(pupil, pictures, 0).backward()  # type: ignore[arg-type]
        optimizer.step()
    white_and_black = pictures.images(torch.arange(2)).mul(255).to(torch.uint8)
    own, other = pupil(white_and_black, PROMPTS), pupil(white_and_black, PROMPTS[::-1])
    expected = nn.functional.softplus(-own).mean() + nn.functional.softplus(other).mean()
    found = judges.matching_loss(pupil, pictures, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert found < 0.1 < before and (own > 0).all() and (other < 0).all()


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
