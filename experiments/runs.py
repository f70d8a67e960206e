"""Runs of a study: each in its own process, several at a time. Finished runs are not repeated."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.utils.files import atomic_write

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """A run of `t2ifb.train`, or of another command with the same form of arguments.

    Attributes:
        path: Run folder.
        overrides: Arguments of the command, starting with `+experiment=`.
        module: Module of the command.
    """

    path: Path
    overrides: tuple[str, ...]
    module: str = "t2ifb.train"

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.path / "summary.json").exists()

    @property
    def begun(self) -> bool:
        """Whether there is something to resume: a checkpoint, or the first round of an iteration."""
        return any((self.path / name).exists() for name in ("checkpoints/last.ckpt", "round_01"))

    @property
    def summary(self) -> dict[str, Any]:
        """Results of the run."""
        return dict(json.loads((self.path / "summary.json").read_text()))

    @property
    def last_words(self) -> str:
        """Last line of the log."""
        lines = self.path.with_suffix(".log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "the log is empty"

    def train(self, threads: int) -> int:
        """Train or resume the run, with output in `<folder>.log`, and return the exit status."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        quiet = ["logger=none"] if self.module == "t2ifb.train" else []
        how = [f"resume={self.path}"] if self.begun else [*self.overrides, *quiet, f"hydra.run.dir={self.path}"]
        with self.path.with_suffix(".log").open("a") as log:
            return subprocess.run(
                [sys.executable, "-m", self.module, *how],
                stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False,
            ).returncode  # fmt: skip

    def is_of(self) -> bool:
        """Whether the run has the settings that its overrides give now, ignoring the logger."""
        schema.register()
        (composed,) = compose_all("train", list(self.overrides))
        then: Any = OmegaConf.load(self.path / ".hydra" / "config.yaml")
        now = composed.config
        keys = [key for key in {**then, **now} if key not in ("logger", "resume", "hydra")]
        return all(OmegaConf.to_yaml({"": then.get(key)}) == OmegaConf.to_yaml({"": now.get(key)}) for key in keys)


def folder(study: str, variant: str, seed: int) -> Path:
    """Folder of a study's run: `outputs/shapes/study_<study>/<variant>/seed<seed>`."""
    return Path("outputs/shapes") / f"study_{study}" / variant.replace(", ", "_").replace(" ", "_") / f"seed{seed}"


def train_all(runs: Sequence[Run], jobs: int) -> int:
    """Train unfinished runs, `jobs` at a time on shared cores, and return the number of failures."""
    missing = [run for run in runs if not run.finished]
    print(f"{len(runs)} runs, {len(missing)} of them to train; each writes its log to <run>.log", flush=True)
    threads, failed = max(1, (os.cpu_count() or 1) // jobs), 0
    with ThreadPoolExecutor(jobs) as pool:
        for run, status in zip(missing, pool.map(lambda run: run.train(threads), missing), strict=True):
            outcome = "trained" if status == 0 else f"failed with {status}; {run.last_words}"
            print(f"{run.path}: {outcome}", flush=True)
            failed += status != 0
    return failed


def train_each(runs: Mapping[str, Run], jobs: int, finish: Callable[[str], None]) -> None:
    """Train unfinished runs, `jobs` at a time on shared cores. What fails is printed and left out.

    Args:
        runs: Runs by name.
        jobs: Number of runs at a time.
        finish: Called with the name of each run as soon as it is finished.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def one(name: str) -> None:
        run = runs[name]
        if not run.finished and (status := run.train(threads)):
            print(f"{name}: failed with {status}; {run.last_words}", flush=True)
            return
        finish(name)
        print(f"{name}: done", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, runs))


def finished(runs: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Variants whose runs are all finished; the others are reported.

    Args:
        runs: Runs of each variant.

    Raises:
        SystemExit: No variant is finished, or a run has other settings.
    """
    done = {variant: some for variant, some in runs.items() if all(run.finished for run in some)}
    if left_out := [variant for variant in runs if variant not in done]:
        print(f"skipped because some runs are not finished: {', '.join(left_out)}", flush=True)
    if not done:
        raise SystemExit("no variant has finished runs")
    if old := [str(run.path) for some in done.values() for run in some if not run.is_of()]:
        raise SystemExit(
            f"settings differ from the current ones: {', '.join(old)}; delete the old runs and train them again"
        )
    return done


def study_parser(description: str | None, variants: Iterable[str]) -> argparse.ArgumentParser:
    """Parser of a study's command: variants, seeds, and runs at a time."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(variants)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="train only these variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time on shared cores")
    return parser


def conduct(
    here: Path,
    description: str | None,
    variants: Iterable[str],
    runs_of: Callable[[str, int], Sequence[Run]],
    compare: Callable[[list[int]], dict[str, Any]],
    draw: Callable[[dict[str, Any], Path], None],
) -> None:
    """Command of a study: train missing runs, compare, write `result.json` and `result.png`.

    Args:
        here: Folder of the study.
        description: Text for `--help`.
        variants: Names of the variants.
        runs_of: Runs of a variant and a seed, each after the runs that it needs.
        compare: Computes the results for the given seeds.
        draw: Draws the results.

    Raises:
        SystemExit: Runs failed; the others are still compared.
    """
    parser = study_parser(description, variants)
    parser.add_argument("--judge", action="store_true", help="evaluate finished runs without training")
    asked = parser.parse_args()
    failed = 0
    if not asked.judge:
        wanted = [runs_of(variant, seed) for seed in asked.seeds for variant in asked.only]
        for stage in zip(*wanted, strict=True):
            failed += train_all(list({run.path: run for run in stage}.values()), asked.jobs)
    result = compare(asked.seeds)
    files = here / "result.json", here / "result.png"
    write(result, files[0])
    draw(result, files[1])
    print(*files, sep="\n")
    if failed:
        sys.exit(f"{failed} runs failed; see the logs beside their folders")


def origin(study: str, seeds: list[int], runs: Iterable[Run]) -> dict[str, Any]:
    """Origin of the results: command, commits, seeds."""
    commits = sorted({str(run.summary["git_commit"]) for run in runs})
    return {"command": f"python -m experiments.{study}.study", "git_commits": commits, "seeds": seeds}


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a study's results as JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(result, indent=1).encode())
