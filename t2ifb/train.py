"""`python -m t2ifb.train`: one run of one algorithm, or rounds of them; `--help` says what exists."""

from pathlib import Path
from typing import Any

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components, lazy
from t2ifb.config.processes import check_processes
from t2ifb.config.resume import record_settings
from t2ifb.config.reward_source import resolve_judges, resolve_reward
from t2ifb.config.sweeps import begun, in_sweep, known_figures, objectives, resolve_job
from t2ifb.prepare import ready_dataset
from t2ifb.utils.overrides import typed
from t2ifb.utils.trainers import has_several


def train(parts: Components) -> Any:
    """Make the data if need be, then run the algorithm in the run's folder.

    Returns:
        What a sweeper goes by, see `objective`.
    """
    check_processes(parts.value("trainer"))
    if in_sweep():
        resolve_job(parts.run_folder, parts.written())
        if (known := known_figures(parts.run_folder)) is not None:
            return objectives(known, parts.value("objective"))
    else:
        record_settings(parts.run_folder, parts.written(), resume=bool(parts.value("resume")))
    if parts.value("iteration") is not None:
        return objectives(iterate(parts), parts.value("objective"))
    run, scorers = parts.run_folder, {}
    if "reward" in parts.value("algorithm"):
        resolve_reward(parts, run)
        scorers = {"reward": lazy(parts.value("reward")), "judges": _judges(parts, run)}
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


def iterate(parts: Components) -> dict[str, Any]:
    """Do rounds of collecting rankings, reward training and fine-tuning, until people have to rank images.

    Returns:
        Content of `summary.json`.

    Raises:
        ConfigError: The trainer has several processes, or people should rank the images of a sweep's jobs.
        SystemExit: People have to rank images; printed is what to do. The status is 0.
    """
    if has_several(parts.value("trainer")):
        raise ConfigError(["trainer: an iteration works in one process on one device; use trainer=default"])
    if in_sweep() and not parts.value("iteration").get("annotators"):
        raise ConfigError(["iteration.annotators: people cannot rank for the jobs of a sweep; start each alone"])
    from t2ifb.iteration.collection import RankingsNeeded

    run, both = parts.run_folder, {"trainer": parts.build("trainer"), "logger": parts.build("logger")}
    iteration = parts.build(
        "iteration",
        tuner=parts.unfinished("algorithm", ("reward",), judges=_judges(parts, run), **both),
        reward_trainer=parts.unfinished("iteration.reward_trainer", **both),
        output_dir=run,
        seed=parts.value("seed"),
        resume=bool(parts.value("resume") or in_sweep()),
        config=parts.resolved(),
    )
    if iteration.splits:
        ready_dataset(parts, iteration.splits)
    try:
        figures: dict[str, Any] = iteration.fit()
    except RankingsNeeded as wanted:
        print(f"{wanted.missing} of {wanted.prompts} prompts have no answer yet. Rank their images:")
        here = f"{typed('domain', parts.value('domain'))} {typed('source', wanted.images.absolute())}"
        print(f"  python -m t2ifb.annotate {here}")
        print("then end that page with Ctrl-C, and continue:")
        print(f"  python -m t2ifb.train {typed('resume', run)}", flush=True)
        raise SystemExit(0) from wanted
    print(f"all rounds on one page, best round's adapters in export: {run}")
    return figures


def _judges(parts: Components, run: Path) -> dict[str, Any]:
    resolve_judges(parts, run)
    return {name: lazy(node) for name, node in parts.value("judges").items() if node is not None}


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
