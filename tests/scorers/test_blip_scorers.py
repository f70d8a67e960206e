"""BLIP Score and ImageReward against the networks written out once more, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2ifb.scorers import BLIPScore, ImageReward
from t2ifb.scorers.blip import translate
from t2ifb.scorers.weights import find_weights
from tests.conftest import real_data
from tests.scorers.blip_parts import (
    image_reward_shapes,
    random_state,
    reference_cosine,
    reference_reward,
    write_small,
)

HEADS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("image_reward"), heads=HEADS)


def tokens(count: int, vocabulary: int, length: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, vocabulary, (count, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([length, 4, 6, 2])[:count, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize(("scorer", "reference"), [(ImageReward, reference_reward), (BLIPScore, reference_cosine)])
def test_the_network_is_the_original_one(
    checkpoint: Path, scorer: type[ImageReward | BLIPScore], reference: Callable[..., Tensor]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    pixels, (ids, mask) = torch.randn(4, 3, 24, 24), tokens(4, 15)
    built = scorer.from_checkpoint(checkpoint, checkpoint.with_name("med_config.json"))
    scores = built.score_tokens(pixels, ids, mask)
    assert scores.std() > 0.01  # else anything agrees with anything
    torch.testing.assert_close(scores, reference(state, HEADS, pixels, ids, mask), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_from_a_folder_with_prompts_and_images_of_any_size(
    checkpoint: Path, scorer: type[ImageReward | BLIPScore]
) -> None:
    built = scorer.from_pretrained(checkpoint.parent)
    images = torch.rand(2, 3, 31, 40, requires_grad=True)
    scores = built(images, ["a red circle", "two blue squares and a circle " * 20])
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(weight.grad is None for weight in built.parameters())
    one = built(images[:1], ["a red circle"])  # the padding of a batch changes nothing
    torch.testing.assert_close(one, scores[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_prompts_that_are_cut_off_are_known(checkpoint: Path, scorer: type[ImageReward | BLIPScore]) -> None:
    fits, too_long = ("circle " * words for words in (33, 34))
    assert scorer.from_pretrained(checkpoint.parent).cut_prompts([fits, too_long, "a red circle"]) == [too_long]


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_half_precision_is_near(checkpoint: Path, scorer: type[ImageReward | BLIPScore]) -> None:
    images, prompts = torch.rand(4, 3, 24, 24), ["a red circle", "a square", "two circles", "a blue square"]
    full, half = (scorer.from_pretrained(checkpoint.parent, precision=p)(images, prompts) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full, half]))[0, 1] > 0.9


def test_blip_of_its_own_file_is_blip_of_image_reward(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    blip = {name.removeprefix("blip."): t for name, t in state.items() if name.startswith("blip.")}
    rest = {"temp": torch.ones(()), "queue_ptr": torch.zeros(1), "visual_encoder_m.cls_token": torch.ones(1)}
    torch.save({"model": blip | rest}, tmp_path / "model_large.pth")
    (tmp_path / "med_config.json").write_text(
        "\ufeff" + checkpoint.with_name("med_config.json").read_text(), encoding="utf-8"
    )
    (tmp_path / "vocab.txt").write_text(checkpoint.with_name("vocab.txt").read_text())
    images, prompts = torch.rand(2, 3, 24, 24), ["a red circle", "a square"]
    one, other = (BLIPScore.from_pretrained(place)(images, prompts) for place in (tmp_path, checkpoint))
    assert torch.equal(one, other)


def test_names_are_translated_and_back() -> None:
    names = {name.removeprefix("blip.") for name in image_reward_shapes() if name.startswith("blip.")}
    there = {translate(name) for name in names}
    assert len(there) == len(names)
    assert {translate(name, to_original=True) for name in there} == names


def test_missing_unknown_and_misshapen_tensors_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)

    def refused(changed: dict[str, Tensor], message: str) -> None:
        torch.save(changed, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match=message):
            ImageReward.from_checkpoint(tmp_path / "ImageReward.pt")

    refused(state | {"blip.visual_encoder.extra": torch.ones(1)}, "unknown visual_encoder.extra")
    refused({n: t for n, t in state.items() if n != "blip.vision_proj.bias"}, "lacks vision_proj.bias")
    refused({n: t for n, t in state.items() if n != "mlp.layers.7.bias"}, r"lacks 7\.bias")
    refused(state | {"mlp.layers.0.weight": torch.ones(1024, 5)}, "head does not match")
    refused(state | {"blip.visual_encoder.norm.weight": torch.ones(5)}, "do not form a BLIP model")
    refused({"something": torch.ones(1)}, "is not a checkpoint of BLIP")
    (tmp_path / "ImageReward.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read .* as a checkpoint"):
        ImageReward.from_pretrained(tmp_path)


def test_what_is_missing_is_said_with_the_command_that_gets_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hf download zai-org/ImageReward ImageReward.pt"):
        ImageReward.from_pretrained()
    with pytest.raises(ValueError, match=f"the folder {tmp_path} has no ImageReward.pt"):
        ImageReward.from_pretrained(tmp_path)
    for vocabulary in (tmp_path / "nowhere", tmp_path, "google-bert/bert-base-uncased"):
        scorer = ImageReward.from_pretrained(checkpoint, vocabulary=vocabulary)
        with pytest.raises(ValueError, match="hf download google-bert/bert-base-uncased"):
            scorer(torch.rand(1, 3, 24, 24), ["a red circle"])


def test_another_vocabulary_a_precision_and_a_count_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    scorer = ImageReward.from_pretrained(checkpoint, vocabulary=tmp_path)
    with pytest.raises(ValueError, match="found 6 tokens, the text tower has 15"):
        scorer(torch.rand(1, 3, 24, 24), ["a red circle"])
    with pytest.raises(ValueError, match="precision must be fp32, fp16 or bf16, not 'fp8'"):
        BLIPScore.from_pretrained(checkpoint.parent, precision="fp8")
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        ImageReward.from_pretrained(checkpoint)(torch.rand(2, 3, 24, 24), ["a red circle"])


def test_a_broken_configuration_or_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for heads in (0, 7):
        (tmp_path / "med_config.json").write_text(json.dumps({"num_attention_heads": heads, "layer_norm_eps": 1e-12}))
        with pytest.raises(ValueError, match=f"{checkpoint} is not a checkpoint of BLIP"):
            ImageReward.from_checkpoint(checkpoint, tmp_path / "med_config.json")
    (tmp_path / "image_reward.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read .* as a checkpoint"):
        ImageReward.from_pretrained(tmp_path)


def test_a_file_at_another_address_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(address: str, target: str) -> None:
        asked.append(address)
        if "broken" in address:
            raise TimeoutError("timed out")
        Path(target).write_text(address)

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    places = [find_weights(f"https://{host}/model.pth", "model.pth") for host in ("one", "other", "one")]
    assert places[0] == places[2] != places[1]
    assert asked == ["https://one/model.pth", "https://other/model.pth"]
    with pytest.raises(ValueError, match=r"timed out\).*curl -LO https://broken/model.pth"):
        find_weights("https://broken/model.pth", "model.pth")


@pytest.mark.huge
@pytest.mark.parametrize(("scorer", "reference"), [(ImageReward, reference_reward), (BLIPScore, reference_cosine)])
def test_at_full_geometry_from_a_file_in_the_original_layout(
    tmp_path: Path, scorer: type[ImageReward | BLIPScore], reference: Callable[..., Tensor]
) -> None:
    layout = json.loads(real_data("imagereward_checkpoint_layout.json").read_text())
    state = random_state({name: tuple(shape) for name, shape in layout.items()})
    torch.save(state, tmp_path / "ImageReward.pt")
    pixels, (ids, mask) = torch.randn(2, 3, 224, 224), tokens(2, 30_522, 35)
    with torch.inference_mode():
        scores = scorer.from_checkpoint(tmp_path / "ImageReward.pt").score_tokens(pixels, ids, mask)
        torch.testing.assert_close(scores, reference(state, 12, pixels, ids, mask), rtol=1e-4, atol=1e-5)
