"""Weights of a fine-tuning run's judges, found once."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2ifb.config.instantiate import Components, lazy
from t2ifb.utils.files import file_lock, write_json


def resolve_judge_weights(parts: Components, record: Path, on_rankings: Callable[..., dict[str, Any]]) -> None:
    """Set `algorithm.judge_weights` by the judges' preference accuracy on the validation rankings, unless it is given.

    Nothing is downloaded or built for it. Judges count equally where the rankings are not on this machine, and where
    the validation prompts are files of one's own, which the rankings say nothing about.

    Args:
        parts: With `algorithm`, `judges`, `prompts`, `dataset`, `trainer` and `data_folder`.
        record: A file in the run's folder: where the weights are written, and where a resumed run reads them again.
        on_rankings: Finds them: `t2ifb.evaluation.selection.weights_on_rankings`.
    """
    judges = parts.value("judges")
    if parts.value("algorithm").get("judge_weights") is not None or not judges:
        return
    with file_lock(record.parent / ".judge_weights.lock"):  # of several processes that begin together, one finds them
        asked = {key: parts.written()[key] for key in ("judges", "dataset")}  # other places are no change
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        if known.get("asked") != asked:  # none yet, or those of an earlier run in this folder
            known = {"asked": asked, **_found(parts, judges, on_rankings)}
            if "equal_because" in known and len(judges) > 1:
                print(f"the judges count equally: {known['equal_because']}", file=sys.stderr)
            write_json(record, known)
    parts.settle("algorithm.judge_weights", known["weights"])


def _found(parts: Components, judges: Mapping[str, Any], on_rankings: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Weights by judge, with what they were found by or why they are equal."""
    equal = {"weights": dict.fromkeys(judges, 1.0)}
    if len(judges) == 1:
        return equal | {"equal_because": "there is one judge"}
    if str(parts.value("prompts").get("validation", {}).get("_target_")).endswith(".PromptFile"):
        return equal | {"equal_because": "the validation prompts are a file of your own"}
    scorers = {name: lazy(node) for name, node in judges.items()}
    cache = Path(parts.value("data_folder")) / "scores"
    return on_rankings(parts.build("dataset"), scorers, cache, _device(parts.value("trainer")))


def _device(trainer: Mapping[str, Any]) -> str:
    """The device of the run's first process."""
    devices = trainer.get("devices")
    if trainer.get("accelerator") == "cpu":
        return "cpu"
    return f"cuda:{devices[0]}" if isinstance(devices, list) and devices else "auto"
