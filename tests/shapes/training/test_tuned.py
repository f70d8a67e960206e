"""Shipped adapters: trained by the commands of a user, and small."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t2ifb.shapes.training import tuned
from t2ifb.shapes.weights import TUNED


def test_a_finished_run_is_kept_and_an_unfinished_one_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(tuned.subprocess, "run", lambda command, check: calls.append(command[3:]))
    tuned.run("train", tmp_path, ["+experiment=dpo"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    tuned.run("train", tmp_path, ["+experiment=dpo"])
    (tmp_path / "summary.json").touch()
    tuned.run("train", tmp_path, ["+experiment=dpo"])
    assert calls == [["+experiment=dpo", f"hydra.run.dir={tmp_path}"], [f"resume={tmp_path}"]]


@pytest.mark.slow
def test_both_stages_run_and_are_installed(tmp_path: Path) -> None:
    small = ["build.size=small"]
    few = [
        *tuned.TUNING,
        "algorithm.epochs=0.00125",
        "algorithm.batch_size=2",
        "algorithm.algorithm.updates=1",
        "algorithm.validate_every=3",
        "algorithm.validation_prompts=2",
        "algorithm.images_per_prompt=1",
        "algorithm.guidance_prompts=2",
        "prompts.test.count=2",
    ]
    tuning = tuned.train(tmp_path, extra=small, tuning=few)
    assert json.loads((tuning / "summary.json").read_text())["steps"] == 3
    assert "reward model, reward" in (tuning / "export" / "README.md").read_text()
    judged = tuned.judge(tuning, ["prompts.most=2", "prompts.test.count=2", "evaluation.validation_prompts=2"])
    tuned.install(tuning, judged, tmp_path / "installed")
    assert load_file(tmp_path / "installed" / "pytorch_lora_weights.safetensors")
    card = (tmp_path / "installed" / "README.md").read_text()
    sentence = next(iter(json.loads((judged / "summary.json").read_text())["guidance"].values()))["sentence"]
    assert card.splitlines()[2] == sentence and "The run's own verdict" in card and "load_lora_weights" in card


@pytest.mark.skipif(not TUNED.is_dir(), reason="the shipped adapters are not there: make world")
def test_the_shipped_adapters_are_small_and_say_what_they_gained() -> None:
    assert sum(file.stat().st_size for file in TUNED.iterdir()) < 1e6
    card = (TUNED / "README.md").read_text(encoding="utf-8")
    assert "gold" in card and "guidance" in card.splitlines()[2] and "/root" not in card and "/work" not in card
