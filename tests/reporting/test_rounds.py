"""Rounds of an iteration on the page."""

import json
from pathlib import Path

from t2ifb.reporting.files import Notes
from t2ifb.reporting.page import make_page
from t2ifb.reporting.rounds import HEADINGS, cells, read_rounds
from t2ifb.reporting.runs import ITERATION, read_run
from tests.reporting.parts import write_tuning_run

FIGURES = {
    "round": 2,
    "new_rankings": 1000,
    "rankings": 2000,
    "reward_agreement": 0.6,
    "reward_accuracy": 0.7512,
    "network_evaluations": 100_000,
    "drawing_evaluations": 400,
    "base_validation": {"gold": 0.8},
    "validation": {"gold": 0.812, "judges": -0.1},
}


def test_figures_become_cells() -> None:
    found = ["2", "1,000", "2,000", "60.0", "75.1", "100,400", "-0.100", "0.800 to 0.812"]
    assert cells(FIGURES) == found
    assert len(found) == len(HEADINGS)
    assert cells(FIGURES | {"judge_weights": {"clip_score": 1.0}}) == found
    assert cells(FIGURES | {"judge_weights": {"reward": 1.0}})[6] == ""  # it is the reward's own gain


def test_unknown_and_broken_figures_are_empty(tmp_path: Path) -> None:
    assert cells({}) == [""] * len(HEADINGS)
    broken = {"round": "<b>", "reward_accuracy": [1], "validation": 3, "network_evaluations": 5}
    assert cells(broken) == [""] * len(HEADINGS)
    notes = Notes(tmp_path)
    assert read_rounds(tmp_path, notes) == []
    (tmp_path / "rounds.json").write_text(json.dumps([FIGURES, 7, None]))
    assert len(read_rounds(tmp_path, notes)) == 1
    assert notes.texts == []
    (tmp_path / "rounds.json").write_text("[{")
    assert read_rounds(tmp_path, notes) == []
    assert len(notes.texts) == 1


def test_the_page_has_a_table_of_the_rounds(tmp_path: Path) -> None:
    run = tmp_path / "rounds"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"algorithm": {"_target_": "t2ifb.iteration.run.Iteration"}}))
    assert read_run(run).kind == ITERATION
    assert read_run(run).is_empty
    (run / "rounds.json").write_text(json.dumps([FIGURES]))
    assert not read_run(run).is_empty
    write_tuning_run(run / "round_01" / "tuning")
    page = make_page([run]).html.decode()
    assert "0.800 to 0.812" in page
    assert "is exported" not in page  # further rounds follow
    (run / "summary.json").write_text(json.dumps({"best_round": 2, "chosen_by_judges": True}))
    page = make_page([run, run / "round_01" / "tuning"]).html.decode()
    assert "1 fine-tuning run, 1 iteration" in page
    assert "0.800 to 0.812" in page
    assert "round 2 is exported, which has the highest gain" in page
    assert 'id="rounds"' not in make_page([run / "round_01" / "tuning"]).html.decode()
