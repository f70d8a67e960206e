"""The study of gains at guidance 4: its figures, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.beyond_guidance import final, study
from experiments.beyond_guidance.study import BATCH, TRAINING_PROMPTS, gold_of_best, lengths
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.evaluation.scoring import ScoreSheet


@pytest.mark.parametrize("overrides", [*final.VARIANTS.values(), study.run_of("dpo, rank 4").overrides], ids=str)
def test_every_variant_is_a_valid_run(overrides: tuple[str, ...]) -> None:
    schema.register()
    (composed,) = compose_all("train", list(overrides))
    without_guidance = (final.VARIANTS["refl"], final.VARIANTS[final.DISTILLED])
    usual = 2.5 if final.FLOW in overrides else 4
    assert composed.config.sampling.guidance_scale == (1 if overrides in without_guidance else usual)


def test_a_variant_is_judged_in_its_domain_at_the_scale_where_its_base_model_is_best() -> None:
    schema.register()
    for variant, scale in (("dpo", 4), ("flow, grpo", 2.5)):
        (composed,) = compose_all("evaluate", list(final.judged(variant, 0).overrides))
        assert composed.config.sampling.guidance_scale == scale
        assert composed.config.domain == ("shapes_flow" if "flow" in variant else "shapes")


def test_the_distilled_model_starts_from_the_adapters_of_dpo() -> None:
    schema.register()
    runs = [final.trained(variant, 1) for variant in ("dpo", final.DISTILLED)]
    tuned, distilled = (compose_all("train", list(run.overrides))[0].config.algorithm for run in runs)
    assert distilled.lora == tuned.lora
    assert distilled.start_from == str(runs[0].path)
    assert "sampling.guidance_scale=1" in final.judged(final.DISTILLED, 1).overrides


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_variant_of_the_screen_has_the_updates_that_it_says(variant: str) -> None:
    schema.register()
    (composed,) = compose_all("train", list(study.run_of(variant).overrides))
    config = composed.config
    experiences = config.algorithm.epochs * TRAINING_PROMPTS / config.algorithm.batch_size
    updates = experiences * config.algorithm.algorithm.get("updates", 1)
    assert updates == pytest.approx(config.algorithm.validate_every, rel=1e-3)
    assert max(config.algorithm.algorithm.get("steps") or [0]) < config.rollout.num_inference_steps == 20


def test_a_final_result_has_the_gains_and_the_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = {"git_commit": "c", "steps": 9, "best_step": 6, "network_evaluations": 5, "wall_seconds": 2.0}
    comparison = {"prompts": 4, "images_per_prompt": 2, "figure8": {"seed0": {"gold": 1}}, "guidance": {"seed0": {}}}
    for run, content in ((final.trained("dpo", 0), summary), (final.judged("dpo", 0), comparison)):
        run.path.mkdir(parents=True)
        (run.path / "summary.json").write_text(json.dumps(content))
    found = final.result_of("dpo", 0)
    assert (found["gains"], found["network_evaluations"], found["kept_step"]) == ({"gold": 1}, 5, 6)
    assert found["arguments"][0] == "+experiment=dpo"


def test_the_best_image_is_the_rewards_choice() -> None:
    gold, reward = np.array([0.1, 0.9, 0.5, 0.7]), np.array([2.0, 1.0, 0.0, 3.0])
    sheet = ScoreSheet(["a", "a", "b", "b"], {"gold": gold, "reward": reward})
    assert gold_of_best(sheet, 2) == pytest.approx((0.1 + 0.7) / 2)


def test_lengths_give_the_number_of_updates() -> None:
    settings = dict(each.split("=") for each in lengths(200, 50))
    experiences = float(settings["algorithm.epochs"]) * TRAINING_PROMPTS / BATCH
    assert round(experiences * 50) == int(settings["algorithm.validate_every"]) == 200
