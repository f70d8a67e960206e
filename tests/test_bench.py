"""The benchmark runs; what it measures is nobody's test."""

import pytest

from t2ifb.shapes.weights import PIPELINE
from tests import bench, bench_tuning


@pytest.mark.slow
def test_every_row_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"PROMPTS": 20, "COMPARISONS": 100, "ROUNDS": 1, "FILLED": 64, "SCORED": 64}.items():
        monkeypatch.setattr(bench, name, value)
    for name, value in {"UPDATES": 1, "BATCH": 1, "STEPS": 10, "WINDOW": (0, 9)}.items():
        monkeypatch.setattr(bench_tuning, name, value)
    monkeypatch.setattr(bench_tuning, "SD15_IDS", (str(PIPELINE),))
    bench.main()
    printed = capsys.readouterr().out
    for what in (
        "a training epoch",
        "grouping=comparison",
        "filling the cache",
        "ImageReward",
        "a fine-tuning update",
        "an update of grpo",
        "a rollout with adapters",
        "busy processes",
        "that the decoder keeps",
        "table 1",
        "--help",
        "--cfg job",
    ):
        assert printed.count(what) >= 2, what  # at once, and in the table
