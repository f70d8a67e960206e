"""Weights of a run's judges, found once from their preference accuracy."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.data.prompts import PromptFile, PromptList, PromptSource
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.evaluation.selection import weights_on_rankings
from t2ifb.training.trainer import first_process
from t2ifb.utils.files import file_lock, write_json

RECORD = "judge_weights.json"


def check_weights(weights: Mapping[str, float], judges: Mapping[str, Any]) -> None:
    """Check that each judge has a weight.

    Raises:
        ValueError: A weight is missing or negative, or all are 0.
    """
    total = sum(weights.values())
    if weights.keys() != judges.keys() or min(weights.values(), default=0) < 0 or (judges and not total > 0):
        raise ValueError(
            f"judge_weights={dict(weights)}: expected one for each of the judges {', '.join(judges) or '(none)'}, "
            "none negative and at least one above 0"
        )


def weights_of_run(
    folder: Path,
    judges: Mapping[str, Any],
    validation: PromptSource,
    rankings: PreferenceDataset | None,
    cache_folder: Path,
    device: str,
    resume: bool,
) -> dict[str, float]:
    """The weights by judge, from a run's record or by the accuracy on the validation rankings. Nothing is downloaded.

    Judges count equally if there are no rankings on this machine, and if the validation prompts are a `PromptFile` or
    a `PromptList`, because the rankings say nothing about those.

    Args:
        folder: The run's folder. The weights are written to `judge_weights.json` in it.
        judges: Judges by name, unbuilt or built.
        validation: The validation prompts.
        rankings: The data set with the rankings.
        cache_folder: Folder of the score cache.
        device: Device for scoring.
        resume: Whether the run is continued, and the record is its own.
    """
    record = folder / RECORD
    with file_lock(folder / ".judge_weights.lock"):  # one of several processes finds them
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if known.get("weights", {}).keys() == judges.keys() and (resume or not first_process()):
            return dict(known["weights"])
        found = _found(judges, validation, rankings, cache_folder, device)
        if "equal_because" in found and len(judges) > 1:
            print(f"the judges count equally: {found['equal_because']}", file=sys.stderr)
        write_json(record, found)
    return dict(found["weights"])


def _found(
    judges: Mapping[str, Any],
    validation: PromptSource,
    rankings: PreferenceDataset | None,
    cache_folder: Path,
    device: str,
) -> dict[str, Any]:
    """Weights by judge, with their accuracies or why they are equal."""
    why = ""
    if len(judges) == 1:
        why = "there is one judge"
    elif isinstance(validation, (PromptFile, PromptList)):
        why = "the validation prompts are a file or list of your own"
    elif rankings is None:
        why = "no rankings are given"
    if why or rankings is None:
        return {"weights": dict.fromkeys(judges, 1.0), "equal_because": why}
    return weights_on_rankings(rankings, judges, cache_folder, device)
