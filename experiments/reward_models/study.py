"""Comparison of reward models: head, amount of data, grouping, tuned layers. See README.md.

python -m experiments.reward_models.study            # trains missing runs, evaluates, writes result.json, result.png
python -m experiments.reward_models.study --judge    # evaluates finished runs
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.progress import track

from experiments.reward_models.comparisons import KINDS, Comparisons, Jury, by_annotators, by_gold
from experiments.reward_models.pictures import draw
from experiments.runs import Run, conduct, finished, folder, origin
from t2ifb.config import schema
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.evaluation.metrics import PreferenceResult
from t2ifb.evaluation.statistics import Interval, bootstrap_ratio, paired_difference
from t2ifb.scorers import RewardModel

HERE = Path(__file__).parent
PROMPTS, EPOCHS = 1200, 20
BASELINE = "mlp"
FEWER = (150, 300, 600)
TUNED = ["algorithm.epochs=5", "algorithm.encoder_lr=3.0e-5"]


def less_data(count: int) -> list[str]:
    """Settings for fewer training prompts, with about as many updates and validations as with all."""
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
    "mlp, 4800 prompts": ["build.size=large"],
    "interaction, 4800 prompts": ["build.size=large", "head=interaction"],
}
"""Changes of each variant from `+experiment=reward_mlp`."""


def main() -> None:
    """Train, judge, write."""
    conduct(HERE, __doc__, VARIANTS, lambda *which: (run_of(*which),), judge_all, draw)


def run_of(variant: str, seed: int) -> Run:
    """Run of a variant and a seed."""
    return Run(folder("reward_models", variant, seed), ("+experiment=reward_mlp", f"seed={seed}", *VARIANTS[variant]))


def reported(seed: int) -> Run:
    """Run of the report's reward model, which the fine-tuning studies use."""
    return run_of("mlp", seed)


def all_comparisons(run: Path) -> dict[str, Comparisons]:
    """Test sets of all runs, from the data set of one run."""
    schema.register()
    config: Any = OmegaConf.load(run / ".hydra" / "config.yaml")
    dataset = ImageRewardDB(config.dataset.source)
    annotated = {split: by_annotators(dataset.rankings(split)) for split in ("validation", "test", "compositional")}
    return annotated | {kind: by_gold(dataset.rankings("test"), kind) for kind in KINDS}


def judge_all(seeds: list[int]) -> dict[str, Any]:
    """Results of every variant with finished runs."""
    runs = {variant: [run_of(variant, seed) for seed in seeds] for variant in VARIANTS}
    done = finished(runs)
    if BASELINE not in done:
        raise SystemExit(f"{runs[BASELINE][0].path} is not finished, and every variant is compared with {BASELINE}")
    every = [run for some in done.values() for run in some]
    splits = [run.summary["data"]["splits"] for run in every]
    if any(one[name] != splits[0][name] for one in splits for name in one if name != "train"):
        raise SystemExit(f"the runs beside {every[0].path} were tested on different data; delete the old ones")
    asked = all_comparisons(done[BASELINE][0].path)
    jury = Jury(asked)
    judged = {
        variant: [jury.judge(RewardModel.from_pretrained(run.path)) for run in some]
        for variant, some in track(done.items(), "judging")
    }
    return {
        **origin("reward_models", seeds, every),
        "prompts": PROMPTS,
        "comparisons": {name: len(comparisons.better) for name, comparisons in asked.items()},
        "variants": dict(_figures(done, judged)),
    }


def _figures(
    runs_of: dict[str, list[Run]], judged: dict[str, list[dict[str, PreferenceResult]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for variant, runs in runs_of.items():
        summaries = [run.summary for run in runs]
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
    """Accuracy over several seeds, averaged per prompt, then over prompts."""
    return bootstrap_ratio(np.mean([one.right_of_prompt for one in seeds], 0), seeds[0].comparisons_of_prompt)


def _difference(seeds: list[PreferenceResult], baseline: list[PreferenceResult]) -> Interval:
    """Paired difference over prompts, with seeds averaged per prompt."""
    asked = seeds[0].comparisons_of_prompt
    ours, theirs = (
        np.mean([one.right_of_prompt for one in group], 0) / np.maximum(asked, 1) for group in (seeds, baseline)
    )
    return paired_difference(ours, theirs, asked)


if __name__ == "__main__":
    main()
