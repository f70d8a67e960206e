"""Rounds of an iteration: the table of `rounds.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.evaluation.sweep_table import unjudged
from t2ifb.reporting.files import Notes, number, read_json

ROUNDS = "rounds.json"
"""File in an iteration's folder with a list of figures, one entry per round."""
HEADINGS = (
    "round",
    "new rankings",
    "rankings",
    "agreement with the reward before %",
    "reward accuracy %",
    "network evaluations",
    "judges",
    "gold",
)


def read_rounds(folder: Path, notes: Notes) -> list[list[str]]:
    """Cells of each round, in the order of `HEADINGS`; empty for other runs. Unknown figures are empty."""
    entries = read_json(folder / ROUNDS, list, notes) or []
    return [cells(entry) for entry in entries if isinstance(entry, Mapping)]


def cells(figures: Mapping[str, Any]) -> list[str]:
    """The cells of one round."""
    counts = [figures.get(name) for name in ("round", "new_rankings", "rankings")]
    shares = [figures.get(name) for name in ("reward_agreement", "reward_accuracy")]
    evaluations = [number(figures.get(name)) for name in ("network_evaluations", "drawing_evaluations")]
    total = None if None in evaluations else sum(value or 0 for value in evaluations)
    base, tuned = (_mapping(figures.get(name)) for name in ("base_validation", "validation"))
    gold = [number(values.get("gold")) for values in (base, tuned)]
    judged = not unjudged(_mapping(figures.get("judge_weights")))
    return [
        *(_text(value, ",.0f") for value in counts),
        *(_text(None if (share := number(value)) is None else 100 * share, ".1f") for value in shares),
        _text(total, ",.0f"),
        _text(tuned.get("judges"), "+.3f") if judged else "",
        "" if None in gold else f"{gold[0]:.3f} to {gold[1]:.3f}",
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any, form: str) -> str:
    found = number(value)
    return "" if found is None else format(found, form)
