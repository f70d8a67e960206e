"""`python -m t2ifb.train`: one run of one algorithm; `--help` says what exists."""

from pathlib import Path

from t2ifb.config.build import Parts
from t2ifb.config.command import command
from t2ifb.config.latest import settle_reward
from t2ifb.prepare import ready_dataset


def train(parts: Parts) -> None:
    """Make the data if need be, then run the algorithm in the run's folder."""
    from t2ifb.learning.run_folder import RunFolder

    run = RunFolder(parts.run_folder)
    resume = parts.value("resume")
    if "reward" in parts.value("algorithm"):
        settle_reward(parts, run.path / "reward.json")
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


main = command("train", train)

if __name__ == "__main__":
    main()
