"""Final tables of runs, read from their JSON files."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from t2ifb.evaluation.comparison import Gain
from t2ifb.evaluation.guidance_sweep import ScaleGain
from t2ifb.evaluation.guidance_verdict import SCALES
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import Row
from t2ifb.reporting.files import Notes, number, read_json

Item = TypeVar("Item", Gain, Row, ScaleGain)


@dataclass(frozen=True)
class Results:
    """Results of a run on test prompts or rankings. Missing results are empty.

    Attributes:
        gains: Fine-tuning run: base model against the checkpoints `kept`, `last` and `kept_best_guidance`.
        figure8: Base model against each tuned model, by name.
        table1: Results of every scorer on the test rankings.
        accuracy: Reward run: results of the scorers, by split.
        guidance: Scores over guidance scales, by the end of the file's name, which is empty for a fine-tuning run.
    """

    gains: dict[str, list[Gain]]
    figure8: dict[str, list[Gain]]
    table1: list[Row]
    accuracy: dict[str, list[Row]]
    guidance: dict[str, list[ScaleGain]] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether any results exist."""
        return bool(self.gains or self.figure8 or self.table1 or self.accuracy or self.guidance)


def read_results(folder: Path, summary: Mapping[str, Any], notes: Notes) -> Results:
    """Read all tables in a run's folder. Broken ones are skipped and noted.

    Args:
        folder: Run folder.
        summary: Content of `summary.json`, which contains figure 8.
        notes: Collects errors.
    """
    gains: dict[str, list[Gain]] = {}
    accuracy: dict[str, list[Row]] = {}
    for path in sorted(folder.glob("table_*.json")):
        name = path.stem.removeprefix("table_")
        entries = read_json(path, list, notes) or []
        if any(isinstance(entry, dict) and "tuned" in entry for entry in entries):
            gains[name] = _items(entries, _gain, path, notes)
        else:
            accuracy[name] = _items(entries, _row, path, notes)
    table1 = folder / "table1.json"
    swept = {
        path.stem.removeprefix(SCALES).strip("_"): _items(read_json(path, list, notes) or [], _scale_gain, path, notes)
        for path in sorted(folder.glob(f"{SCALES}*.json"), key=_number_in_name)
    }
    return Results(
        gains={name: rows for name, rows in gains.items() if rows},
        figure8=_figure8(folder, summary.get("figure8"), notes),
        table1=_items(read_json(table1, list, notes) or [], _row, table1, notes),
        accuracy={name: accuracy[name] for name in sorted(accuracy, key=lambda n: (n != "test", n)) if accuracy[name]},
        guidance={name: rows for name, rows in swept.items() if rows},
    )


def _figure8(folder: Path, models: Any, notes: Notes) -> dict[str, list[Gain]]:
    """Read figure 8 from the summary, which has the model names; for an interrupted run, from its tables."""
    found = {}
    if isinstance(models, Mapping):
        for name, rows in models.items():
            entries = list(rows.values()) if isinstance(rows, Mapping) else []
            found[str(name)] = _items(entries, _gain, folder / "summary.json", notes)
    else:
        for path in sorted(folder.glob("figure8*.json"), key=_number_in_name):
            found[path.stem] = _items(read_json(path, list, notes) or [], _gain, path, notes)
    return {name: rows for name, rows in found.items() if rows}


def _number_in_name(path: Path) -> tuple[int, str]:
    found = re.search(r"\d+$", path.stem)
    return (int(found[0]) if found else 0, path.stem)


def _items(entries: list[Any], parse: Callable[[Any], Item], path: Path, notes: Notes) -> list[Item]:
    found = []
    for entry in entries:
        try:
            found.append(parse(entry))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            notes.add(path, f"an entry has an unexpected form ({type(error).__name__}: {error}) and was skipped")
    return found


def _gain(entry: dict[str, Any]) -> Gain:
    return Gain(
        str(entry["name"]),
        _figure(entry["base"]),
        _figure(entry["tuned"]),
        _interval(entry["difference"]) or _NOTHING,
        _interval(entry["win_rate"]) or _NOTHING,
        entry.get("trained_on") is True,
    )


def _scale_gain(entry: dict[str, Any]) -> ScaleGain:
    difference, base_gain, tuned_gain = (
        _interval(entry[name]) or _NOTHING for name in ("difference", "base_gain", "tuned_gain")
    )
    return ScaleGain(
        str(entry["name"]),
        *(_figure(entry["scale"]), _figure(entry["base"]), _figure(entry["tuned"])),
        *(difference, base_gain, tuned_gain),
        trained_on=entry.get("trained_on") is True,
    )


def _row(entry: dict[str, Any]) -> Row:
    intervals = {name: _interval(entry.get(name)) for name in ("accuracy", "by_prompt", "against", "tau")}
    ties, comparisons = (number(entry.get(name)) for name in ("ties", "comparisons"))
    return Row(
        str(entry["name"]),
        **intervals,
        ties=None if ties is None else int(ties),
        comparisons=None if comparisons is None else int(comparisons),
        images_per_second=number(entry.get("images_per_second")),
        published=number(entry.get("published")),
    )


def _interval(entry: dict[str, Any] | None) -> Interval | None:
    return None if entry is None else Interval(*(_figure(entry[end]) for end in ("mean", "low", "high")))


def _figure(value: Any) -> float:
    """A number. `null` stands for NaN in these files."""
    found = number(value)
    return float("nan") if found is None else found


_NOTHING = Interval(float("nan"), float("nan"), float("nan"))
