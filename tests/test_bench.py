"""The benchmark runs; what it measures is nobody's test."""

import pytest

from tests import bench


def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"PROMPTS": 20, "COMPARISONS": 100, "ROUNDS": 1, "FILLED": 64, "SCORED": 64}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main()
    printed = capsys.readouterr().out
    for what in (
        "a training epoch",
        "grouping=comparison",
        "filling the cache",
        "ImageReward",
        "table 1",
        "--help",
        "--cfg job",
    ):
        assert printed.count(what) >= 2, what  # at once, and in the table
