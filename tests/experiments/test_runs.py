"""Runs of a study are trained once, and what fails does not hold up the others."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.runs import Run, train_each


@dataclass(frozen=True)
class Scripted(Run):
    """A run that ends at once, with a status."""

    status: int = 0

    def train(self, threads: int) -> int:
        self.path.mkdir()
        self.path.with_suffix(".log").write_text("first\nlast words")
        if not self.status:
            (self.path / "summary.json").write_text("{}")
        return self.status


def test_each_run_is_recorded_when_it_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "summary.json").write_text("{}")  # training it again would fail: the folder is there
    runs: dict[str, Run] = {name: Scripted(tmp_path / name, ()) for name in ("old", "new")}
    runs["bad"] = Scripted(tmp_path / "bad", (), status=3)
    noted: list[str] = []
    train_each(runs, 2, noted.append)
    assert sorted(noted) == ["new", "old"]
    assert sorted(capsys.readouterr().out.splitlines()) == ["bad: failed with 3; last words", "new: done", "old: done"]
