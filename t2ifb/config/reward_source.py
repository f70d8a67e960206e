"""What a configuration takes from other runs: the newest reward run as `source: latest`, and a run's own settings."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components
from t2ifb.config.sweeps import in_sweep
from t2ifb.utils.files import atomic_write, file_lock
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
    """Replace `source: latest` by the folder of the newest reward run.

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
    wanting = {name for name, node in scorers.items() if isinstance(node, dict) and node.get("source") == LATEST}
    run = newest(outputs / domain) if wanting else None
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


def resolve_reward(parts: Components, run: Path) -> None:
    """Find the reward run that `latest` means, once per run, and record what the run is trained on.

    Args:
        parts: With `reward`, a scorer or a mix of scorers.
        run: The run's folder. A resumed run reads the record in it.

    Raises:
        ConfigError: There is no reward run, or it is not the one that the run started with.
    """
    record = run / RECORD
    if record.exists():
        known = read_record(record)
        reward = known["reward"]
        if what := changed_reward(known, export_hashes(reward)):
            raise ConfigError([what])
    else:
        reward = parts.value("reward")
        mixed = reward.get("scorers")
        place = "reward.scorers" if mixed is not None else ""
        wanted = mixed if mixed is not None else {"reward": reward}
        with _one_for_all(run) as newest:
            found, notes = find_latest(wanted, place, parts.value("domain"), parts.arguments, newest=newest)
        if notes:
            raise ConfigError(notes)
        found = {name: absolute(node) for name, node in found.items()}
        reward = {**reward, "scorers": found} if mixed is not None else found["reward"]
        write_record(record, reward, export_hashes(reward))
    parts.settle("reward", reward)


@contextmanager
def _one_for_all(run: Path) -> Iterator[Callable[[Path], Path | None]]:
    """Finder of the newest run: once for all jobs of a sweep, also if reward runs are finished meanwhile."""
    if not in_sweep():
        yield newest_reward_run
        return
    note = run.parent / "latest.json"
    with file_lock(note.with_suffix(".lock")):
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}

        def newest(folder: Path) -> Path | None:
            now = newest_reward_run(folder)
            if folder.name in known:
                return _of_earlier_jobs(Path(known[folder.name]), now, note)
            if now is not None:
                known[folder.name] = str(now)
                with atomic_write(note) as file:
                    file.write(json.dumps(known).encode())
            return now

        yield newest


def _of_earlier_jobs(run: Path, newest: Path | None, note: Path) -> Path:
    """The reward run of a sweep's earlier jobs; prints a note if there is a newer one.

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
