"""Screen of algorithms and controls at guidance 4, on validation prompts. See README.md.

python -m experiments.beyond_guidance.study                     # trains what has no result yet, draws the picture
python -m experiments.beyond_guidance.study --only dpo nft      # only these
python -m experiments.beyond_guidance.study --list              # what is done, and what is missing

Each result is written to results/ when its run ends, so that a finished job is never repeated, even without its run
folder.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.held_out import JUDGES
from experiments.runs import Run, folder, train_all, train_each, write
from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.evaluation.selection import best_of
from t2ifb.evaluation.statistics import paired_difference

HERE = Path(__file__).parent
RESULTS = HERE / "results"
COLUMNS = ("gold", "gold/alignment", "gold/fidelity", "gold/strict", "reward", *JUDGES)
PROMPTS, IMAGES = 128, 4
"""Validation prompts, and images of each."""
COMMON = (
    "sampling.guidance_scale=4",
    "rollout.guidance_scale=4",
    f"algorithm.validation_prompts={PROMPTS}",
    f"algorithm.images_per_prompt={IMAGES}",
    "algorithm.lora.rank=16",
    "algorithm.guidance_scales=[]",
    "algorithm.best_of=1",
    "prompts.test.count=8",
    "logger=none",
)
"""Guidance 4, eta 1 and 20 steps, where the untuned model is best; no comparison of scales at the end."""
BATCH = 30
"""Prompts of an experience of the algorithms that draw pools."""
TRAINING_PROMPTS = 4800


def interaction(seed: int) -> Run:
    """The reward: a model with the interaction head."""
    return Run(
        folder("beyond_guidance", "reward", seed), ("+experiment=reward_mlp", "head=interaction", f"seed={seed}")
    )


def lengths(updates: int, per_experience: int = 1, batch: int = BATCH) -> tuple[str, ...]:
    """Settings for a number of updates with one validation, at the end."""
    epochs = updates / per_experience * batch / TRAINING_PROMPTS
    return f"algorithm.epochs={epochs:.6g}", f"algorithm.batch_size={batch}", f"algorithm.validate_every={updates}"


DPO = (
    "+experiment=dpo", "optimizer.lr=3e-4", "rollout.num_inference_steps=20", "algorithm.algorithm.steps=null",
    "algorithm.algorithm.relative=false", "algorithm.algorithm.beta_dpo=1500", "algorithm.algorithm.updates=50",
    "algorithm.lora.targets=null", "algorithm.lr_decay=false", "algorithm.ema=0.98", *lengths(200, 50),
)  # fmt: skip
BEST = ("+experiment=best_of_n", "optimizer.lr=2e-4", *lengths(150, 50))
NFT = ("+experiment=nft", "optimizer.lr=1e-3", "algorithm.algorithm.updates=8", *lengths(40, 8))
GRPO = ("+experiment=grpo", "optimizer.lr=1e-3", "algorithm.algorithm.steps_per_sample=4", *lengths(24, 1, 8))
REFL = ("+experiment=refl", "algorithm.alpha=1", "algorithm.ema=0.9", *lengths(60, 1, 32))
DRAFT = ("+experiment=draft", "algorithm.alpha=1", "algorithm.ema=0.9", *lengths(30, 1, 16))
ALL_LAYERS = "algorithm.lora.targets=[to_q,to_k,to_v,to_out.0,conv1,conv2,conv_shortcut,time_emb_proj,proj_in,proj_out]"

VARIANTS: dict[str, tuple[str, ...]] = {
    "dpo": DPO,
    "dpo, lr 1e-3": (*DPO, "optimizer.lr=1e-3"),
    "dpo, random pairs": (*DPO, "algorithm.algorithm.pick=random"),
    "dpo, early steps": (*DPO, "algorithm.algorithm.steps=[0,9]"),
    "dpo, late steps": (*DPO, "algorithm.algorithm.steps=[10,19]"),
    "dpo, rank 4": (*DPO, "algorithm.lora.rank=4"),
    "dpo, all layers": (*DPO, ALL_LAYERS),
    "best of 8": BEST,
    "best of 8, random": (*BEST, "algorithm.algorithm.pick=random"),
    "nft": NFT,
    "grpo, early steps": (*GRPO, "algorithm.algorithm.window=[0,9]"),
    "grpo, late steps": (*GRPO, "algorithm.algorithm.window=[10,18]"),
    "refl": (*REFL, "algorithm.algorithm.gradients_per_rollout=1"),
    "refl, early window": (*REFL, "algorithm.algorithm.gradients_per_rollout=1", "algorithm.algorithm.window=[2,7]"),
    "draft, 5 steps": DRAFT,
}
"""Arguments of each variant: 36,000 to 98,000 network evaluations each."""


def run_of(variant: str, seed: int = 0) -> Run:
    """The run of a variant."""
    reward = f"reward.source={interaction(seed).path}"
    return Run(folder("beyond_guidance", variant, seed), (*COMMON, *VARIANTS[variant], f"seed={seed}", reward))


def result_file(variant: str, seed: int = 0) -> Path:
    """File with the result of a variant."""
    return RESULTS / f"{variant.replace(', ', '_').replace(' ', '_')}_{seed}.json"


def result_of(run: Run, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Gains of a finished run's kept checkpoint over the base model, on its validation prompts, with their cost."""
    sheets = sorted((run.path / "samples").glob("step_*.csv"))
    summary = run.summary
    kept = f"step_{summary['best_step']:06d}"
    base, tuned = ScoreSheet.read(sheets[0]), next(ScoreSheet.read(sheet) for sheet in sheets if sheet.stem == kept)
    prompts = len(base.by_prompt["gold"])
    images = len(base.prompts) // prompts
    return {
        "arguments": [*arguments],
        "git_commit": summary["git_commit"],
        "updates": summary["steps"],
        "kept_step": summary["best_step"],
        "network_evaluations": summary["network_evaluations"],
        "wall_seconds": summary["wall_seconds"],
        "prompts": prompts,
        "images_per_prompt": images,
        "kl": float(tuned.columns["kl"].mean()),
        "base": {name: float(base.columns[name].mean()) for name in COLUMNS},
        "gain": {name: asdict(paired_difference(tuned.by_prompt[name], base.by_prompt[name])) for name in COLUMNS},
        "gold_of_best": {name: gold_of_best(sheet, images) for name, sheet in (("base", base), ("tuned", tuned))},
    }


def gold_of_best(sheet: ScoreSheet, count: int) -> float:
    """Mean gold of the image that the reward likes best among the `count` of each prompt."""
    gold, reward = (np.reshape(sheet.columns[name], (-1, count)) for name in ("gold", "reward"))
    return float(gold[np.arange(len(gold)), best_of(reward)].mean())


def results() -> dict[str, dict[str, Any]]:
    """All results so far, by variant."""
    files = {variant: result_file(variant) for variant in VARIANTS}
    return {variant: json.loads(file.read_text()) for variant, file in files.items() if file.exists()}


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Gains of gold and alignment with their intervals, best first."""
    order = sorted(found, key=lambda variant: found[variant]["gain"]["gold"]["mean"])
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.4 * len(order) + 1.5), sharey=True, layout="constrained")
    for axis, name in zip(axes, ("gold", "gold/alignment"), strict=True):
        gains = [found[variant]["gain"][name] for variant in order]
        mean = np.array([gain["mean"] for gain in gains])
        ends = np.array([[gain["mean"] - gain["low"], gain["high"] - gain["mean"]] for gain in gains]).T
        axis.errorbar(mean, order, xerr=ends, fmt="o")
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_xlabel(f"gain of {name.removeprefix('gold/')} at guidance 4")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train what has no result, and write results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time on shared cores")
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and stop")
    asked = parser.parse_args()
    missing = [variant for variant in asked.only if not result_file(variant).exists()]
    if asked.list:
        print(f"done: {'; '.join(results()) or 'nothing'}\nmissing: {'; '.join(missing) or 'nothing'}")
        return
    RESULTS.mkdir(exist_ok=True)
    if missing:
        train_all([interaction(0)], 1)
    runs = {variant: run_of(variant) for variant in missing}
    train_each(runs, asked.jobs, lambda name: write(result_of(runs[name], runs[name].overrides), result_file(name)))
    write(results(), HERE / "result.json")
    draw(results(), HERE / "result.png")


if __name__ == "__main__":
    main()
