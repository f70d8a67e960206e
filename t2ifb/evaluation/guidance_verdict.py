"""Result of a sweep over guidance scales: one sentence, tables and a figure."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from t2ifb.evaluation.guidance_sweep import BEST, JUDGES, OWN, GuidanceSweep, Match, ScaleGain
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import markdown, screen, show, write_results
from t2ifb.evaluation.tuning_plots import guidance_curves

GOLD = "gold"
"""Name of the ground truth among the scorers. It decides the verdict where it exists, but chooses nothing."""
SCALES, MATCHES = "guidance_scales", "guidance_comparisons"
"""Stems of the files."""
SCALE_HEADINGS = ("scorer", "guidance", "base", "tuned", "difference")


@dataclass(frozen=True)
class MatchRow:
    """One comparison by one scorer, as a row of a file; see `Match` and `Gain`."""

    name: str
    comparison: str
    base_settings: str
    other_settings: str
    base_evaluations: int
    other_evaluations: int
    base: float
    other: float
    difference: Interval
    trained_on: bool


def sentence(sweep: GuidanceSweep) -> str:
    """The verdict in one sentence."""
    decider = deciding(sweep)
    name = decider + (" (trained on)" if decider in sweep.trained_on else "")
    own, best = (sweep.matches[match].difference(decider) for match in (OWN, BEST))
    at, base, tuned = (sampler.guidance_scale for sampler in (sweep.own, sweep.base, sweep.tuned))
    figures = f"{name} {_change(best)} at guidance {base:g}, the best scale of both models"
    if not at == base == tuned:
        scales = f"tuned {tuned:g}, base {base:g}"
        figures = f"{name} {_change(own)} at guidance {at:g}, {_change(best)} with each at its best scale ({scales})"
    return f"{headline(own, best, at, base, tuned)}: {figures}; {sweep.test_prompts} test prompts{_limit(sweep)}."


def headline(own: Interval, best: Interval, at: float, base: float, tuned: float) -> str:
    """What is true of a tuned model, in words.

    Args:
        own: Tuned minus base model, both at the run's own scale.
        best: Tuned minus base model, each at its best scale.
        at: The run's own scale.
        base: The base model's best scale.
        tuned: The tuned model's best scale.
    """
    model = f"the base model at guidance {base:g}"
    gained = own.excludes_zero and own.mean > 0
    if best.excludes_zero and best.mean > 0:
        if gained:
            return f"The gain holds against {model}"
        return f"The tuned model is better than {model}, though not at its own scale"
    if best.excludes_zero:
        if not gained:
            return f"The tuned model is worse than {model}"
        if base == at:
            return f"The gain turns into a loss at guidance {tuned:g}, which the scorers prefer for the tuned model"
        return f"The gain disappears against {model}, which is better than the tuned model"
    if not gained:
        return f"No gain can be shown against {model}"
    if base == at:
        return f"The gain disappears at guidance {tuned:g}, which the scorers prefer for the tuned model"
    return f"The gain disappears against {model}"


def deciding(sweep: GuidanceSweep) -> str:
    """Name of the scorer that decides the verdict: gold, else the judges, else the run's reward."""
    names = {row.name for row in sweep.rows}
    if GOLD in names:
        return GOLD
    return JUDGES if has_judges(sweep) or not sweep.trained_on else sweep.trained_on[0]


def has_judges(sweep: GuidanceSweep) -> bool:
    """Whether the scales were chosen by a scorer that the run was not trained on."""
    return any(weight > 0 and name not in sweep.trained_on for name, weight in sweep.judges.items())


def _limit(sweep: GuidanceSweep) -> str:
    """Which scales were not tried, where that limits the verdict."""
    smallest, largest = min(sweep.scales), max(sweep.scales)
    if smallest == largest:
        return ", no other scale tried"
    best = sweep.base.guidance_scale, sweep.tuned.guidance_scale
    below = f", no scale below {smallest:g} tried" if smallest in best and smallest > 1 else ""
    return below + (f", no scale above {largest:g} tried" if largest in best else "")


def _change(value: Interval) -> str:
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def shown(sweep: GuidanceSweep) -> list[str]:
    """Scorers in short tables: gold, the judges' mean, and what the run was trained on."""
    names = {row.name for row in sweep.rows}
    return [name for name in dict.fromkeys([GOLD, JUDGES, *sweep.trained_on]) if name in names]


def match_table(sweep: GuidanceSweep) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the comparisons."""
    names = shown(sweep)
    lines = [
        [
            match.name,
            match.base,
            match.other,
            f"{match.base_evaluations} / {match.other_evaluations}",
            *(_change(match.difference(name)) for name in names),
        ]
        for match in sweep.matches.values()
    ]
    return ["comparison", "base", "tuned", "evaluations", *names], lines


def scale_table(sweep: GuidanceSweep) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the scores by scale."""
    rows = [row for name in shown(sweep) for row in sweep.rows if row.name == name]
    return list(SCALE_HEADINGS), [scale_cells(row) for row in rows]


def scale_cells(row: ScaleGain) -> list[str]:
    """Table cells in the order of `SCALE_HEADINGS`."""
    name = row.name + (" (trained on)" if row.trained_on else "")
    return [name, f"{row.scale:g}", f"{row.base:.3f}", f"{row.tuned:.3f}", _change(row.difference)]


def show_sweep(sweep: GuidanceSweep, name: str) -> None:
    """Print the sentence, then both tables.

    Args:
        sweep: The results.
        name: Name of the tuned model.
    """
    print(sentence(sweep))
    title = f"{name} by guidance scale, {sweep.test_prompts} test prompts, same noise"
    show(screen(title, *scale_table(sweep)))
    title = f"{name}: scales chosen on {sweep.validation_prompts} validation prompts; evaluations per image"
    show(screen(title, *match_table(sweep)))


def card(sweep: GuidanceSweep) -> str:
    """Both tables in Markdown, for a model card."""
    chooser = "the held-out scorers" if has_judges(sweep) else "the reward"
    chosen = f"Scales were chosen by {chooser} on {sweep.validation_prompts} validation prompts."
    return "\n\n".join(
        [
            f"By guidance scale, on {sweep.test_prompts} test prompts:",
            markdown(*scale_table(sweep)),
            f"{chosen} *Evaluations* are calls of the network per image, base / tuned.",
            markdown(*match_table(sweep)),
        ]
    )


def write_sweep(sweep: GuidanceSweep, folder: Path, suffix: str = "") -> dict[str, Any]:
    """Write both tables with every scorer, and the figure.

    Args:
        sweep: The results.
        folder: The folder.
        suffix: End of the files' stems.

    Returns:
        The results for `summary.json`.
    """
    write_results(sweep.rows, SCALE_HEADINGS, [scale_cells(row) for row in sweep.rows], folder, SCALES + suffix)
    rows = [_match_row(match, number) for match in sweep.matches.values() for number in range(len(match.gains))]
    headings = ["scorer", "comparison", "base", "tuned", "evaluations", "difference"]
    lines = [
        [
            row.name,
            row.comparison,
            row.base_settings,
            row.other_settings,
            f"{row.base_evaluations} / {row.other_evaluations}",
            _change(row.difference),
        ]
        for row in rows
    ]
    write_results(rows, headings, lines, folder, MATCHES + suffix)
    guidance_curves(sweep.rows, sweep.own.guidance_scale, folder / f"{SCALES}{suffix}.png")
    return summary(sweep)


def summary(sweep: GuidanceSweep) -> dict[str, Any]:
    """The results as plain containers."""
    return {
        "sentence": sentence(sweep),
        "decided_by": deciding(sweep),
        "scales": sweep.scales,
        "own_scale": sweep.own.guidance_scale,
        "best_scale": {"base": sweep.base.guidance_scale, "tuned": sweep.tuned.guidance_scale},
        "scales_chosen_by": sweep.judges,
        "validation_prompts": sweep.validation_prompts,
        "test_prompts": sweep.test_prompts,
        "comparisons": {name: _plain(match) for name, match in sweep.matches.items()},
    }


def _plain(match: Match) -> dict[str, Any]:
    content = {key: value for key, value in asdict(match).items() if key not in ("name", "gains")}
    return content | {"gains": {gain.name: asdict(gain) for gain in match.gains}}


def _match_row(match: Match, number: int) -> MatchRow:
    gain = match.gains[number]
    return MatchRow(
        gain.name,
        match.name,
        match.base,
        match.other,
        match.base_evaluations,
        match.other_evaluations,
        gain.base,
        gain.tuned,
        gain.difference,
        gain.trained_on,
    )
