"""Validations leave scores and pictures behind, and stop a run whose judges no longer rise."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.finetuning.validation import SHOWN, ValidationCallback
from t2ifb.training.run_folder import RunFolder

PROMPTS = [f"prompt {number // 2}" for number in range(2 * (SHOWN + 2))]


class Answers:
    """Two images for each prompt, and one score that is the image's number."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (len(PROMPTS), 3, 8, 8), generator=generator, dtype=torch.uint8)

    def sheet(self, prompts: list[str]) -> ScoreSheet:
        return ScoreSheet(prompts, {"reward": np.arange(float(len(prompts)))})


@pytest.fixture
def evaluator() -> Any:
    return SimpleNamespace(base=Answers(0), last=Answers(1), prompts=PROMPTS, images_per_prompt=2)


def trainer(judges: float, step: int = 0, first: bool = True) -> Any:
    return SimpleNamespace(
        callback_metrics={"val/judges": torch.tensor(judges)},
        global_step=step,
        is_global_zero=first,
        should_stop=False,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        sanity_checking=False,
        fast_dev_run=False,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda stop, all: stop),
        current_epoch=0,
        world_size=1,
        global_rank=0,
        loggers=[],
    )


def validate(callback: ValidationCallback, *judged: float) -> list[bool]:
    """Whether the run is to stop after each validation."""
    found = []
    for step, judges in enumerate(judged, 1):
        seen = trainer(judges, step)
        callback.on_validation_end(seen, None)  # type: ignore[arg-type]
        found.append(seen.should_stop)
    return found


def test_a_run_stops_after_so_many_validations_without_a_rise(tmp_path: Path, evaluator: Any) -> None:
    evaluator.last = None
    run = RunFolder(tmp_path)
    assert validate(ValidationCallback(run, evaluator, 2), 0.1, 0.3, 0.2, 0.3, 0.4) == [False] * 3 + [True, False]
    assert validate(ValidationCallback(run, evaluator), 0.3, 0.2, 0.1, 0.0) == [False] * 4


def test_a_resumed_run_that_had_stopped_does_not_go_on(tmp_path: Path, evaluator: Any) -> None:
    evaluator.base = evaluator.last = None
    first = ValidationCallback(RunFolder(tmp_path), evaluator, patience=1)
    validate(first, 0.3, 0.2)
    again = ValidationCallback(RunFolder(tmp_path), evaluator, patience=1)
    again.load_state_dict(first.state_dict())
    resumed = trainer(0.0)
    again.on_train_start(resumed, None)  # type: ignore[arg-type]
    assert resumed.should_stop and (again.best_score, again.wait_count) == (first.best_score, 1)


def test_scores_of_all_images_and_the_first_image_of_the_first_prompts_are_written(
    tmp_path: Path, evaluator: Any
) -> None:
    run = RunFolder(tmp_path)
    callback = ValidationCallback(run, evaluator)
    callback.on_train_start(trainer(0.0), None)  # type: ignore[arg-type]
    callback.on_validation_end(trainer(0.1, step=5), None)  # type: ignore[arg-type]
    for step, answers in ((0, evaluator.base), (5, evaluator.last)):
        sheet = ScoreSheet.read(run.step(step, ".csv"))
        assert list(sheet.prompts) == PROMPTS
        assert sheet.columns["reward"].tolist() == list(range(len(PROMPTS)))
        strip = np.asarray(Image.open(run.step(step, "_strip.png")))
        shown = answers.images[: 2 * SHOWN : 2].permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(strip, np.concatenate(list(shown), axis=1))
    assert run.step(5, ".png").exists() and not run.step(0, ".png").exists()


def test_other_processes_write_nothing(tmp_path: Path, evaluator: Any) -> None:
    callback = ValidationCallback(RunFolder(tmp_path), evaluator)
    callback.on_train_start(trainer(0.0, first=False), None)  # type: ignore[arg-type]
    callback.on_validation_end(trainer(0.1, step=5, first=False), None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
