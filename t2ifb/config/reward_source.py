"""What a configuration takes from other runs: the newest reward run as `source: latest`, and a run's own settings."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2ifb.config.compose import flatten
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components
from t2ifb.config.resume import SHOWN, changes
from t2ifb.config.sweeps import in_sweep
from t2ifb.utils.files import file_lock, write_json
from t2ifb.utils.reward_runs import (
    EXPORT,
    LATEST,
    RECORD,
    changed_reward,
    export_hashes,
    members,
    newest_reward_run,
    read_record,
    write_record,
)

OUTPUTS = Path("outputs")


def find_latest(
    scorers: dict[str, Any],
    key: str,
    domain: str,
    typed: Sequence[str],
    outputs: Path = OUTPUTS,
    newest: Callable[[Path], Path | None] = newest_reward_run,
) -> tuple[dict[str, Any], list[str]]:
    """Replace `source: latest` by the folder of the newest reward run, also in the scorers of a mix.

    Args:
        scorers: Components by name, as plain containers.
        key: Their place in the configuration; empty for the top.
        domain: Domain of the runs.
        typed: The arguments of the command. A model that was asked for by name is not left out.
        outputs: Folder of all runs.
        newest: Finds the run in a domain's folder.

    Returns:
        The components without those that there is no run for, and a note on each of the latter.

    Raises:
        ConfigError: There is no run, and it was asked for on the command line.
    """
    wanting = {name: [*_latest_in(node, f"{key}.{name}" if key else name)] for name, node in scorers.items()}
    asked = [place for places in wanting.values() for place in places]
    run = newest(outputs / domain) if asked else None
    if run is not None:
        return {name: _with_source(node, str(run)) for name, node in scorers.items()}, []
    notes = {
        place: f"{place.rpartition('.')[0]}: there is no finished reward run in {outputs / domain}; make one with "
        f"`python -m t2ifb.train +experiment=reward_mlp domain={domain}`, or name one by {place}=<run folder>"
        for place in asked
    }
    if by_name := [notes[place] for place in asked if any(a.lstrip("+").startswith(f"{place}=") for a in typed)]:
        raise ConfigError(by_name)
    return {name: node for name, node in scorers.items() if not wanting[name]}, sorted(notes.values())


def _latest_in(node: Any, place: str) -> Iterator[str]:
    """The keys `source` with the value `latest` in a scorer, or in the scorers of a mix."""
    if isinstance(node, dict):
        if node.get("source") == LATEST:
            yield f"{place}.source"
        for name, child in (node.get("scorers") or {}).items():
            yield from _latest_in(child, f"{place}.scorers.{name}")


def _with_source(node: Any, source: str) -> Any:
    """The scorer with this source in the place of `latest`."""
    if not isinstance(node, dict):
        return node
    found = {**node, "source": source} if node.get("source") == LATEST else node
    if not found.get("scorers"):
        return found
    return {**found, "scorers": {name: _with_source(child, source) for name, child in found["scorers"].items()}}


def resolve_scorer(parts: Components, key: str) -> None:
    """Put the newest reward run in the place of a scorer's `source: latest`.

    Raises:
        ConfigError: There is no finished reward run.
    """
    found, notes = find_latest({key: parts.value(key)}, "", parts.value("domain"), parts.arguments)
    if notes:
        raise ConfigError(notes)
    parts.settle(key, found[key])


def resolve_reward(parts: Components, run: Path) -> None:
    """Find the reward run that `latest` means, once per run, and record what the run is trained on.

    Args:
        parts: With `reward`, a scorer or a mix of scorers, and `resume`.
        run: The run's folder. A run that goes on reads the record in it.

    Raises:
        ConfigError: There is no reward run, or the reward is not the one that the run started with.
    """
    record, reward = run / RECORD, parts.value("reward")
    if record.exists():
        known = read_record(record)
        goes_on = bool(parts.value("resume")) or in_sweep()
        if changed := [] if goes_on else _changes(known["reward"] or {}, reward):
            begun = f"{run} was begun with another reward: {'; '.join(changed[:SHOWN])}"
            raise ConfigError([f"reward: {begun}. Give another folder, or delete {record}"])
        reward = known["reward"]
        if what := changed_reward(known, export_hashes(reward)):
            raise ConfigError([what])
    else:
        found, notes = _find_once(parts, run, {"reward": reward}, "")
        if notes:
            raise ConfigError(notes)
        reward = absolute(found["reward"])
        write_record(record, reward, export_hashes(reward))
    parts.settle("reward", reward)


def resolve_judges(parts: Components, run: Path) -> None:
    """Find the reward run that `latest` means among the judges, once per run.

    Args:
        parts: With `judges` by name.
        run: The run's folder, where it is recorded.

    Raises:
        ConfigError: There is no reward run.
    """
    found, notes = _find_once(parts, run, parts.value("judges"), "judges")
    if notes:
        raise ConfigError(notes)
    parts.settle("judges", found)


def _changes(recorded: Mapping[str, Any], configured: Mapping[str, Any]) -> list[str]:
    """One line per key of a reward that is not as recorded; `latest` may be any run."""
    then, now = (flatten(absolute(dict(reward)), "reward") for reward in (recorded, configured))
    any_run = {key: then[key] for key, value in now.items() if value == LATEST and key in then}
    return changes(then, now | any_run)


def _find_once(parts: Components, run: Path, scorers: dict[str, Any], key: str) -> tuple[dict[str, Any], list[str]]:
    """`find_latest` with the newest reward run of the first time: for a run that goes on, and for all jobs of a sweep.

    Reward runs that are finished meanwhile change nothing. Processes of a distributed run find the same one.
    """
    note = (run.parent if in_sweep() else run) / "latest.json"

    def newest(folder: Path) -> Path | None:
        with file_lock(note.with_name(f".{note.stem}.lock")):
            known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
            now = newest_reward_run(folder)
            if folder.name in known:
                return _of_before(Path(known[folder.name]), now, note)
            if now is not None:
                write_json(note, {**known, folder.name: str(now)})
            return now

    return find_latest(scorers, key, parts.value("domain"), parts.arguments, newest=newest)


def _of_before(run: Path, newest: Path | None, note: Path) -> Path:
    """The reward run of this run's first start, or of a sweep's earlier jobs; prints a note if there is a newer one.

    Raises:
        ConfigError: It is gone.
    """
    other = f"hydra.{'sweep' if in_sweep() else 'run'}.dir"
    if not (run / EXPORT).is_file():
        error = f"{LATEST} is {run} in {note.parent} ({note.name}), which is gone"
        raise ConfigError([f"{error}; put it back, or give another {other}"])
    if newest not in (None, run):
        text = f"{LATEST} is {run} in {note.parent}, though {newest} is newer; for that one give another {other}"
        print(text, file=sys.stderr)
    return run


def absolute(node: Any) -> Any:
    """A component with absolute paths in place of files and folders, so that equal components compare equal."""
    if isinstance(node, dict):
        return {key: absolute(value) for key, value in node.items()}
    if isinstance(node, list):
        return [absolute(value) for value in node]
    if isinstance(node, str) and node and len(node) < 1000 and "\0" not in node and Path(node).expanduser().exists():
        return str(Path(node).expanduser().absolute())
    return node


def judges_of(reward: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The judges that a run is not trained on, as plain containers; without building them."""
    trained_on = [absolute(member) for member in members(reward)]
    return {name: node for name, node in named.items() if node is not None and absolute(node) not in trained_on}


def rewards_of(run: str | Path) -> list[dict[str, Any]]:
    """The scorers that a fine-tuning run was trained on, as plain containers; none for another kind of run."""
    folder = Path(run).expanduser()
    record = (folder.parent if folder.name == "export" else folder) / RECORD
    reward = read_record(record)["reward"] if record.is_file() else None
    return [absolute(member) for member in members(reward)] if reward else []


def settings_of(run: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """Components that a run was made with and has a record of, as plain containers with absolute paths.

    Args:
        run: The run's folder.
        keys: Their keys, such as `diffusion`.
    """
    files = [Path(run).expanduser() / name for name in (".hydra/config.yaml", "settings.json")]
    saved: Any = next((OmegaConf.load(file) for file in files if file.is_file()), {})
    return {key: absolute(OmegaConf.to_container(saved[key], resolve=True)) for key in keys if saved.get(key)}
