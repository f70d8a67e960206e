"""Finished reward runs, and the record of the reward that a fine-tuning run is trained on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.utils.files import sha256_file, write_json

LATEST = "latest"
EXPORT = Path("export") / "reward.safetensors"
RECORD = "reward.json"


def newest_reward_run(folder: Path) -> Path | None:
    """The reward run that was finished last, of `<folder>/<run>` and `<folder>/<experiment>/<run>`.

    Jobs of sweeps, which are one level deeper, are not considered.
    """
    summaries = [*folder.glob("*/summary.json"), *folder.glob("*/*/summary.json")]
    finished = [file.parent for file in summaries if (file.parent / EXPORT).is_file()]
    newest = max(finished, key=lambda run: ((run / "summary.json").stat().st_mtime_ns, run.name), default=None)
    return None if newest is None else newest.absolute()


def members(reward: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scorers of a mix, or the one scorer, as plain containers."""
    return list((reward.get("scorers") or {"reward": reward}).values())


def export_hashes(reward: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the exported reward models that a reward consists of, by their folder."""
    nodes = members(reward)
    folders = [node["source"] for node in nodes if isinstance(node.get("source"), str)]
    folders += [source for node in nodes for source in node.get("sources") or ()]
    files = {str(folder): Path(folder) / EXPORT for folder in folders}
    return {folder: sha256_file(file) for folder, file in files.items() if file.is_file()}


def write_record(file: Path, reward: Mapping[str, Any] | None, hashes: Mapping[str, str]) -> None:
    """Record what a run is trained on.

    Args:
        file: `reward.json` in the run's folder.
        reward: The reward as plain containers with `_target_`; None for an object that was built by the user.
        hashes: Hashes of weights, by folder or scorer.
    """
    write_json(file, {"reward": reward, "hashes": hashes})


def read_record(file: Path) -> dict[str, Any]:
    """The content of `reward.json`."""
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def changed_reward(record: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """What differs from the reward that a run was started with, in words; empty if nothing but folders does."""
    then: Mapping[str, str] = record["hashes"]
    gone, new = (
        {key: one[key] for key in one.keys() - other.keys()} for one, other in ((then, hashes), (hashes, then))
    )
    if sorted(gone.values()) == sorted(new.values()):  # the same weights in folders that have moved
        then = {key: value for key, value in then.items() if key in hashes} | new
    changed = sorted(key for key in {**then, **hashes} if then.get(key) != hashes.get(key))
    what = ", ".join(key if key in hashes else f"{key} (gone)" for key in changed)
    return f"reward: {what} is not what the run was started with; start a new run" if what else ""
