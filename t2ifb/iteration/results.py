"""Figures of all rounds: a table on the screen, `rounds.json`, and one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ifb.evaluation.tables import screen, show
from t2ifb.finetuning.evaluator import REWARD
from t2ifb.reporting.discovery import find_runs
from t2ifb.reporting.page import make_page
from t2ifb.reporting.rounds import HEADINGS, ROUNDS, cells
from t2ifb.training.metrics import read_metrics, validation_figures
from t2ifb.utils.files import atomic_write, write_json

PAGE = "report.html"


def figures_of(
    number: int,
    collected: Mapping[str, Any],
    reward: Mapping[str, Any],
    tuning: Mapping[str, Any],
    metrics: Path,
    drawing: int,
    before: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Figures of a round.

    Args:
        number: Number of the round, from 1.
        collected: Summary of the rankings.
        reward: Summary of the reward run.
        tuning: Summary of the fine-tuning run.
        metrics: Its `metrics.csv`.
        drawing: Network evaluations of the images that were ranked.
        before: Figures of earlier rounds.

    Returns:
        `round`; `rankings` of this and all earlier rounds, and `new_rankings`; `reward_accuracy` on validation rankings
        at the kept step; `reward_agreement`, share of the new comparisons on which the reward of the round before
        agrees; `network_evaluations` of training and of `drawing_evaluations`, in this round; `base_validation` and
        `validation`, scores of the base model and of the kept checkpoint on validation prompts, from the same noise,
        where `judges` is the gain over the base model that selected it; `judge_weights` in it; and `kept`.
    """
    agreement = collected["reward_agreement"]
    return {
        "round": number,
        "new_rankings": collected["rankings"],
        "rankings": collected["rankings"] + (before[-1]["rankings"] if before else 0),
        "reward_agreement": None if agreement is None else agreement["mean"],
        "reward_accuracy": reward["validation"]["accuracy"],
        "network_evaluations": tuning["network_evaluations"],
        "drawing_evaluations": drawing,
        "base_validation": validation_figures(read_metrics(metrics), 0),
        "validation": tuning["validation"],
        "judge_weights": tuning["judge_weights"],
        "kept": tuning["kept"],
    }


def best_round(rounds: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
    """Number of the round whose model has the highest selection score on validation prompts; the first of equal ones.

    Without held-out scorers it is the last round: each round has another reward, and their scores cannot be compared.

    Args:
        rounds: Figures of the rounds.

    Returns:
        The number, and whether held-out scorers chose it.
    """
    if [*rounds[-1]["judge_weights"]] == [REWARD]:
        return int(rounds[-1]["round"]), False
    return int(max(rounds, key=lambda figures: figures["validation"]["judges"])["round"]), True


def write_rounds(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Write `rounds.json`."""
    write_json(folder / ROUNDS, rounds)


def show_rounds(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of the rounds, and write the page with all their runs."""
    show(screen("rounds", HEADINGS, [cells(figures) for figures in rounds]))
    page = make_page(find_runs([folder]), f"{len(rounds)} rounds")
    with atomic_write(folder / PAGE) as file:
        file.write(page.html)
