"""`make world`: parts that are installed, and its arguments."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from t2ifb.shapes import weights
from t2ifb.shapes.training import __main__ as world
from t2ifb.shapes.training import cards, flow
from t2ifb.shapes.weights import load_pipeline


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["world", *arguments])
    world.main()


def test_an_unfinished_flow_is_installed_with_its_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("STEPS", 2), ("BATCH", 2)):
        monkeypatch.setattr(flow, name, value)
    for module in (world, weights):
        monkeypatch.setattr(module, "FLOW", tmp_path / "flow")
    for name in ("pipeline_figures", "noisy_flow_figures"):
        monkeypatch.setattr(cards, name, partial(getattr(cards, name), count=2, steps=2))
    state = tmp_path / "state"
    flow.train(load_pipeline(torch.float32), state / "seed0", images=4)
    run(monkeypatch, "--part", "flow", "--unfinished", "--state", str(state))
    files = [file for file in (tmp_path / "flow").rglob("*.safetensors")]
    assert len(files) == 4 and sum(file.stat().st_size for file in files) < 8e6
    card = (tmp_path / "flow" / "README.md").read_text()
    assert "3,964,175. Trained on `train` scenes" in card.replace("\n", " ")
    assert card.count("| gold at guidance ") == 2 * 4 and "text_encoder_3=None" in card
    assert not (state / "seed0" / "flow.finished").exists()


@pytest.mark.parametrize(
    ("part", "text"), [("clip", "--unfinished needs --part flow"), ("flow", "flow.pt does not exist; train flow first")]
)
def test_what_is_not_there_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str, text: str
) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        run(monkeypatch, "--part", part, "--unfinished", "--state", str(tmp_path))
    assert text in capsys.readouterr().err
