"""The end of a run compares the loaded adapters with the base model over guidance scales."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.guidance_sweep import BEST_OF, EQUAL, OWN
from t2ifb.finetuning import baseline_cache, guidance
from t2ifb.finetuning.evaluator import evaluate
from t2ifb.finetuning.guidance import guidance_of_run
from t2ifb.training.run_folder import RunFolder
from tests.finetuning.tuning_worlds import make_tuning

CPU = torch.device("cpu")


def test_both_models_are_swept_and_the_base_models_images_are_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = make_tuning(
        sampling=Sampler(4, 1.0), guidance_scales=[3], guidance_prompts=1, best_of=2, cache_folder=tmp_path / "cache"
    )
    model, cache = tuner.model.load(), tuner.baseline_cache()
    adapters = tuner.lora.add(model, seed=0)  # which change nothing yet
    drawn: list[str] = []

    def counted(evaluator, model, size, whom, **options):  # type: ignore[no-untyped-def]
        drawn.append(whom)
        return evaluate(evaluator, model, size, whom, **options)

    for module in (baseline_cache, guidance):
        monkeypatch.setattr(module, "evaluate", counted)
    of_base = cache.of(tuner.evaluator("test", tuner.seed), model, 2)
    untouched = guidance_of_run(tuner, model, cache, {"base": of_base, "kept": of_base}, CPU)
    assert untouched is not None
    sweep = untouched.sweep
    assert (sweep.scales, sweep.validation_prompts, sweep.test_prompts) == ([1, 3], 1, 1)
    assert sweep.judges == {"redness": 1.0} and sweep.trained_on == ["reward"]
    assert [row.difference.mean for row in sweep.rows] == pytest.approx([0.0] * len(sweep.rows), abs=1e-6)
    assert sweep.base == sweep.tuned and sweep.matches[OWN].difference("reward").mean == 0
    of = untouched.scores.query("model == 'base' and split == 'test' and steps == 4")
    rewards = of.reward[of.guidance_scale == sweep.base.guidance_scale]
    assert len(rewards) == 2  # the first image and another
    assert sweep.matches[BEST_OF].difference("reward").mean == pytest.approx(rewards.max() - rewards.iloc[0])
    assert sweep.matches[EQUAL].base_evaluations == sweep.matches[EQUAL].other_evaluations == 4
    # The run's own test images are used again; the tuned model needs three further evaluations.
    assert len([whom for whom in drawn if whom.startswith("the kept checkpoint")]) == 3

    for weight in adapters:
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    kept = evaluate(tuner.evaluator("test", tuner.seed), model, 2, "the kept checkpoint")
    drawn.clear()
    moved = guidance_of_run(tuner, model, cache, {"base": of_base, "kept": kept}, CPU)
    assert moved is not None
    assert all(whom.startswith("the kept checkpoint") for whom in drawn)  # nothing of the base model
    assert all(abs(row.difference.mean) > 1e-4 for row in moved.sweep.rows)
    assert [row.base for row in moved.sweep.rows] == [row.base for row in sweep.rows]
    own = [row for row in moved.sweep.rows if (row.name, row.scale) == ("redness", 1)]
    assert own[0].tuned == pytest.approx(float(kept.scores["redness"][0]))

    run = RunFolder(tmp_path / "run")
    capsys.readouterr()
    assert moved.write(run)["sentence"] == moved.sentence
    assert capsys.readouterr().out.startswith(moved.sentence)
    table = pd.read_csv(run.samples / "guidance.csv")
    assert set(table.model) == {"base", "tuned"} and set(table.guidance_scale) == {1.0, 3.0}
    assert {"prompt", "split", "steps", "reward", "redness"} <= set(table.columns)
    for name in ("guidance_scales.json", "guidance_comparisons.csv", "table_kept_best_guidance.json"):
        assert (run.path / name).stat().st_size > 0
    assert (run.samples / "guidance.png").stat().st_size > 0


def test_without_scales_nothing_is_drawn() -> None:
    tuner = make_tuning(guidance_scales=[])
    assert guidance_of_run(tuner, None, None, {}, CPU) is None  # type: ignore[arg-type]
