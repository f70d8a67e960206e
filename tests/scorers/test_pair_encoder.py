"""ImageReward's network as the encoder of a reward model."""

import json
from pathlib import Path

import pytest
import torch

from t2ifb.data.embeddings import EmbeddingCache, embed
from t2ifb.scorers import Ensemble, RewardModel
from t2ifb.scorers.pair_encoder import ImageRewardSource, published_head
from tests.data.parts import picture
from tests.scorers.blip_parts import write_small

PROMPTS = ["a red circle", "two blue squares", "a red circle"]
IMAGES = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path) -> ImageRewardSource:
    return ImageRewardSource(str(write_small(tmp_path / "weights")), device="cpu")


def test_the_published_head_on_its_states_is_image_reward(source: ImageRewardSource) -> None:
    encoder, score = source.load(), source.score()
    states, none = embed(encoder, IMAGES, PROMPTS)
    assert states.shape == (3, encoder.embedding_dim) and none.shape == (3, 0)
    model = RewardModel(encoder, published_head(score).eval())
    torch.testing.assert_close(model(IMAGES, PROMPTS), score(IMAGES, PROMPTS))
    images = IMAGES.clone().requires_grad_()
    model(images, PROMPTS).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None and float(images.grad.abs().sum()) > 0


def test_an_image_is_cached_with_each_of_its_prompts(source: ImageRewardSource, tmp_path: Path) -> None:
    file = tmp_path / "one.png"
    picture(0).save(file)
    cache = EmbeddingCache(tmp_path / "cache", source, batch_size=1)
    assert cache.fill([file, file, file], PROMPTS).encoded == 2
    assert cache.fill([file], PROMPTS[:1]).encoded == 0
    found = cache.images([file, file, file], PROMPTS).gather()
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert cache.prompts(PROMPTS).gather(slice(1, None)).shape == (2, 0)
    with pytest.raises(ValueError, match="1 of 1 images are not in the cache"):
        cache.images([file], ["another prompt"])


def test_long_prompts_are_reported(source: ImageRewardSource, tmp_path: Path) -> None:
    file, long = tmp_path / "one.png", " ".join(["red"] * 50)
    picture(0).save(file)
    assert EmbeddingCache(tmp_path / "cache", source).fill([file, file], [long, "red"]).cut == (long,)


def test_an_export_is_read_back_and_takes_part_in_an_ensemble(source: ImageRewardSource, tmp_path: Path) -> None:
    model = RewardModel(source.load(), published_head(source.score())).eval()
    model.save_pretrained(tmp_path / "export")
    again = RewardModel.from_pretrained(tmp_path / "export")
    assert torch.equal(again(IMAGES, PROMPTS), model(IMAGES, PROMPTS))
    both = Ensemble.from_pretrained([tmp_path / "export"] * 2, k=0)
    assert torch.equal(both(IMAGES, PROMPTS), model(IMAGES, PROMPTS))
    assert both.members[0].encoder is both.members[1].encoder
    config = json.loads((tmp_path / "export/config.json").read_text())
    assert config["encoder"]["kind"] == "image_reward"
    meta = RewardModel.on_meta(tmp_path / "export", untrained=lambda source: pytest.fail("it is there"))
    assert all(weight.is_meta for weight in meta.encoder.parameters())  # type: ignore[union-attr]
    weights = tmp_path / "weights/ImageReward.pt"
    state = torch.load(weights)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, weights)
    with pytest.raises(ValueError, match="was trained on another encoder than"):
        RewardModel.from_pretrained(tmp_path / "export")


def test_the_fingerprint_is_of_the_content(source: ImageRewardSource, tmp_path: Path) -> None:
    same = ImageRewardSource(str(write_small(tmp_path / "copy")))
    other = ImageRewardSource(str(write_small(tmp_path / "other", seed=1)))
    assert same.fingerprint() == source.fingerprint() != other.fingerprint()
    assert ImageRewardSource(source.model, "fp16").fingerprint() != source.fingerprint()
    with pytest.raises(ValueError, match="ImageReward's layers cannot be tuned"):
        ImageRewardSource(source.model, trainable_layers=1)
