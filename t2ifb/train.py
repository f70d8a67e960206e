"""`python -m t2ifb.train`: one run of one algorithm; `--help` says what exists."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from t2ifb.config.build import Parts
from t2ifb.config.command import command
from t2ifb.config.faults import ConfigError
from t2ifb.config.latest import find_latest
from t2ifb.prepare import ready_dataset

if TYPE_CHECKING:
    from t2ifb.learning.run_folder import RunFolder


def train(parts: Parts) -> None:
    """Make the data if need be, then run the algorithm in the run's folder."""
    from t2ifb.learning.run_folder import RunFolder

    run = RunFolder(parts.run_folder)
    resume = parts.value("resume")
    if "reward" in parts.value("algorithm"):
        _settle_reward(parts, run)
    algorithm = parts.build("algorithm")
    if algorithm.splits:
        ready_dataset(parts, algorithm.splits)
    algorithm.run(
        run,
        trainer=parts.build("trainer"),
        logger=parts.build("logger"),
        seed=parts.value("seed"),
        resume=Path(resume) if resume else None,
        config=parts.resolved(),
    )
    print(f"tables, pictures and export: {parts.run_folder}")


def _settle_reward(parts: Parts, run: "RunFolder") -> None:
    """Find the run that `reward.source=latest` means, once: a resumed run is trained by the same reward."""
    known = run.path / "reward.json"
    if known.exists():
        parts.settle("reward", json.loads(known.read_text(encoding="utf-8")))
    else:
        found, notes = find_latest({"reward": parts.value("reward")}, "", parts.value("domain"), parts.arguments)
        if notes:
            raise ConfigError(notes)
        parts.settle("reward", found["reward"])
        run.write_json("reward.json", found["reward"])


main = command("train", train)

if __name__ == "__main__":
    main()
