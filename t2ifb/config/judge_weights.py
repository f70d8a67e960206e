"""Weights of a fine-tuning run's judges, found once."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.config.build import Parts, unbuilt
from t2ifb.data.files import atomic_write, file_lock


def settle_judge_weights(parts: Parts, record: Path) -> None:
    """Set `algorithm.judge_weights` by the judges' preference accuracy on the validation rankings, unless it is given.

    Nothing is downloaded or built for it. Judges count equally where the rankings are not on this machine, and where
    the validation prompts are files of one's own, which the rankings say nothing about.

    Args:
        parts: With `algorithm`, `judges`, `prompts`, `dataset`, `trainer` and `data_folder`.
        record: A file in the run's folder: where the weights are written, and where a resumed run reads them again.
    """
    judges = parts.value("judges")
    if parts.value("algorithm").get("judge_weights") is not None or not judges:
        return
    with file_lock(record.parent / ".judge_weights.lock"):  # of several processes that begin together, one finds them
        if not record.exists():
            found = _found(parts, judges)
            if "equal_because" in found and len(judges) > 1:
                print(f"the judges count equally: {found['equal_because']}", file=sys.stderr)
            with atomic_write(record) as file:
                file.write(json.dumps(found, indent=2).encode())
    parts.settle("algorithm.judge_weights", json.loads(record.read_text(encoding="utf-8"))["weights"])


def _found(parts: Parts, judges: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by judge, with what they were found by or why they are equal."""
    equal = {"weights": dict.fromkeys(judges, 1.0)}
    if len(judges) == 1:
        return equal | {"equal_because": "there is one judge"}
    if str(parts.value("prompts").get("validation", {}).get("_target_")).endswith(".PromptFile"):
        return equal | {"equal_because": "the validation prompts are a file of your own"}
    from t2ifb.evaluation.judge_weights import accuracies, weights_of
    from t2ifb.evaluation.score_cache import ScoreCache

    dataset = parts.build("dataset")
    try:
        rankings = dataset.rankings("validation") if dataset.available("validation") else []
        if not rankings:
            needed = (
                "there are no validation rankings on this machine (`python -m t2ifb.prepare` makes or fetches them)"
            )
            return equal | {"equal_because": needed}
        cache = ScoreCache(Path(parts.value("data_folder")) / "scores", _device(parts.value("trainer")))
        found = accuracies({name: unbuilt(node) for name, node in judges.items()}, rankings, cache)
    except ValueError as error:
        return equal | {"equal_because": f"the validation rankings cannot be scored: {error}"}
    return {"weights": weights_of(found), "accuracies": found}


def _device(trainer: Mapping[str, Any]) -> str:
    """The device of the run's first process."""
    devices = trainer.get("devices")
    if trainer.get("accelerator") == "cpu":
        return "cpu"
    return f"cuda:{devices[0]}" if isinstance(devices, list) and devices else "auto"
