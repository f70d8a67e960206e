"""Which reward model: head, amount of data, grouping, tuned layers. See README.md for the question and the answer.

python -m experiments.reward_models.study            # trains what is missing, judges, writes result.json, result.png
python -m experiments.reward_models.study --judge    # judges what was trained already
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.progress import track

from experiments.reward_models.comparisons import KINDS, Comparisons, Jury, by_annotators, by_gold
from experiments.reward_models.pictures import draw
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.data.files import atomic_write
from t2ifb.data.imagereward_db import ImageRewardDB
from t2ifb.evaluation.preference import PreferenceResult
from t2ifb.evaluation.statistics import Interval, bootstrap_ratio, paired_difference
from t2ifb.scorers import RewardModel

HERE = Path(__file__).parent
RUNS = Path("outputs/shapes/study_reward_models")
SEEDS = (0, 1, 2)
PROMPTS, EPOCHS = 1200, 20
BASELINE = "mlp"
FEWER = (150, 300, 600)
TUNED = ["algorithm.epochs=5", "algorithm.encoder_lr=3.0e-5"]


def less_data(count: int) -> list[str]:
    """So many training prompts; about as many updates and validations as with all of them."""
    share = count / PROMPTS
    settings = {"train_prompts": count, "epochs": round(EPOCHS / share), "validations_per_epoch": share}
    return [f"algorithm.{name}={value}" for name, value in settings.items()]


VARIANTS: dict[str, list[str]] = {
    BASELINE: [],
    "linear": ["head=linear"],
    "interaction": ["head=interaction"],
    "bilinear": ["head=bilinear"],
    "mlp by comparison": ["algorithm.grouping=comparison"],
    "mlp, 1 tuned": ["encoder.trainable_layers=1", *TUNED],
    "mlp, 4 tuned": ["encoder.trainable_layers=4", *TUNED],
    **{f"mlp, {count} prompts": less_data(count) for count in FEWER},
    **{f"interaction, {count} prompts": ["head=interaction", *less_data(count)] for count in FEWER},
    "mlp, 4800 prompts": ["dataset=shapes_large"],
    "interaction, 4800 prompts": ["dataset=shapes_large", "head=interaction"],
}
"""What each differs in from `+experiment=reward_mlp`."""


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="train nothing, judge the runs that are finished")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="train only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; the cores are shared among them")
    arguments = parser.parse_args()
    failed = 0 if arguments.judge else train_all(arguments.only or list(VARIANTS), arguments.seeds, arguments.jobs)
    result = judge_all(arguments.seeds)
    with atomic_write(HERE / "result.json") as file:
        file.write(json.dumps(result, indent=1).encode())
    draw(result, HERE / "result.png")
    print(f"{HERE / 'result.json'}\n{HERE / 'result.png'}")
    if failed:
        sys.exit(f"{failed} runs failed; their logs are in {RUNS}")


def run_folder(variant: str, seed: int) -> Path:
    """Where a run is."""
    return RUNS / variant.replace(", ", "_").replace(" ", "_") / f"seed{seed}"


def train_all(variants: list[str], seeds: list[int], jobs: int) -> int:
    """Train what has no `summary.json`; what was interrupted goes on. Gives how many failed."""
    failed = 0
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    missing = [one for one in wanted if not (run_folder(*one) / "summary.json").exists()]
    print(f"{len(wanted)} runs, {len(missing)} of them to train; each writes its log to <run>.log", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        statuses = pool.map(lambda one: train(one[0], one[1], jobs), missing)
        for (variant, seed), status in zip(missing, statuses, strict=True):
            print(f"{variant}, seed {seed}: " + ("trained" if status == 0 else f"failed with {status}"), flush=True)
            failed += status != 0
    return failed


def train(variant: str, seed: int, jobs: int = 1) -> int:
    """One run in a process of its own; gives its exit status."""
    folder = run_folder(variant, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    how = [f"resume={folder}"] if begun else [
        "+experiment=reward_mlp", f"seed={seed}", "logger=none", f"hydra.run.dir={folder}", *VARIANTS[variant],
    ]  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.run(
            [sys.executable, "-m", "t2ifb.train", *how],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": threads}, check=False,
        ).returncode  # fmt: skip


def is_of(run: Path, variant: str, seed: int) -> bool:
    """Whether a run was made with the settings that its variant has now."""
    schema.register()
    (composed,) = compose_all("train", ["+experiment=reward_mlp", f"seed={seed}", *VARIANTS[variant]])
    then: Any = OmegaConf.load(run / ".hydra" / "config.yaml")
    names = ("seed", "dataset", "build", "encoder", "head", "optimizer", "algorithm")
    return all(OmegaConf.to_yaml({"": then[name]}) == OmegaConf.to_yaml({"": composed.config[name]}) for name in names)


def all_comparisons(run: Path) -> dict[str, Comparisons]:
    """What every run is judged by, from the data set that one was trained on."""
    schema.register()
    config: Any = OmegaConf.load(run / ".hydra" / "config.yaml")
    dataset = ImageRewardDB(config.dataset.source)
    annotated = {split: by_annotators(dataset.rankings(split)) for split in ("validation", "test", "compositional")}
    return annotated | {kind: by_gold(dataset.rankings("test"), kind) for kind in KINDS}


def judge_all(seeds: list[int]) -> dict[str, Any]:
    """The figures of every variant whose runs are all finished."""
    finished = {v: [run_folder(v, seed) for seed in seeds] for v in VARIANTS}
    finished = {v: runs for v, runs in finished.items() if all((run / "summary.json").exists() for run in runs)}
    if BASELINE not in finished:
        raise SystemExit(f"{RUNS / BASELINE} has no finished runs, and every variant is compared with it")
    if left_out := [variant for variant in VARIANTS if variant not in finished]:
        print(f"without {', '.join(left_out)}: not all of their runs are finished", flush=True)
    made = [(run, v, seed) for v, runs in finished.items() for run, seed in zip(runs, seeds, strict=True)]
    if old := [run for run, variant, seed in made if not is_of(run, variant, seed)]:
        raise SystemExit(f"other settings than now: {', '.join(map(str, old))}; delete what is old and train it again")
    summaries = [json.loads((run / "summary.json").read_text()) for runs in finished.values() for run in runs]
    splits = [summary["data"]["splits"] for summary in summaries]
    if any(one[name] != splits[0][name] for one in splits for name in one if name != "train"):
        raise SystemExit(f"the runs in {RUNS} were tested on different data; delete those that are old")
    asked = all_comparisons(finished[BASELINE][0])
    jury = Jury(asked)
    judged = {
        variant: [jury.judge(RewardModel.from_pretrained(run)) for run in runs]
        for variant, runs in track(finished.items(), "judging")
    }
    return {
        "command": "python -m experiments.reward_models.study",
        "git_commits": sorted({str(summary["git_commit"]) for summary in summaries}),
        "seeds": seeds,
        "prompts": PROMPTS,
        "comparisons": {name: len(comparisons.better) for name, comparisons in asked.items()},
        "variants": dict(_figures(finished, judged)),
    }


def _figures(
    finished: dict[str, list[Path]], judged: dict[str, list[dict[str, PreferenceResult]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for variant, runs in finished.items():
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        figures: dict[str, Any] = {
            "overrides": VARIANTS[variant],
            "calibration_error": [summary["test/calibration_error"] for summary in summaries],
            "wall_seconds": [summary["wall_seconds"] for summary in summaries],
        }
        for name in judged[variant][0]:
            per_seed, baseline = ([one[name] for one in judged[which]] for which in (variant, BASELINE))
            figures[name] = {
                "accuracy": [one.accuracy.mean for one in per_seed],
                "over_seeds": asdict(_together(per_seed)),
                "difference": [asdict(a.difference(b)) for a, b in zip(per_seed, baseline, strict=True)],
                "difference_over_seeds": asdict(_difference(per_seed, baseline)),
            }
        yield variant, figures


def _together(seeds: list[PreferenceResult]) -> Interval:
    """Accuracy over several seeds: averaged per prompt, then over prompts."""
    return bootstrap_ratio(np.mean([one.right_of_prompt for one in seeds], 0), seeds[0].comparisons_of_prompt)


def _difference(seeds: list[PreferenceResult], baseline: list[PreferenceResult]) -> Interval:
    """Paired over prompts, seeds averaged per prompt."""
    asked = seeds[0].comparisons_of_prompt
    ours, theirs = (
        np.mean([one.right_of_prompt for one in group], 0) / np.maximum(asked, 1) for group in (seeds, baseline)
    )
    return paired_difference(ours, theirs, asked)


if __name__ == "__main__":
    main()
