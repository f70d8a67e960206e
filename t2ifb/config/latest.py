"""`source: latest`: the newest finished reward run of a domain, found once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ifb.config.faults import ConfigError

LATEST = "latest"
OUTPUTS = Path("outputs")
EXPORT = Path("export") / "reward.safetensors"


def newest_reward_run(domain: str, outputs: Path = OUTPUTS) -> Path | None:
    """The newest run of a domain, by the time its folder is named after, that is finished and has a reward model."""
    summaries = (outputs / domain).glob("*/*/summary.json")
    finished = [file.parent for file in summaries if (file.parent / EXPORT).is_file()]
    return max(finished, key=lambda folder: folder.name).absolute() if finished else None


def find_latest(
    scorers: dict[str, Any], key: str, domain: str, typed: Sequence[str], outputs: Path = OUTPUTS
) -> tuple[dict[str, Any], list[str]]:
    """Put the newest reward run's folder in place of `source: latest`.

    Args:
        scorers: Components by name, as plain containers.
        key: Where they stand in the configuration; empty for the top.
        domain: Whose runs to look at.
        typed: The arguments of the command: who asks for a model by name does not want to go without it.
        outputs: Where runs are.

    Returns:
        The components, without those that there is no run for, and a note on each of the latter.

    Raises:
        ConfigError: There is no run, and it was asked for on the command line.
    """
    wanting = {name for name, node in scorers.items() if isinstance(node, dict) and node.get("source") == LATEST}
    run = newest_reward_run(domain, outputs) if wanting else None
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
