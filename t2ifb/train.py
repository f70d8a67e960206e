"""`python -m t2ifb.train`: one run of one algorithm; `--help` says what exists."""

from pathlib import Path
from typing import Any

from t2ifb.config.command import command
from t2ifb.config.instantiate import Components, lazy
from t2ifb.config.processes import check_processes
from t2ifb.config.reward_source import resolve_reward
from t2ifb.config.sweeps import begun, in_sweep, known_figures, objectives, resolve_job
from t2ifb.prepare import ready_dataset


def train(parts: Components) -> Any:
    """Make the data if need be, then run the algorithm in the run's folder.

    Returns:
        What a sweeper goes by, see `objective`.
    """
    if in_sweep():
        resolve_job(parts.run_folder, parts.written())
    check_processes(parts.value("trainer"))
    if in_sweep() and (known := known_figures(parts.run_folder)) is not None:
        return objectives(known, parts.value("objective"))
    run, scorers = parts.run_folder, {}
    if "reward" in parts.value("algorithm"):
        resolve_reward(parts, run)
        judges = {name: lazy(node) for name, node in parts.value("judges").items() if node is not None}
        scorers = {"reward": lazy(parts.value("reward")), "judges": judges}
    algorithm = parts.build(
        "algorithm",
        output_dir=run,
        trainer=parts.build("trainer"),
        logger=parts.build("logger"),
        seed=parts.value("seed"),
        resume=bool(parts.value("resume") or (begun(run) if in_sweep() else None)),
        config=parts.resolved(),
        **scorers,
    )
    if algorithm.splits:
        ready_dataset(parts, algorithm.splits)
    figures = algorithm.fit()
    if figures:  # the first of several processes
        print(f"tables, pictures and export: {parts.run_folder}")
    return objectives(figures, parts.value("objective"))


def after_sweep(folder: Path, started: float) -> int:
    """Show the jobs of a sweep, the best first; gives how many of those begun are not finished."""
    from t2ifb.evaluation.sweep_table import SweepTable

    table = SweepTable(folder, started)
    table.write()
    if table.unfinished:
        print(f"{len(table.unfinished)} of {len(table.jobs)} runs are not finished; the same command continues them")
    return len(table.unfinished)


main = command("train", train, after_sweep)

if __name__ == "__main__":
    main()
