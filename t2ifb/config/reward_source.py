"""`source: latest`: the newest finished reward run of a domain, found once."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components
from t2ifb.config.sweeps import in_sweep
from t2ifb.utils.files import atomic_write, file_lock, sha256_file

LATEST = "latest"
OUTPUTS = Path("outputs")
EXPORT = Path("export") / "reward.safetensors"


def newest_reward_run(domain: str, outputs: Path = OUTPUTS) -> Path | None:
    """The run of a domain that was finished last and has a reward model.

    Jobs of sweeps are no candidates: which of them is meant, their table says.
    """
    summaries = (outputs / domain).glob("*/*/summary.json")
    finished = [file.parent for file in summaries if (file.parent / EXPORT).is_file()]
    newest = max(finished, key=lambda folder: ((folder / "summary.json").stat().st_mtime_ns, folder.name), default=None)
    return None if newest is None else newest.absolute()


def find_latest(
    scorers: dict[str, Any],
    key: str,
    domain: str,
    typed: Sequence[str],
    outputs: Path = OUTPUTS,
    newest: Callable[[str, Path], Path | None] = newest_reward_run,
) -> tuple[dict[str, Any], list[str]]:
    """Put the newest reward run's folder in place of `source: latest`.

    Args:
        scorers: Components by name, as plain containers.
        key: Where they stand in the configuration; empty for the top.
        domain: Whose runs to look at.
        typed: The arguments of the command: who asks for a model by name does not want to go without it.
        outputs: Where runs are.
        newest: Finds the run.

    Returns:
        The components, without those that there is no run for, and a note on each of the latter.

    Raises:
        ConfigError: There is no run, and it was asked for on the command line.
    """
    wanting = {name for name, node in scorers.items() if isinstance(node, dict) and node.get("source") == LATEST}
    run = newest(domain, outputs) if wanting else None
    if run is not None:
        return {name: {**node, "source": str(run)} if name in wanting else node for name, node in scorers.items()}, []
    place = {name: f"{key}.{name}" if key else name for name in wanting}
    notes = {
        name: f"{place[name]}: there is no finished reward run in {outputs / domain}; make one with `python -m "
        f"t2ifb.train +experiment=reward_mlp domain={domain}`, or name one by {place[name]}.source=<run folder>"
        for name in wanting
    }
    if asked := [
        n for name, n in notes.items() if any(a.lstrip("+").startswith(f"{place[name]}.source=") for a in typed)
    ]:
        raise ConfigError(asked)
    return {name: node for name, node in scorers.items() if name not in wanting}, sorted(notes.values())


def resolve_reward(parts: Components, record: Path) -> None:
    """Find out what a run is trained on, once, and leave it out of the judges.

    Args:
        parts: With `reward`, a scorer or a mix of scorers, and `judges`.
        record: A file in the run's folder: where it is written, and where a resumed run reads it again.

    Raises:
        ConfigError: There is no reward run, or it is not the one that the run started with.
    """
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        reward = known["reward"]
        then, now = known["hashes"], _hashes(reward)
        if changed := sorted(key for key in {**then, **now} if then.get(key) != now.get(key)):
            what = ", ".join(key if key in now else f"{key}, which is gone," for key in changed)
            raise ConfigError([f"reward: {what} is not what the run was started with; start a new run"])
    else:
        reward = parts.value("reward")
        members = reward.get("scorers")
        place = "reward.scorers" if members is not None else ""
        wanted = members if members is not None else {"reward": reward}
        with _one_for_all(record) as known:
            found, notes = find_latest(wanted, place, parts.value("domain"), parts.arguments, newest=known)
        if notes:
            raise ConfigError(notes)
        found = {name: absolute(node) for name, node in found.items()}
        reward = {**reward, "scorers": found} if members is not None else found["reward"]
        with atomic_write(record) as file:
            file.write(json.dumps({"reward": reward, "hashes": _hashes(reward)}, indent=2).encode())
    parts.settle("reward", reward)
    named = {name: node for name, node in parts.value("judges").items() if node is not None}
    judges = judges_of(reward, named)
    for name in (name for name in named if name not in judges):
        print(f"judges.{name} is what the run is trained on, and so no judge of it", file=sys.stderr)
    parts.settle("judges", judges)


@contextmanager
def _one_for_all(record: Path) -> Iterator[Callable[[str, Path], Path | None]]:
    """How the newest run is found: once for all jobs of a sweep, whichever reward runs are finished meanwhile."""
    if not in_sweep():
        yield newest_reward_run
        return
    note = record.parent.parent / "latest.json"
    with file_lock(note.with_suffix(".lock")):
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}

        def newest(domain: str, outputs: Path) -> Path | None:
            now = newest_reward_run(domain, outputs)
            if domain in known:
                return _of_earlier_jobs(Path(known[domain]), now, note)
            if now is not None:
                known[domain] = str(now)
                with atomic_write(note) as file:
                    file.write(json.dumps(known).encode())
            return now

        yield newest


def _of_earlier_jobs(run: Path, newest: Path | None, note: Path) -> Path:
    """The reward run that a sweep's jobs go by; says so when there is a newer one.

    Raises:
        ConfigError: It is gone.
    """
    if not (run / EXPORT).is_file():
        error = f"reward: the jobs of this sweep go by {run} ({note}), which is gone"
        raise ConfigError([f"{error}; put it back, or give another hydra.sweep.dir"])
    if newest not in (None, run):
        print(
            f"reward: {run}, as the other jobs of this sweep, though {newest} is newer; for that one give another "
            "hydra.sweep.dir",
            file=sys.stderr,
        )
    return run


def absolute(node: Any) -> Any:
    """A component with absolute paths in the place of files and folders, so that it is known wherever it is named."""
    if isinstance(node, dict):
        return {key: absolute(value) for key, value in node.items()}
    if isinstance(node, list):
        return [absolute(value) for value in node]
    if isinstance(node, str) and node and len(node) < 1000 and "\0" not in node and Path(node).expanduser().exists():
        return str(Path(node).expanduser().absolute())
    return node


def judges_of(reward: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Of the judges that are named, as plain containers, those that a run is not trained on."""
    trained_on = [absolute(member) for member in _members(reward)]
    return {name: node for name, node in named.items() if node is not None and absolute(node) not in trained_on}


def rewards_of(run: str | Path) -> list[dict[str, Any]]:
    """The scorers that a fine-tuning run was trained on, as plain containers; none for another kind of run."""
    record = Path(run).expanduser() / "reward.json"
    if not record.is_file():
        return []
    reward = json.loads(record.read_text(encoding="utf-8"))["reward"]
    return [absolute(member) for member in _members(reward)]


def _members(reward: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scorers of a mix, or the one that there is."""
    return list((reward.get("scorers") or {"reward": reward}).values())


def _hashes(reward: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the exported reward models that a reward is made of, by their folder."""
    nodes = _members(reward)
    folders = [node["source"] for node in nodes if isinstance(node.get("source"), str)]
    folders += [source for node in nodes for source in node.get("sources") or ()]
    files = {str(folder): Path(folder) / EXPORT for folder in folders}
    return {folder: sha256_file(file) for folder, file in files.items() if file.is_file()}
