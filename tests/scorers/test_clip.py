import copy
import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from t2ifb.data.embeddings import Encoder, cut_prompts
from t2ifb.scorers import AestheticScore, CLIPScore, RewardModel
from t2ifb.scorers.aesthetic_score import AestheticHead
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.heads import MLPHead
from tests.scorers.parts import tiny_clip

PROMPTS = ["a red circle", "Two BLUE squares above a very long sentence that does not fit into the context"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CLIPEncoder:
    return CLIPSource(f"local-dir:{folder}", device="cpu").load()


def test_it_is_open_clips_model_and_tokenizer(folder: Path, encoder: CLIPEncoder) -> None:
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(PROMPTS)
    images = torch.rand(2, 3, 16, 16)
    pixels = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.3
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_images(images), model.encode_image(pixels, normalize=True))
        torch.testing.assert_close(encoder.encode_prompts(PROMPTS), model.encode_text(tokens, normalize=True))
        assert encoder.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert isinstance(encoder, Encoder)
    assert (encoder.image_size, encoder.embedding_dim) == (16, 12)


@pytest.mark.parametrize("tokenizer", ["tiny", "ViT-B-32"])
def test_prompts_that_are_cut_off_are_known(encoder: CLIPEncoder, folder: Path, tokenizer: str) -> None:
    named = copy.copy(encoder)
    named._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}" if tokenizer == "tiny" else tokenizer)
    length = named.tokenize([""]).shape[1]
    word = "a " if tokenizer == "ViT-B-32" else "a"
    fits, too_long = (word * (length - 2 + more) for more in (0, 1))
    assert named.cut_prompts(["", fits, too_long, "a red circle", word * 500]) == [too_long, word * 500]
    assert named.cut_prompts([]) == []
    assert cut_prompts(CLIPScore(named), [too_long, fits, too_long]) == [too_long]


def test_embeddings_are_normalised_single_precision_and_differentiable(encoder: CLIPEncoder) -> None:
    images = torch.rand(3, 3, 30, 21, requires_grad=True)
    embeddings = encoder.encode_images(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    embeddings[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.any()
    assert all(weight.grad is None for weight in encoder.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_are_near(folder: Path, encoder: CLIPEncoder, precision: str) -> None:
    lower = CLIPSource(f"local-dir:{folder}", precision=precision, device="cpu").load()  # type: ignore[arg-type]
    images = torch.rand(2, 3, 16, 16)
    assert lower.encode_images(images).dtype == torch.float32
    for ours, full in (
        (lower.encode_images(images), encoder.encode_images(images)),
        (lower.encode_prompts(PROMPTS), encoder.encode_prompts(PROMPTS)),
    ):
        assert (normalize(ours) * normalize(full)).sum(1).min() > 0.99


def test_it_stays_frozen(encoder: CLIPEncoder) -> None:
    assert not encoder.train().training
    assert not any(module.training for module in encoder.modules())


def test_the_fingerprint_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    here, moved = (CLIPSource(f"local-dir:{place}").fingerprint() for place in (folder, tmp_path / "moved"))
    assert here == moved
    assert str(folder) not in here
    assert CLIPSource(f"local-dir:{folder}", precision="bf16").fingerprint() != here
    assert CLIPSource(f"local-dir:{folder}", device="cuda").fingerprint() == here
    other = tiny_clip(tmp_path / "other", seed=1)
    assert CLIPSource(f"local-dir:{other}").fingerprint() != here
    tokenizer = tmp_path / "moved" / "merges.txt"
    tokenizer.write_text(tokenizer.read_text() + "a b\n")
    assert CLIPSource(f"local-dir:{tmp_path / 'moved'}").fingerprint() != here


def test_quick_gelu_is_part_of_the_fingerprint_and_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), file)
    plain, quick = (CLIPSource("ViT-S-32-alt", str(file), quick_gelu=value, device="cpu") for value in (False, True))
    assert plain.fingerprint() != quick.fingerprint()
    image = torch.rand(1, 3, 224, 224)
    assert not torch.equal(plain.load().encode_images(image), quick.load().encode_images(image))


@pytest.mark.parametrize(
    ("model", "pretrained", "what"),
    [
        ("ViT-L-14", "openai", "use model=ViT-L-14-quickgelu"),
        ("ViT-B-32", "openai", "use model=ViT-B-32-quickgelu"),
        ("ViT-L-14-quickgelu", "laion2b_s32b_b82k", "neither a file nor a tag|use model=ViT-L-14"),
        ("ViT-L-14", "FILE", "OpenAI's weights need model=ViT-L-14-quickgelu"),
        ("ViT-L-14-quickgelu", None, "has no weights"),
        ("ViT-L-15", "openai", "no model 'ViT-L-15'"),
        ("ViT-L-14-quickgelu", "opnai", "neither a file nor a tag"),
        ("local-dir:nowhere", None, "not a folder in open_clip's form"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    tmp_path: Path, model: str, pretrained: str | None, what: str
) -> None:
    if pretrained == "FILE":
        pretrained = str(tmp_path / "open_clip_model.safetensors")
        Path(pretrained).touch()
    with pytest.raises(ValueError, match=what):
        CLIPSource(model, pretrained).fingerprint()
    with pytest.raises(ValueError, match=what):
        CLIPSource(model, pretrained).load()


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"open_clip_model.safetensors from timm/\S+ .* pretrained=… to that file"):
        CLIPSource("ViT-B-32-quickgelu", "openai").load()


def test_a_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, file := tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"cannot load .*other.pt as ViT-S-32-alt"):
        CLIPSource("ViT-S-32-alt", str(file), device="cpu").load()


@pytest.mark.huge
def test_vit_l_14_loads_from_a_local_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-L-14-quickgelu").eval()
    torch.save(model.state_dict(), file := tmp_path / "vit_l_14.pt")
    encoder = CLIPSource("ViT-L-14-quickgelu", str(file), device="cpu").load()
    assert (encoder.image_size, encoder.embedding_dim) == (224, 768)
    image = torch.rand(1, 3, 224, 224)
    pixels = (image - torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]) / torch.tensor(
        open_clip.OPENAI_DATASET_STD
    )[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_images(image), model.encode_image(pixels, normalize=True))


def model_of(scorer: nn.Module) -> nn.Module:
    """The network of `open_clip` in a scorer or encoder."""
    return next(module.model for module in scorer.modules() if isinstance(module, CLIPEncoder))


def test_frozen_encoders_of_one_fingerprint_share_their_weights(folder: Path, tmp_path: Path) -> None:
    """Wherever the files are; another precision, tuned layers and other weights are not shared."""
    shutil.copytree(folder, tmp_path / "moved")
    places = [CLIPSource(f"local-dir:{place}", device="cpu") for place in (folder, tmp_path / "moved")]
    RewardModel(places[0].load(), MLPHead(12, [8], [])).save_pretrained(tmp_path / "reward")
    save_file(AestheticHead(12).state_dict(), tmp_path / "aesthetic.safetensors")
    scorers: list[nn.Module] = [
        RewardModel.from_pretrained(tmp_path / "reward"),
        AestheticScore.from_pretrained(tmp_path, places[1]),
        CLIPScore(places[0]),
        places[1].load(),
    ]
    assert scorers[2].encoder
    assert len({id(model_of(scorer)) for scorer in scorers}) == 1
    own = [replace(places[0], trainable_layers=1), replace(places[0], precision="bf16")]
    assert len({id(model_of(scorer)) for scorer in [*scorers, *(source.load() for source in own)]}) == 3
    together = nn.ModuleList(scorers).to("meta")
    assert len({id(model_of(scorer)) for scorer in together}) == 1
    assert all(weight.is_meta for weight in together.parameters())


def test_moving_or_casting_one_encoder_leaves_the_others(folder: Path) -> None:
    source = CLIPSource(f"local-dir:{folder}", device="cpu")
    moved, cast, left = (source.load() for _ in range(3))
    image = torch.rand(1, 3, 16, 16)
    before = left.encode_images(image)
    assert moved.to("meta").encode_images(image.to("meta")).is_meta
    assert {weight.dtype for weight in cast.double().parameters()} == {torch.float64}
    assert torch.equal(left.encode_images(image), before)
    assert {(weight.device.type, weight.dtype) for weight in left.parameters()} == {("cpu", torch.float32)}
    assert model_of(source.load()) is model_of(left)


def test_a_copy_that_was_changed_stays_changed_when_it_is_moved(folder: Path) -> None:
    source = CLIPSource(f"local-dir:{folder}", device="cpu")
    there, changed = source.load().to("meta"), copy.deepcopy(source.load())
    assert model_of(changed.to("meta")) is not model_of(there)


def test_weights_are_freed_with_the_last_encoder(folder: Path) -> None:
    source = CLIPSource(f"local-dir:{folder}", precision="fp16", device="cpu")
    encoder = source.load()
    model = weakref.ref(model_of(encoder))
    del encoder
    gc.collect()
    assert model() is None
