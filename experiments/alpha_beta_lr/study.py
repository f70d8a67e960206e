"""Sweep over alpha, beta and learning rate in `shapes`. See README.md.

python -m experiments.alpha_beta_lr.study            # runs or continues the sweep, writes result.json, result.png
python -m experiments.alpha_beta_lr.study --judge    # writes them from finished runs
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.alpha_beta_lr.pictures import draw
from experiments.held_out import difference, tested
from experiments.reward_models.study import reported
from experiments.runs import SEEDS, Run, origin, train_all, write
from t2ifb.evaluation.sweep_table import SweepTable

HERE = Path(__file__).parent
FOLDER = Path("outputs/shapes/study_alpha_beta_lr")
COMMON = {
    "algorithm.batch_size": "8",
    "algorithm.epochs": "0.1",
    "algorithm.validate_every": "20",
    "algorithm.validation_prompts": "32",
    "prompts.test.count": "100",
}
"""Changes of the jobs from `+experiment=refl`: 60 updates of 8 prompts, and fewer evaluation prompts."""
SETTINGS = ("algorithm.alpha", "algorithm.beta", "optimizer.lr")
Setting = tuple[float, float, float]
"""Values of `SETTINGS`."""
SAME = ((1.0, 0.01), (100.0, 1.0))
"""Two pairs of alpha and beta with equal ratio, which should end alike."""
REPORT = (100.0, 0.01)
"""The report's alpha and beta."""


def command(seed: int, jobs: int) -> list[str]:
    """Sweep command of a seed."""
    where = FOLDER / f"seed{seed}"
    launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}")
    arguments = ("+experiment=refl", "+sweep=alpha_beta_lr", f"seed={seed}", f"reward.source={reported(seed).path}")
    return [
        sys.executable,
        "-m",
        "t2ifb.train",
        *arguments,
        *(f"{key}={value}" for key, value in COMMON.items()),
        "logger=none",
        f"hydra.sweep.dir={where}",
        *launcher,
    ]


def main() -> None:
    """Sweep, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="evaluate finished runs without training")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS[:2]))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    failed = 0
    if not asked.judge:
        failed = train_all([reported(seed) for seed in asked.seeds], asked.jobs)
        for seed in asked.seeds:
            failed += subprocess.run(command(seed, asked.jobs), check=False).returncode != 0
    result = compare(asked.seeds)
    write(result, HERE / "result.json")
    draw(result, HERE / "result.png")
    if failed:
        sys.exit(f"{failed} commands failed; see the jobs' folders in {FOLDER}")


def compare(seeds: list[int]) -> dict[str, Any]:
    """Test results of each setting that all seeds have finished, and comparisons between settings.

    The setting with the highest gold on validation prompts is compared with each other one, each setting with the
    report's alpha and beta at its learning rate, and the two settings of one ratio with each other, paired seed by
    seed. alpha and beta at its learning rate, and the two of one ratio against each other, paired seed by seed.

    Raises:
        SystemExit: No setting is finished.
    """
    found: dict[Setting, dict[int, Run]] = defaultdict(dict)
    old = 0
    for seed in seeds:
        for job in SweepTable(FOLDER / f"seed{seed}").jobs:
            if not COMMON.items() <= job.overrides.items():
                old += 1
            elif job.state == "finished":
                alpha, beta, lr = (float(job.overrides[key]) for key in SETTINGS)
                found[alpha, beta, lr][seed] = Run(job.folder, ())
    runs = {
        setting: [by_seed[seed] for seed in seeds] for setting, by_seed in found.items() if len(by_seed) == len(seeds)
    }
    if left_out := [", ".join(f"{value:g}" for value in setting) for setting in found if setting not in runs]:
        print(f"skipped because some seeds are not finished (alpha, beta, lr): {'; '.join(left_out)}")
    if old:
        print(f"skipped because their settings differ from the current ones: {old} jobs")
    if not runs:
        raise SystemExit("no setting has finished runs of all seeds")
    found_gold = {
        setting: float(np.mean([run.summary["validation"]["gold"] for run in some])) for setting, some in runs.items()
    }
    best = max(found_gold, key=found_gold.__getitem__)
    return {
        **origin("alpha_beta_lr", seeds, [run for some in runs.values() for run in some]),
        "overrides": COMMON,
        "settings": [
            _named(setting)
            | {"ratio": setting[0] / setting[1], "kept_step": [run.summary["best_step"] for run in some]}
            | {"validation": [run.summary["validation"] for run in some]}
            | {state: tested(some, state) for state in ("kept", "last")}
            for setting, some in sorted(runs.items())
        ],
        "best_on_validation": _named(best),
        "best_against": [
            _named(setting) | {"kept": difference(runs[best], some, "kept")} for setting, some in sorted(runs.items())
        ],
        "against_report": [
            _named(setting) | {state: difference(some, theirs, state) for state in ("kept", "last")}
            for setting, some in sorted(runs.items())
            if setting[:2] != REPORT and (theirs := runs.get((*REPORT, setting[2])))
        ],
        "same_ratio": [
            {"lr": lr, "last": difference(runs[(*SAME[0], lr)], runs[(*SAME[1], lr)], "last")} for lr in _rates(runs)
        ],
    }


def _named(setting: Setting) -> dict[str, float]:
    return dict(zip(("alpha", "beta", "lr"), setting, strict=True))


def _rates(runs: dict[Setting, list[Run]]) -> list[float]:
    """Learning rates for which both settings of one ratio are finished."""
    return sorted({lr for _, _, lr in runs if all((*pair, lr) in runs for pair in SAME)})


if __name__ == "__main__":
    main()
