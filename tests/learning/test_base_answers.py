"""The base model's answers are found once for all that ask the same, and again for whoever asks something else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation import code_hash
from t2ifb.learning import base_answers
from t2ifb.learning.base_answers import BaseAnswers
from t2ifb.learning.exam import Answers, Exam
from tests.learning.tuning_worlds import make_tuning


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Exam]:
    """The exams that were really put to the base model."""
    found: list[Exam] = []

    def counted(exam: Exam, *arguments: Any, **options: Any) -> Answers:
        found.append(exam)
        return ask(exam, *arguments, **options)

    ask = base_answers.ask
    monkeypatch.setattr(base_answers, "ask", counted)
    return found


def test_the_same_question_is_asked_once(tmp_path: Path, drawn: list[Exam], monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = make_tuning()
    model = tuning.diffusion.load()
    (tmp_path / "weights").write_text("one")
    settings: dict[str, Any] = {"diffusion": {"source": str(tmp_path / "weights")}, "samples_per_batch": 2}

    def answers(split: str = "validation", seed: int = 0, sampler: Sampler | None = None, **changes: Any) -> Answers:
        return BaseAnswers(tmp_path / "kept", settings | changes).of(tuning.exam(split, seed, sampler), model, 2)

    first = answers()
    again = answers(alpha=7)  # nothing that the base model's images depend on
    assert len(drawn) == 1
    assert torch.equal(first.images, again.images) and torch.equal(first.scores["reward"], again.scores["reward"])
    answers(seed=1)
    answers("test")
    answers(reward={"source": "other"})
    assert len(drawn) == 4
    (tmp_path / "weights").write_text("other")
    answers()
    assert len(drawn) == 5
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    for file in (export / "weights", tmp_path / "run" / "report.html"):  # what stands beside an export is not asked
        answers(reward={"source": str(tmp_path / "run")})
        file.write_text("new")
    assert len(drawn) == 7
    answers(reward={"source": str(tmp_path / "run")})
    assert len(drawn) == 7
    facts = {"name": "another GPU", "tf32": True}
    with monkeypatch.context() as patched:
        patched.setattr(base_answers, "device_facts", lambda device: facts)
        answers()
        facts = facts | {"tf32": False}
        answers()
    assert len(drawn) == 9
    monkeypatch.setattr(code_hash, "version", {**code_hash.library_versions(), "diffusers": "0.0"}.get)
    answers()
    assert len(drawn) == 10
    for _ in range(2):
        answers(sampler=Sampler(4, 2.0))  # another guidance scale
    assert len(drawn) == 11


@pytest.mark.parametrize(("folder", "settings"), [(None, {"diffusion": {}}), ("kept", {})])
def test_without_a_folder_or_settings_nothing_is_kept(
    tmp_path: Path, drawn: list[Exam], folder: str | None, settings: dict[str, Any]
) -> None:
    tuning = make_tuning()
    model = tuning.diffusion.load()
    for _ in range(2):
        BaseAnswers(folder and tmp_path / folder, settings).of(tuning.exam("test", 0), model, 2)
    assert len(drawn) == 2 and not list(tmp_path.iterdir())
