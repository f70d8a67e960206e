"""The comparison page: one self-contained HTML file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from t2ifb.evaluation.comparison import HEADINGS, Gain
from t2ifb.evaluation.guidance_verdict import SCALE_HEADINGS, scale_cells
from t2ifb.evaluation.tables import HEADINGS as ROW_HEADINGS
from t2ifb.evaluation.tables import REFERENCE, Row, cells
from t2ifb.reporting.chart_data import chart_data, metrics, ordered, run_summary
from t2ifb.reporting.comparison import Comparison
from t2ifb.reporting.rounds import HEADINGS as ROUND_HEADINGS
from t2ifb.reporting.runs import read_run
from t2ifb.reporting.settings import shown
from t2ifb.reporting.thumbnails import Gallery, make_gallery

MEGABYTE = 1_000_000
LIMIT, FOR_IMAGES = 40 * MEGABYTE, 24 * MEGABYTE
"""Maximum bytes of the page and of its thumbnails."""
SCRIPTS = ("state.js", "charts.js", "trade_offs.js", "gallery.js", "tables.js", "start.js")


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Attributes:
        html: Content of the file.
        runs: Number of runs shown.
        notes: Notes on missing or partial data, by run name.
    """

    html: bytes
    runs: int
    notes: Mapping[str, Sequence[str]]


def make_page(folders: Sequence[Path], title: str | None = None, limit: int = LIMIT) -> Page:
    """Read run folders and make the page.

    Args:
        folders: Absolute paths of different run folders.
        title: Title of the page; by default the number of runs.
        limit: Maximum bytes of the page. Thumbnails use the rest, up to `FOR_IMAGES`.
    """
    comparison = Comparison([read_run(folder) for folder in folders])
    script = _plotly()
    bare = len(_render(comparison, Gallery(), title, script, {}))
    samples = {n: run.samples for n, run in enumerate(comparison.runs) if run.samples}
    kept = {n: comparison.runs[n].kept for n in samples}
    scores = sum(60 * len(each.prompts) * (len(each.scores[0]) + 3) for some in samples.values() for each in some) // 6
    gallery = make_gallery(samples, kept, max(0, min(FOR_IMAGES, limit - bare - scores)))
    notes = _notes(comparison, gallery)
    return Page(_render(comparison, gallery, title, script, notes), len(comparison.runs), notes)


def embedded(data: Any) -> Markup:
    """JSON for a `<script>` element. No text can end the element: `</script>` and `<!--` are escaped."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _render(
    comparison: Comparison, gallery: Gallery, title: str | None, script: str, notes: Mapping[str, Sequence[str]]
) -> bytes:
    environment = Environment(
        loader=PackageLoader("t2ifb.reporting", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"shown": shown, "signed": signed, "cells_of": Gain.cells, "scale_cells_of": scale_cells}
    data = chart_data(comparison, gallery) | {"templates": _templates()}
    count = len(comparison.runs)
    text = environment.get_template("page.html").render(
        title=title or f"{count} run{'s' if count != 1 else ''} compared",
        comparison=comparison,
        gallery=gallery,
        notes=notes,
        data=data,
        data_json=embedded(data),
        metrics=metrics(comparison),
        summaries=[run_summary(run) for run in comparison.runs],
        gain_names=ordered({g.name for run in comparison.runs for rows in run.results.gains.values() for g in rows}),
        gain_headings=HEADINGS,
        scale_headings=SCALE_HEADINGS,
        round_headings=ROUND_HEADINGS,
        table_of=table_of,
        plotly=Markup(script),
        style=Markup(_part("page.css")),
        scripts=Markup("\n".join(_part(name) for name in SCRIPTS)),
    )
    return text.encode("utf-8", "replace")


def signed(value: float) -> str:
    """A change with its sign; empty if unknown."""
    return "" if math.isnan(value) else f"{value:+.3f}"


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of accuracies, without empty columns."""
    table = [cells(row) for row in rows]
    used = [c for c in range(len(ROW_HEADINGS)) if any(line[c] for line in table)]
    headings = [f"minus {REFERENCE}" if ROW_HEADINGS[c] == "difference" else ROW_HEADINGS[c] for c in used]
    return headings, [[line[c] for c in used] for line in table]


def _notes(comparison: Comparison, gallery: Gallery) -> dict[str, list[str]]:
    notes = {
        name: [*run.notes, *gallery.broken.get(n, [])]
        for n, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True))
    }
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        if run.is_empty:
            notes[name].append("has no results yet")
    return {name: texts for name, texts in notes.items() if texts}


def _templates() -> dict[str, Any]:
    """Plotly's light and dark templates with the page's background."""
    import plotly.io

    found = {}
    for theme, name in (("light", "plotly_white"), ("dark", "plotly_dark")):
        template = json.loads(json.dumps(plotly.io.templates[name].to_plotly_json()))
        template["layout"] |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
        found[theme] = template
    return found


def _plotly() -> str:
    import plotly.offline

    return str(plotly.offline.get_plotlyjs())


def _part(name: str) -> str:
    return files("t2ifb.reporting").joinpath("page", name).read_text(encoding="utf-8")
