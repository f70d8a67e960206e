"""The README's Python, run as it stands but for the places of data and weights."""

import re
from pathlib import Path

import pytest

from t2ifb.shapes.weights import CLIP, IMAGE_REWARD, PIPELINE
from tests.conftest import CHECKOUT
from tests.learning.worlds import brightness_world

BLOCKS = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
USING = """
import torch
images, prompts = torch.rand(2, 3, 64, 64, requires_grad=True), ["a red circle", "two blue squares"]
"""


def test_there_are_both_stages() -> None:
    assert len(BLOCKS) == 3
    assert "RewardTraining" in BLOCKS[0]
    assert "FineTuning" in BLOCKS[2]


@pytest.mark.slow
def test_both_stages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    brightness_world(tmp_path / "db", prompts=6)
    for name, prompt in (("train", "a red star"), ("validation", "a blue circle"), ("test", "two red squares")):
        (tmp_path / f"{name}.txt").write_text(f"{prompt} on a gray background\n")
    places = {
        '"path/to/ImageRewardDB", subset="8k"': '"db"',
        '"ViT-L-14-quickgelu", "openai"': f'"local-dir:{CLIP}"',
        '"stable-diffusion-v1-5/stable-diffusion-v1-5"': f'"{PIPELINE}"',
        '"zai-org/ImageReward"': f'"{IMAGE_REWARD}"',
        "=40": "=4",
        "[30, 39]": "[2, 3]",
    }
    names: dict[str, object] = {}
    for block in (BLOCKS[0], USING + BLOCKS[1], BLOCKS[2]):
        for there, here in places.items():
            block = block.replace(there, here)
        exec(compile(block, "README.md", "exec"), names)
        if "scores" in names and "tuning" not in names:
            assert tuple(names["scores"].shape) == (2,)  # type: ignore[attr-defined]
    assert (tmp_path / "outputs" / "tuned" / "export" / "pytorch_lora_weights.safetensors").exists()
