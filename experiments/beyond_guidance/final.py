"""Final: the recipes of `shapes` on test prompts, over guidance scales. See README.md.

The variant `dpo, distilled` starts from the run `dpo` of the same seed, which is trained first.

python -m experiments.beyond_guidance.final --only dpo --seeds 0    # trains and judges one run
python -m experiments.beyond_guidance.final                         # all that is missing
python -m experiments.beyond_guidance.final --list                  # what is done, and what is missing

Each result is written to results/ when its run has been judged, so that a finished job is never repeated, even without
its run folder.
"""

import json
from pathlib import Path
from typing import Any

from experiments.beyond_guidance.study import ALL_LAYERS, RESULTS, interaction, lengths
from experiments.runs import Run, folder, study_parser, train_all, train_each, write
from t2ifb.shapes.training.tuned import TUNING

PROMPTS, IMAGES = 400, 4
"""Test prompts, and images of each."""
DISTILLED = "dpo, distilled"
FLOW = "domain=shapes_flow"
VARIANTS: dict[str, tuple[str, ...]] = {
    "dpo": TUNING,
    "grpo": ("+experiment=grpo",),
    "refl": ("+experiment=refl",),
    "dpo, random pairs": (*TUNING, "algorithm.algorithm.pick=random"),
    DISTILLED: (
        "+experiment=guidance_distillation", "algorithm.lora.rank=8", ALL_LAYERS, "algorithm.ema=0.9",
        *lengths(128, batch=16),
    ),
    "flow, dpo": ("+experiment=dpo", FLOW),
    "flow, grpo": ("+experiment=grpo", FLOW),
}  # fmt: skip
"""Arguments of each variant: the two best of the screen, the report's method, the best one's control, the best one
without guidance, and the two best on the rectified flow."""
BRIEF = ("algorithm.guidance_scales=[]", "algorithm.best_of=1", "prompts.test.count=64")
"""Arguments of all variants: the verdict at the run's end is short, because `judged` gives the one that counts."""
JUDGED = ("+experiment=figure8", f"prompts.most={PROMPTS}", f"evaluation.images_per_prompt={IMAGES}")


def trained(variant: str, seed: int) -> Run:
    """The run of a variant."""
    place = folder("beyond_guidance", f"final {variant}", seed)
    start = (f"algorithm.start_from={trained('dpo', seed).path}",) if variant == DISTILLED else ()
    reward = f"reward.source={interaction(seed).path}"
    return Run(place, (*VARIANTS[variant], *start, *BRIEF, f"seed={seed}", reward))


def judged(variant: str, seed: int) -> Run:
    """Comparison of a run with the base model. Noise is that of seed 0, so that runs share the base model's images."""
    place = folder("beyond_guidance", f"judged {variant}", seed)
    scales = "1,4" if variant == DISTILLED else "1,2.5,4,6"
    own = "1" if variant == DISTILLED else "${usual_guidance_scale}"
    domain = [argument for argument in VARIANTS[variant] if argument == FLOW]
    how = (f"sampling.guidance_scale={own}", f"guidance_scales=[{scales}]", f"run={trained(variant, seed).path}")
    return Run(place, (*JUDGED, *domain, *how), "t2ifb.evaluate")


def result_file(variant: str, seed: int) -> Path:
    """File with the result of one run."""
    return RESULTS / f"final_{variant.replace(', ', '_').replace(' ', '_')}_{seed}.json"


def result_of(variant: str, seed: int) -> dict[str, Any]:
    """Gains on test prompts, over guidance scales, with their cost."""
    run, comparison = trained(variant, seed), judged(variant, seed).summary
    summary = run.summary
    (gains,), (guidance,) = comparison["figure8"].values(), comparison["guidance"].values()
    return {
        "arguments": [*run.overrides],
        "git_commit": summary["git_commit"],
        "updates": summary["steps"],
        "kept_step": summary["best_step"],
        "network_evaluations": summary["network_evaluations"],
        "wall_seconds": summary["wall_seconds"],
        "prompts": comparison["prompts"],
        "images_per_prompt": comparison["images_per_prompt"],
        "gains": gains,
        "guidance": guidance,
    }


def main() -> None:
    """Train and judge what has no result."""
    parser = study_parser(__doc__, VARIANTS)
    parser.add_argument("--list", action="store_true", help="say what is done and what is missing, and stop")
    asked = parser.parse_args()
    wanted = {f"{variant}, seed {seed}": (variant, seed) for seed in asked.seeds for variant in asked.only}
    missing = {name: job for name, job in wanted.items() if not result_file(*job).exists()}
    if asked.list:
        done = [name for name in wanted if name not in missing]
        print(f"done: {'; '.join(done) or 'nothing'}\nmissing: {'; '.join(missing) or 'nothing'}")
        return
    RESULTS.mkdir(exist_ok=True)
    if missing:
        train_all([interaction(seed) for seed in {seed for _, seed in missing.values()}], 1)
        train_all([trained("dpo", seed) for variant, seed in missing.values() if variant == DISTILLED], asked.jobs)

    def judge(name: str) -> None:
        job = missing[name]
        train_all([judged(*job)], 1)
        if judged(*job).finished:
            write(result_of(*job), result_file(*job))

    train_each({name: trained(*job) for name, job in missing.items()}, asked.jobs, judge)
    found = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("final_*.json"))}
    write(found, Path(__file__).parent / "final.json")


if __name__ == "__main__":
    main()
