"""Data of the page's charts: numbers, short texts and thumbnails."""

from collections.abc import Mapping, Sequence
from typing import Any

from t2ifb.evaluation.comparison import Gain
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.sweep_table import judge_shares, unjudged
from t2ifb.evaluation.tables import Row
from t2ifb.reporting.comparison import Comparison, Group
from t2ifb.reporting.files import number, rounded
from t2ifb.reporting.runs import CHANGES, REWARD, TUNING, Run
from t2ifb.reporting.settings import numeric, shown
from t2ifb.reporting.thumbnails import Gallery

FIRST, LAST = ("reward", "judges", "gold", "accuracy"), ("kl", "kl_without_last_two", "diversity")
"""Order of the metrics: the main ones, then all others, then auxiliary ones."""
NUMBERS, POINTS, FEWEST = 600_000, 1000, 50
"""Training values on the page in total, and maximum and minimum rows per run."""
ROWS_OF_VALIDATION = 200


def chart_data(comparison: Comparison, gallery: Gallery) -> dict[str, Any]:
    """All data for the page's JavaScript, ready for JSON: finite numbers, None, texts, lists, objects."""
    groups = [group for group in comparison.groups if group.kind in (TUNING, REWARD)]
    settings = _settings(groups)
    places = {entry["key"]: {_key(value["value"]): n for n, value in enumerate(entry["values"])} for entry in settings}
    columns = sum(len(comparison.runs[n].train.columns) for group in groups for n in group.runs)
    most = max(FEWEST, min(POINTS, NUMBERS // max(1, columns)))
    prompts: dict[str, int] = {}
    scorers: dict[str, int] = {}
    data_of_runs = []
    for group in groups:
        for n in group.runs:
            run = comparison.runs[n]
            of_run = {key: places[key][_key(comparison.settings[n].get(key))] for key in group.differing}
            data_of_runs.append(
                {
                    "id": n,
                    "name": comparison.names[n],
                    "about": comparison.about(n),
                    "kind": group.kind,
                    "kept": run.kept,
                    "judged_by": "" if unjudged(run.judge_weights) else judge_shares(run.judge_weights),
                    "settings": of_run,
                    "train": run.train.thinned(most).as_data(),
                    "val": run.val.thinned(ROWS_OF_VALIDATION, run.kept).as_data(),
                    "changes": {name: rounded(value) for name, value in run.changes().items()},
                    "samples": _samples(gallery, n, prompts, scorers),
                    "guidance": _guidance(run),
                }
            )
    return {
        "runs": data_of_runs,
        "settings": settings,
        "metrics": metrics(comparison),
        "judges": _judges(comparison),
        "swept": swept(comparison),
        "prompts": list(prompts),
        "scorers": list(scorers),
        "images": gallery.images,
        "intervals": intervals(comparison),
    }


def metrics(comparison: Comparison) -> list[dict[str, Any]]:
    """All measured metrics: kind of run, training or validation, and name."""
    found = []
    for kind in (TUNING, REWARD):
        runs = comparison.of_kind(kind)
        for split, what in (("val", "validation"), ("train", "training")):
            for name in ordered({name for run in runs for name in getattr(run, split).columns}):
                key = f"{kind}:{split}/{name}"
                found.append({"key": key, "kind": kind, "split": split, "name": name, "of": what})
    return found


def ordered(names: set[str]) -> list[str]:
    """Names of metrics in display order."""

    def place(name: str) -> tuple[int, str]:
        head = name.partition("/")[0]
        return (FIRST.index(head) if head in FIRST else 10 + LAST.index(name) if name in LAST else 9, name)

    return sorted(names, key=place)


def intervals(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """Panels of means with intervals for each table 1 and figure 8, by run number."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for n, run in enumerate(comparison.runs):
        if run.results.table1:
            panels[str(n)] = [_accuracy_panel(run.results.table1)]
        if run.results.figure8:
            panels[str(n)] = _gain_panels(run.results.figure8)
    return panels


def _accuracy_panel(rows: Sequence[Row]) -> dict[str, Any]:
    lines = [_line(row.name, row.accuracy.scaled(100)) for row in rows if row.accuracy is not None]
    return {"title": "preference accuracy, %", "reference": 50, "lines": lines}


def _gain_panels(models: Mapping[str, Sequence[Gain]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(row.name for rows in models.values() for row in rows)
    found = []
    for name in names:
        rows = {model: row for model, some in models.items() for row in some if row.name == name}
        lines = [_line(model, row.difference) | {"trained_on": row.trained_on} for model, row in rows.items()]
        found.append({"title": name, "reference": 0, "lines": lines})
    return found


def _line(label: str, value: Interval) -> dict[str, Any]:
    return {"label": label} | {end: rounded(number(getattr(value, end))) for end in ("mean", "low", "high")}


def _settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Settings that differ within a group, with their values in order. Runs refer to values by index."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        for key in group.differing:
            entry = found.setdefault(key, {"key": key, "label": group.labels[key], "values": {}})
            entry["values"] |= {_key(value): value for value in group.values[key]}
    for entry in found.values():
        values = list(entry["values"].values())
        entry["numeric"] = all(numeric(value) for value in values if value is not None)
        values.sort(key=lambda v: (v is not None, numeric(v), v if numeric(v) else 0, "" if numeric(v) else str(v)))
        entry["values"] = [{"value": value, "text": shown(value)} for value in values]
    return list(found.values())


def _key(value: Any) -> Any:
    """Key that is equal for 1 and 1.0 but not for 1 and True."""
    return (isinstance(value, bool), value)


def _judges(comparison: Comparison) -> list[str]:
    """Scorers that can judge a fine-tuning run: all except reward, KL divergence and diversity."""
    names = {name for run in comparison.of_kind(TUNING) for name in run.val.columns}
    return ordered(names - {"reward", *LAST})


def _samples(gallery: Gallery, run: int, prompts: dict[str, int], scorers: dict[str, int]) -> list[dict[str, Any]]:
    """A run's steps in the gallery. Prompts and scorers become indices in the order of first use."""
    found = []
    for samples, image in gallery.steps.get(run, []):
        for name in ordered({name for scores in samples.scores for name in scores} - scorers.keys()):
            scorers[name] = len(scorers)
        scores = [[rounded(of_image.get(name), 4) for name in scorers] for of_image in samples.scores]
        at = [prompts.setdefault(prompt, len(prompts)) for prompt in samples.prompts]
        size = list(samples.size)
        found.append({"step": samples.step, "image": image, "prompts": at, "scores": scores, "size": size})
    return found


def swept(comparison: Comparison) -> list[str]:
    """Scorers that a fine-tuning run has over guidance scales."""
    return ordered({name for run in comparison.of_kind(TUNING) for name in _guidance(run)})


def _guidance(run: Run) -> dict[str, dict[str, list[float | None]]]:
    """Gains over the base model at the run's own guidance scale, by scorer: `scale`, `base` and `tuned`."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in run.results.guidance.get("", []):
        curve = found.setdefault(row.name, {"scale": [], "base": [], "tuned": []})
        for name, value in (("scale", row.scale), ("base", row.base_gain.mean), ("tuned", row.tuned_gain.mean)):
            curve[name].append(rounded(number(value)))
    return found


def run_summary(run: Run) -> dict[str, float | None]:
    """Metrics of a run in the overview."""
    return {"kept": run.kept, **{name: run.changes().get(name) for name in CHANGES}}
