"""Three rounds of rankings against the same number of rankings at once. See README.md.

python -m experiments.iteration.study                     # trains what has no result yet, compares, draws the picture
python -m experiments.iteration.study --only rounds --seeds 0
python -m experiments.iteration.study --list              # what is done, and what is missing

Each result is written to results/ when its run ends, so that a finished job is never repeated, even without its run
folder.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.held_out import Scores, gain
from experiments.runs import Run, folder, study_parser, train_each, write
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.image_cache import Generations, samples_of
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.prompts import ScenePrompts
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.files import data_folder

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROUNDS, RANKED, UPDATES = 3, 100, 48
"""Rounds, and prompts that are ranked and updates in each."""
TRAINING_PROMPTS, BATCH, POOL = 4800, 30, 16
"""Training prompts, prompts per pool of own samples, and updates per pool."""
PROMPTS, IMAGES, GUIDANCE, STEPS = 200, 2, 4.0, 20
"""Test prompts and images of each; guidance scale at which the base model is best, and sampling steps."""
COMMON: tuple[str, ...] = (
    "+experiment=iterate",
    "iteration.images_per_prompt=4",
    f"algorithm.algorithm.updates={POOL}",
    f"algorithm.batch_size={BATCH}",
    "iteration.dataset_weight=0",
    "sampling.num_inference_steps=10",
    f"algorithm.validate_every={UPDATES}",
    "algorithm.ema=0.9",
    "algorithm.guidance_scales=[]",
    "algorithm.best_of=1",
    "prompts.test.count=8",
)
"""The rankings that exist before are for the validation and test of rewards only. Images that are ranked, and those of
validations, have half of the usual steps."""


def amounts(rounds: int, ranked: int, updates: int) -> tuple[str, ...]:
    """Settings for a number of rounds with so many ranked prompts and updates each."""
    epochs = updates / POOL * BATCH / TRAINING_PROMPTS
    return f"iteration.rounds={rounds}", f"iteration.prompts_per_round={ranked}", f"algorithm.epochs={epochs:.6g}"


VARIANTS: dict[str, tuple[str, ...]] = {
    "rounds": amounts(ROUNDS, RANKED, UPDATES),
    "at once": amounts(1, ROUNDS * RANKED, ROUNDS * UPDATES),
}
"""Arguments of each variant: 300 rankings and 144 updates each."""


def run_of(variant: str, seed: int = 0) -> Run:
    """The run of a variant. Both variants rank the same prompts."""
    return Run(folder("iteration", variant, seed), (*COMMON, *VARIANTS[variant], f"seed={seed}"))


def result_file(variant: str, seed: int = 0) -> Path:
    """File with the result of a run."""
    return RESULTS / f"{variant.replace(' ', '_')}_{seed}.json"


def gold_of(name: str, export: Path | None) -> dict[str, list[float]]:
    """Gold and its parts of a model on test prompts at guidance 4: one value per prompt, the mean over its images.

    Args:
        name: Name of the model in progress messages.
        export: Its adapters; None for the base model. All models start from the same noise.
    """
    cache, parts = data_folder(), {"gold": "gold", "gold/alignment": "alignment", "gold/fidelity": "fidelity"}
    sampler = partial(Sampler, STEPS, GUIDANCE)
    samples = samples_of(ScenePrompts("test", PROMPTS).prompts(), IMAGES)
    generations = Generations(cache / "generations", partial(StableDiffusionSource, str(PIPELINE)), sampler)
    files = generations.fill(name, export, samples)
    scorers = {key: partial(GoldScore, part) for key, part in parts.items()}
    scores = ScoreCache(cache / "scores").fill(scorers, files, [sample.prompt for sample in samples])
    means = {key: np.reshape(scores.of(key).astype(np.float64), (-1, IMAGES)).mean(1) for key in parts}
    return {key: values.tolist() for key, values in means.items()}


def result_of(run: Run, name: str) -> dict[str, Any]:
    """Figures of a finished run, and gold of its exported adapters."""
    summary = run.summary
    return {
        "arguments": [*run.overrides],
        "git_commit": summary["git_commit"],
        "network_evaluations": summary["network_evaluations"],
        "best_round": summary["best_round"],
        "rounds": summary["rounds"],
        "prompts": PROMPTS,
        "images_per_prompt": IMAGES,
        "base": gold_of("the base model", None),
        "exported": gold_of(name, run.path / "export"),
    }


def results(seeds: list[int]) -> dict[str, dict[int, dict[str, Any]]]:
    """All results so far, by variant and seed."""
    files = {variant: {seed: result_file(variant, seed) for seed in seeds} for variant in VARIANTS}
    return {
        variant: {seed: json.loads(file.read_text()) for seed, file in some.items() if file.exists()}
        for variant, some in files.items()
    }


def compare(found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Gains over the base model, and of rounds over all rankings at once, on the seeds that both have.

    Each is paired over prompts, per seed and averaged over seeds.
    """
    seeds = sorted(set.intersection(*(set(some) for some in found.values())))
    if not seeds:
        return {"seeds": []}

    def scores(variant: str, state: str) -> list[Scores]:
        some = [found[variant][seed][state] for seed in seeds]
        return [{name: np.array(values) for name, values in each.items()} for each in some]

    def gains(base: list[Scores], tuned: list[Scores]) -> dict[str, Any]:
        return {name: gain(base, tuned, name) for name in base[0]}

    return {
        "seeds": seeds,
        "network_evaluations": {v: [found[v][seed]["network_evaluations"] for seed in seeds] for v in found},
        "reward_accuracy": {v: [found[v][seed]["rounds"][-1]["reward_accuracy"] for seed in seeds] for v in found},
        "gain": {v: gains(scores(v, "base"), scores(v, "exported")) for v in found},
        "rounds_minus_at_once": gains(scores("at once", "exported"), scores("rounds", "exported")),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Gain of gold by rounds and by all rankings at once, and their difference, with intervals over prompts."""
    lines = {variant: each["gold"] for variant, each in result["gain"].items()}
    lines["rounds − at once"] = result["rounds_minus_at_once"]["gold"]
    figure, axis = plt.subplots(figsize=(6, 0.5 * len(lines) + 1), layout="constrained")
    for name, each in reversed(lines.items()):
        mean, low, high = (each["over_seeds"][end] for end in ("mean", "low", "high"))
        axis.errorbar([mean], [name], xerr=[[mean - low], [high - mean]], fmt="o", color="tab:blue")
        axis.plot([seed["mean"] for seed in each["seeds"]], [name] * len(each["seeds"]), "|", color="gray")
    axis.axvline(0, color="gray", linewidth=0.8)
    axis.set_xlabel(f"gain of gold at guidance {GUIDANCE:g}; marks: seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Train what has no result, compare, and write results."""
    parser = study_parser(__doc__, VARIANTS)
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and stop")
    asked = parser.parse_args()
    jobs = [(variant, seed) for seed in asked.seeds for variant in asked.only]
    missing = [job for job in jobs if not result_file(*job).exists()]
    if asked.list:
        done = [job for job in jobs if job not in missing]
        for title, some in (("done", done), ("missing", missing)):
            print(f"{title}: {', '.join(f'{variant} {seed}' for variant, seed in some) or 'nothing'}")
        return
    RESULTS.mkdir(exist_ok=True)
    names = {f"{variant}, seed {seed}": (variant, seed) for variant, seed in missing}
    runs = {name: run_of(*job) for name, job in names.items()}
    train_each(runs, asked.jobs, lambda name: write(result_of(runs[name], name), result_file(*names[name])))
    result = compare(results(asked.seeds))
    write(result, HERE / "result.json")
    if result["seeds"]:
        draw(result, HERE / "result.png")


if __name__ == "__main__":
    main()
