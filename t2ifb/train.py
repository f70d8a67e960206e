"""`python -m t2ifb.train`: one run of one algorithm; `--help` says what exists."""

from pathlib import Path
from typing import Any

from t2ifb.config.build import Parts
from t2ifb.config.command import command
from t2ifb.config.faults import ConfigError
from t2ifb.config.latest import settle_reward
from t2ifb.config.sweeps import begun, in_sweep, known_figures, objectives
from t2ifb.prepare import ready_dataset


def train(parts: Parts) -> Any:
    """Make the data if need be, then run the algorithm in the run's folder.

    Returns:
        What a sweeper goes by, see `objective`.
    """
    if (known := known_figures(parts.run_folder)) is not None:
        return objectives(known, parts.value("objective"))
    if in_sweep() and "ddp" in str(parts.value("trainer").get("strategy")):
        raise ConfigError(["trainer: a job of a sweep is one process, as several would each begin the sweep again"])
    from t2ifb.learning.run_folder import RunFolder

    run = RunFolder(parts.run_folder)
    resume = parts.value("resume") or begun(run.path)
    if "reward" in parts.value("algorithm"):
        settle_reward(parts, run.path / "reward.json")
    algorithm = parts.build("algorithm")
    if algorithm.splits:
        ready_dataset(parts, algorithm.splits)
    figures = algorithm.run(
        run,
        trainer=parts.build("trainer"),
        logger=parts.build("logger"),
        seed=parts.value("seed"),
        resume=Path(resume) if resume else None,
        config=parts.resolved(),
    )
    print(f"tables, pictures and export: {parts.run_folder}")
    return objectives(figures, parts.value("objective"))


main = command("train", train)

if __name__ == "__main__":
    main()
