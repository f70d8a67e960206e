"""The study of few comparisons: as many updates in every run, and its figures."""

import json
from pathlib import Path

import pytest

from experiments.few_comparisons import study
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from tests.experiments.conftest import Drawn


@pytest.mark.parametrize("start", study.STARTS)
def test_every_run_is_valid_and_has_about_as_many_updates(start: str) -> None:
    schema.register()
    arguments = [study.run_of(start, prompts, 1).overrides for prompts in study.PROMPTS]
    (composed,) = compose_all("train", list(arguments[0]))
    check(composed)
    assert composed.config.algorithm.batch_size == study.BATCH
    settings = [dict(each.split("=") for each in some) for some in arguments]
    for values in settings:
        assert values.keys() == settings[0].keys()
        prompts, epochs, validations = (
            float(values[f"algorithm.{name}"]) for name in ("train_prompts", "epochs", "validations_per_epoch")
        )
        assert epochs * max(1, prompts * study.COMPARISONS / study.BATCH) == pytest.approx(study.UPDATES, rel=0.03)
        assert validations * epochs == pytest.approx(1)


def test_runs_become_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Drawn) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study.Run, "is_of", lambda run: True)
    for place, start in enumerate(study.STARTS):
        for prompts in study.PROMPTS:
            for seed in (0, 1):
                run = study.run_of(start, prompts, seed)
                run.path.mkdir(parents=True)
                table = {"CLIP Score": 0.6, "ImageReward before training": 0.65}
                summary = {
                    "test/accuracy": 0.5 + prompts / 1000 + seed / 100 + place / 10, "test/comparisons": 9,
                    "test/table": table, "git_commit": "c", "data": {"comparisons": 13 * prompts},
                }  # fmt: skip
                (run.path / "summary.json").write_text(json.dumps(summary))
    result = study.compare([0, 1])
    assert result["accuracy"]["mlp"][4] == pytest.approx([0.504, 0.514])
    assert result["comparisons"]["mlp"][128] == [1664, 1664]
    assert result["before"] == {"bilinear, from CLIP Score": 0.6, "ImageReward": 0.65}
    study.draw(json.loads(json.dumps(result)), tmp_path / "result.png")
    assert drawn.shows(0.509, 0.633, 0.6, 0.65)  # few and many comparisons of the first start, and before training
