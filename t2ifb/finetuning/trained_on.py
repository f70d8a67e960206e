"""What a run is trained on: the reward's shorthand and record, and judges that are not the reward."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from t2ifb.evaluation.lazy import Unbuilt, as_node, build
from t2ifb.finetuning.evaluator import REWARD
from t2ifb.scorers.mix import Mix
from t2ifb.scorers.shorthand import scorer_part
from t2ifb.training.trainer import first_process
from t2ifb.utils.fingerprints import fingerprint, weights_hash
from t2ifb.utils.reward_runs import (
    LATEST,
    RECORD,
    changed_reward,
    export_hashes,
    members,
    read_record,
    write_record,
)

Scorer: TypeAlias = nn.Module | Unbuilt | str | Path
"""A scorer, an unbuilt one, or its shorthand (`scorer_part`)."""


def reward_part(reward: Scorer, output_dir: Path, resume: bool) -> nn.Module | Unbuilt:
    """The reward without its shorthand. `latest` in a resumed run is the run that it was started with.

    Args:
        reward: The reward. `latest` is looked for beside `output_dir`.
        output_dir: The run's folder.
        resume: Whether the run is continued.

    Raises:
        ValueError: The shorthand names nothing.
    """
    if not isinstance(reward, (str, Path)):
        return reward
    record = output_dir / RECORD
    if reward == LATEST and resume and record.is_file() and (known := read_record(record)["reward"]):
        reward = str(members(known)[0]["source"])
    return scorer_part(reward, "reward", output_dir.absolute().parent)


def judge_parts(judges: Mapping[str, Scorer] | None, output_dir: Path) -> dict[str, nn.Module | Unbuilt]:
    """The judges without their shorthand, by name."""
    parents = output_dir.absolute().parent
    return {
        name: scorer_part(judge, f"judges[{name!r}]", parents) if isinstance(judge, (str, Path)) else judge
        for name, judge in (judges or {}).items()
        if judge is not None
    }


def members_of(reward: nn.Module) -> dict[str, nn.Module]:
    """The scorers of a mix by name, or the one scorer."""
    return dict(reward.scorers.items()) if isinstance(reward, Mix) else {REWARD: reward}


def held_out(judges: Mapping[str, Any], reward: nn.Module) -> dict[str, nn.Module]:
    """Judges, built, without those that are the reward or one of its scorers: with equal class, weights and settings.

    Args:
        judges: Judges by name, built or unbuilt.
        reward: The reward.
    """
    trained_on = members_of(reward).values()
    built = {name: build(judge) for name, judge in judges.items()}
    kept = {name: judge for name, judge in built.items() if not any(_same(judge, member) for member in trained_on)}
    for name in (name for name in built if name not in kept):
        if first_process():
            print(f"judges[{name!r}] is what the run is trained on, and so no judge of it", file=sys.stderr)
    return kept


def _same(one: nn.Module, other: nn.Module) -> bool:
    if one is other or type(one) is not type(other):
        return one is other
    if any(weight.is_meta for each in (one, other) for weight in (*each.parameters(), *each.buffers())):
        return False
    return bool(fingerprint(one) == fingerprint(other))


def record_reward(file: Path, part: nn.Module | Unbuilt, reward: nn.Module, resume: bool) -> None:
    """Write down what a run is trained on, or check that a resumed run is trained on the same.

    Args:
        file: `reward.json` in the run's folder.
        part: The reward as it was given.
        reward: The reward, built.
        resume: Whether the run is continued.

    Raises:
        ValueError: The weights are not those that the run was started with.
    """
    try:
        node = as_node(part) if isinstance(part, partial) else None
    except ValueError:  # it was made with objects
        node = None
    hashes = export_hashes(node) if node is not None else {n: weights_hash(m) for n, m in members_of(reward).items()}
    if file.is_file():
        if not (what := changed_reward(read_record(file), hashes)):
            return
        if resume:
            raise ValueError(what)
    write_record(file, node, hashes)
