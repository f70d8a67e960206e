import json
import shutil
from pathlib import Path

import pytest
import torch

from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.reward_model import PACKAGE, write_export
from tests.scorers.parts import tiny_clip

PROMPTS = ["a red circle", "two blue squares", "a red circle"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CLIPSource:
    return CLIPSource(f"local-dir:{tiny_clip(tmp_path_factory.mktemp('clip'))}", device="cpu")


@pytest.fixture
def head() -> MLPHead:
    torch.manual_seed(0)
    return MLPHead(12, hidden=(8, 4)).eval()


def test_from_pixels_it_gives_what_the_head_gives_from_embeddings(
    source: CLIPSource, head: MLPHead, tmp_path: Path
) -> None:
    encoder = source.load()
    images = torch.rand(3, 3, 24, 30, requires_grad=True)
    with torch.no_grad():
        expected = head(encoder.encode_images(images), encoder.encode_prompts(PROMPTS))
    RewardModel(encoder, head).save_pretrained(tmp_path / "export", card="Trained on **nothing**.")
    loaded = RewardModel.from_pretrained(tmp_path / "export")
    rewards = loaded(images, PROMPTS)
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0)
    assert rewards.dtype == torch.float32
    assert rewards.shape == (3,)
    assert torch.autograd.grad(rewards.sum(), images)[0].any()
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not loaded.training
    card = (tmp_path / "export" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "Trained on **nothing**." in card


def test_a_run_folder_its_export_and_the_file_are_the_same(source: CLIPSource, head: MLPHead, tmp_path: Path) -> None:
    write_export(tmp_path / "export", head, source)
    image = torch.rand(1, 3, 16, 16)
    places = [tmp_path, tmp_path / "export", tmp_path / "export" / "reward.safetensors", str(tmp_path)]
    scores = {RewardModel.from_pretrained(place)(image, PROMPTS[:1]).item() for place in places}
    assert len(scores) == 1


def test_another_encoder_is_refused_and_the_same_elsewhere_is_taken(
    source: CLIPSource, head: MLPHead, tmp_path: Path
) -> None:
    write_export(tmp_path / "export", head, source)
    other = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'other', seed=1)}", device="cpu")
    with pytest.raises(ValueError, match="was trained on another encoder"):
        RewardModel.from_pretrained(tmp_path, encoder=other)
    assert source.folder is not None
    shutil.copytree(source.folder, tmp_path / "moved")
    RewardModel.from_pretrained(tmp_path, encoder=CLIPSource(f"local-dir:{tmp_path / 'moved'}", device="cpu"))
    built = source.load()
    assert RewardModel.from_pretrained(tmp_path, encoder=built).encoder is built


def test_the_packages_own_encoder_is_named_without_this_machines_path(
    source: CLIPSource, head: MLPHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.folder is not None
    shutil.copytree(source.folder, tmp_path / "site" / "t2ifb" / "weights")
    monkeypatch.setattr("t2ifb.__file__", str(tmp_path / "site" / "t2ifb" / "__init__.py"))
    write_export(tmp_path / "export", head, CLIPSource(f"local-dir:{tmp_path / 'site' / 't2ifb' / 'weights'}"))
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["encoder"]["model"] == f"local-dir:{PACKAGE}/weights"
    (tmp_path / "site").rename(tmp_path / "elsewhere")
    monkeypatch.setattr("t2ifb.__file__", str(tmp_path / "elsewhere" / "t2ifb" / "__init__.py"))
    RewardModel.from_pretrained(tmp_path / "export")


def changed(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


PROGRAM = {"path": "subprocess", "class_name": "Popen", "arguments": {"args": ["false"]}}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"format_version": 3}, "format version 3"),
        ({"head": {"class": "os.system", "arguments": {"command": "true"}}}, "is not an nn.Module"),
        ({"head": {"class": "t2ifb.scorers.ModuleScore", "arguments": PROGRAM}}, "it takes no embedding_dim"),
        ({"head": {"class": "t2ifb.scorers.heads.Missing", "arguments": {}}}, "does not exist"),
        ({"head": {"class": "t2ifb.scorers.heads.MLPHead", "arguments": {"embedding_dim": 3}}}, "does not match"),
        ({"encoder": {"name": "x"}}, "not the configuration of a reward model"),
    ],
)
def test_foreign_configurations_are_refused(
    source: CLIPSource, head: MLPHead, tmp_path: Path, values: dict[str, object], what: str
) -> None:
    write_export(tmp_path, head, source)
    changed(tmp_path, **values)
    with pytest.raises(ValueError, match=what):
        RewardModel.from_pretrained(tmp_path)


def test_a_damaged_file_of_weights_is_one_message(source: CLIPSource, head: MLPHead, tmp_path: Path) -> None:
    write_export(tmp_path, head, source)
    content = (tmp_path / "reward.safetensors").read_bytes()
    (tmp_path / "reward.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"reward\.safetensors cannot be read"):
        RewardModel.from_pretrained(tmp_path)


def test_what_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        RewardModel.from_pretrained(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="is not finished"):
        RewardModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hugging Face Hub"):
        RewardModel.from_pretrained("nobody/nothing")
