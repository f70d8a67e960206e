"""What a run is refused for, what its card lists, and what saves memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from t2ifb.data.datasets.mixture import Mixture
from t2ifb.data.images import load_image
from t2ifb.data.pairs import PairDataModule
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.dpo import DPO
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.grpo import GRPO
from t2ifb.finetuning.latents import fitted
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.run import FineTuner
from t2ifb.finetuning.run_parts import (
    check_algorithm,
    check_counts,
    check_truth,
    recipe,
    savings,
    to_bf16,
    training_data,
    with_weights,
)
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.mix import Mix
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import CLIP, PIPELINE
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.reward_runs import RECORD, write_record
from tests.data.parts import FolderDataset, make_split
from tests.finetuning.tuning_worlds import Darkness, Redness, make_tuning


def test_every_count_below_one_is_named() -> None:
    check_counts(batch_size=1, epochs=7)
    with pytest.raises(ValueError, match="^batch_size=0 must be at least 1; images=-2 must be at least 1$"):
        check_counts(batch_size=0, steps=1, images=-2)


def test_an_algorithm_that_learns_from_pairs_of_a_data_set_is_refused() -> None:
    check_algorithm(DPO(), gradient_norms=False)
    check_algorithm(DPO(group_size=None), gradient_norms=False, rankings="a folder")
    with pytest.raises(ValueError, match="^algorithm=DPO learns from preference pairs; give rankings=…$"):
        check_algorithm(DPO(group_size=None), gradient_norms=False)


NO_PROMPTS: dict[str, list[str]] = {"train": [], "validation": [], "test": []}


def test_pairs_are_those_of_the_training_rankings_at_the_models_size(tmp_path: Path) -> None:
    rankings = make_split(tmp_path, "train", [(2, 1), (1, 1)])
    options: dict[str, Any] = {"algorithm": DPO(group_size=None), "cache_folder": tmp_path / "cache"}
    tuner = make_tuning(rankings=FolderDataset({"train": rankings}), **options)
    assert tuner.splits == ["train"] and make_tuning().splits == []
    model = tuner.model.load()
    data = training_data(tuner, NO_PROMPTS, model, 2)
    data.prepare_data()
    batch = data.train_batch(0)
    assert batch.prompts == [rankings[0].prompt] and batch.pairs is not None
    second, first = (fitted(load_image(image)[None], 64, 64) for image in rankings[0].images)
    expected = model.encode_images(torch.cat([first, second]))
    torch.testing.assert_close(batch.pairs.latents[0], expected, atol=1e-4, rtol=1e-4)
    without = make_tuning(rankings=FolderDataset({}), **options)
    with pytest.raises(ValueError, match="rankings: the split 'train' is missing"):
        training_data(without, NO_PROMPTS, model, 2)


def test_pairs_of_a_mixture_leave_out_the_prompts_that_the_run_is_judged_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (make_split(tmp_path / name, "train", [(1, 2)] * 3) for name in ("one", "other"))
    other = [replace(ranking, prompt=f"other {ranking.prompt}") for ranking in other]
    mixture = Mixture({"one": FolderDataset({"train": one}), "other": FolderDataset({"train": other})}, {"other": 2.0})
    tuner = make_tuning(rankings=mixture, algorithm=DPO(group_size=None), cache_folder=tmp_path / "cache")
    texts = {"train": [], "validation": [f" {one[1].prompt.upper()}"], "test": [other[0].prompt]}
    data = training_data(tuner, texts, tuner.model.load(), 2)
    assert isinstance(data, PairDataModule)
    assert data.prompts == [ranking.prompt for ranking in (one[0], one[2], other[1], other[2])]
    assert data.steps_per_epoch == (2 + 2 * 2) // data.batch_size
    assert "left out 2 of 6, whose prompts this run is validated or tested on" in capsys.readouterr().out


def test_gradient_norms_are_for_algorithms_with_a_kl_term() -> None:
    for algorithm in (ReFL(), GRPO()):
        check_algorithm(algorithm, gradient_norms=True)
    with pytest.raises(ValueError, match="^gradient_norms=True needs a KL term, and DPO has no beta$"):
        check_algorithm(DPO(), gradient_norms=True)


@pytest.mark.parametrize(
    ("reward", "judges"),
    [
        (GoldScore(), {}),
        (Mix({"dark": Darkness(), "sure": GoldScore()}), {}),
        (Darkness(), {"red": Redness(), "sure": GoldScore("alignment")}),
    ],
)
def test_the_ground_truth_is_neither_reward_nor_judge(reward: nn.Module, judges: dict[str, nn.Module]) -> None:
    check_truth(None, reward, judges)
    check_truth(Brightness(), reward, judges)
    with pytest.raises(ValueError, match="^truth: the ground-truth scorer is for monitoring only; remove it from"):
        check_truth(GoldScore(), reward, judges)


class Brightness(nn.Module):
    """A ground truth that no test has as reward or judge."""


class Named(Darkness):
    """A scorer with a name for tables."""

    name = "how dark it is"


def test_the_recipe_lists_the_settings_of_the_run(tmp_path: Path) -> None:
    tuner = make_tuning(
        reward=Mix({"dark": Named(), "red": Redness()}),
        judges={"light": Brightness(), "sure": GoldScore()},
        judge_weights={"light": 0.25, "sure": 1.0},
        rollout=Sampler(3, 2.5),
        seed=7,
    )
    run = RunFolder(tmp_path)
    write_record(run.path / RECORD, None, {"/home/someone/runs/a": "12ab", "red": "34cd"})
    assert recipe(tuner, run, 40, "16-mixed") == {
        "base model": "t2ifb/shapes/weights/pipeline",
        "reward": "how dark it is, Redness, a (SHA-256 12ab), red (SHA-256 34cd)",
        "judges that chose the checkpoint": "light (weight 0.25), sure (weight 1.00)",
        "algorithm": ReFL([1, 3], alpha=1.0, beta=1e-6),
        "start": "the base model",
        "optimiser": "AdamW {'lr': 0.001}",
        "updates": "40, 1 for each 2 prompts",
        "rollouts in training": "3 steps, guidance 2.5, ddim()",
        "images below": "4 steps, guidance 1, ddim()",
        "seed, precision": "7, 16-mixed",
    }


def test_the_recipe_says_that_the_reward_itself_chose_and_takes_any_optimiser(tmp_path: Path) -> None:
    tuner = make_tuning(judges={}, optimizer=torch.optim.SGD)
    write_record(tmp_path / RECORD, None, {})
    found = recipe(tuner, RunFolder(tmp_path), 2, "32-true")
    assert found["judges that chose the checkpoint"] == "none, the reward itself"
    assert found["reward"] == "Darkness" and found["optimiser"] == "SGD {}"


LEAST: dict[str, Any] = {
    "model": StableDiffusionSource(
        str(PIPELINE), precision="bf16", decoder_precision="bf16", gradient_checkpointing=True
    ),
    "micro_batch_size": 1,
    "samples_per_batch": 1,
}
"""Settings of a run that needs the least memory."""


def tuner_with(**changes: Any) -> FineTuner:
    return make_tuning(**LEAST | changes)


def test_what_is_set_already_saves_nothing_more() -> None:
    assert savings(tuner_with()) == []
    assert savings(tuner_with(micro_batch_size=None, batch_size=1)) == []
    assert (
        savings(tuner_with(algorithm=DRaFT(1))) == savings(tuner_with(algorithm=DRaFT(2, checkpoint_steps=True))) == []
    )


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"model": StableDiffusionSource(str(PIPELINE), precision="bf16", decoder_precision="bf16")}, "checkpointing"),
        ({"micro_batch_size": 2}, "micro_batch_size=1"),
        ({"micro_batch_size": None}, "micro_batch_size=1"),
        ({"algorithm": DRaFT(2)}, "algorithm.checkpoint_steps=True"),
        ({"samples_per_batch": 2}, "samples_per_batch=1"),
        ({"diversity": CLIPSource(f"local-dir:{CLIP}")}, "diversity=None"),
    ],
)
def test_what_needs_more_than_it_has_to_is_a_saving(changes: dict[str, Any], setting: str) -> None:
    (found,) = savings(tuner_with(**changes))
    assert setting in found


def test_savings_are_in_the_order_of_what_they_usually_save() -> None:
    tuner = make_tuning(algorithm=DRaFT(2), diversity=f"local-dir:{CLIP}", samples_per_batch=32)
    assert savings(tuner) == [
        "model.gradient_checkpointing=True",
        "micro_batch_size=1",
        "algorithm.checkpoint_steps=True",
        "model.decoder_precision='bf16'",
        "samples_per_batch=1",
        "model.precision='fp16'",
        "diversity=None",
    ]


def test_a_gpu_without_bf16_is_not_told_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = make_tuning()
    assert "model.decoder_precision='bf16'" in savings(tuner)
    monkeypatch.setattr("t2ifb.finetuning.run_parts.has_bf16", lambda: False)
    assert "model.decoder_precision='bf16'" not in savings(tuner)


def test_weights_in_fp16_are_rounded_to_bf16_and_others_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    half, single = nn.Linear(3, 2).half(), nn.Linear(3, 2)
    before = half.weight.detach().clone()
    to_bf16(half, single)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in single.parameters()} == {torch.float32}
    assert torch.equal(half.weight, before.bfloat16())
    assert "rounded from fp16 to bf16" in capsys.readouterr().out
    to_bf16(half, single)
    assert not capsys.readouterr().out  # nothing is left to round


def test_only_the_first_process_says_that_weights_are_rounded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    half = nn.Linear(3, 2).half()
    to_bf16(half)
    assert half.weight.dtype == torch.bfloat16 and not capsys.readouterr().out


def test_weights_replace_those_of_the_algorithm_where_it_has_them() -> None:
    assert with_weights(ReFL(alpha=3.0, beta=0.5), None, 0.1) == ReFL(alpha=3.0, beta=0.1)
    assert with_weights(DPO(), None, None) == DPO()
    with pytest.raises(ValueError, match="DPO has no alpha and no beta; give alpha=None and beta=None"):
        with_weights(DPO(), 1.0, 0.0)
