"""A fine-tuning run raises its reward, tells the truth about it, and can be stopped at any moment."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.finetuning.dpo import DPO
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.run import FineTuner
from t2ifb.scorers.mix import Mix
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import PIPELINE
from t2ifb.training.metrics import read_metrics
from tests.data.parts import FolderDataset, make_split
from tests.diffusion.parts import PROMPTS
from tests.finetuning.tuning_worlds import Darkness, make_tuning, tune
from tests.training.worlds import FailingLogger, KillAt, Killed, same


def lora(run: Path) -> dict[str, Tensor]:
    return load_file(run / "export" / "pytorch_lora_weights.safetensors")


def decaying(**changes: Any) -> FineTuner:
    return make_tuning(lr_decay=True, **changes)


guided = partial(decaying, guidance_scales=[3.0], best_of=2)
"""Compares at another guidance scale than its own, too."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    tune(guided(truth=GoldScore()), folder, pictures=True)
    return folder


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """The same, without its summary."""
    shutil.copytree(whole, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    return tmp_path / "unfinished"


def rate(run: Path) -> float:
    """The learning rate of the last update before a run's last checkpoint."""
    (state,) = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    return float(state["param_groups"][0]["lr"])


def test_the_run_leaves_what_it_promises(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["steps"] == 6 and summary["best_step"] in (2, 4, 6) and summary["skipped_updates"] == 0
    assert f" Kept step {summary['best_step']}: reward " in summary["sentence"]
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2", "4", "6"]
    assert float(rows[0]["val/kl"]) == 0 and float(rows[0]["val/judges"]) == 0
    assert float(rows[-1]["val/kl"]) > float(rows[-1]["val/kl_without_last_two"]) > 0
    assert summary["validation"].keys() >= {"kl", "kl_without_last_two"} <= summary["test_last"].keys()
    assert summary["judge_weights"] == {"redness": 1.0}
    settings = json.loads((whole / "settings.json").read_text())
    assert settings["algorithm"]["batch_size"] == 2 and settings["reward"]["_target_"].endswith("Darkness")
    assert float(rows[-1]["val/reward"]) > float(rows[0]["val/reward"])
    for name in (
        "table_kept.md",
        "table_last.json",
        "tuning_curves.png",
        "samples/test.png",
        "samples/step_000006.png",
    ):
        assert (whole / name).stat().st_size > 0
    for row in rows:
        with (whole / "samples" / f"step_{int(row['step']):06d}.csv").open() as file:
            images = list(csv.DictReader(file))
        assert [image["prompt"] for image in images] == [
            "a green star on a white background",
            "a blue square on a gray background",
        ]
        strip = Image.open(whole / "samples" / f"step_{int(row['step']):06d}_strip.png")
        assert strip.size == (2 * 64, 64)  # the two prompts
        for name in ("reward", "redness", "kl", "kl_without_last_two"):
            mean = sum(float(image[name]) for image in images) / len(images)
            assert mean == pytest.approx(float(row[f"val/{name}"]), abs=1e-5, rel=1e-5)
    table = " ".join((whole / "table_kept.md").read_text().split())
    assert "reward (trained on)" in table and "| redness |" in table
    state = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state)


def test_the_end_compares_with_the_base_model_at_its_best_guidance_scale(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    found, own = summary["guidance"], summary["test_kept"]
    assert (found["scales"], found["own_scale"], found["test_prompts"]) == ([1, 3], 1, 2)
    at_own = found["comparisons"]["own scale"]["gains"]
    for name in ("reward", "redness", "gold"):  # the same images
        assert at_own[name]["tuned"] == pytest.approx(own[name]["tuned"], abs=1e-6)
    assert found["comparisons"]["best of n"]["other_evaluations"] in (8, 16)
    for name in ("guidance_scales.csv", "guidance_comparisons.md", "guidance_scales.png", "samples/guidance.png"):
        assert (whole / name).stat().st_size > 0
    assert summary["sentence"].startswith(f"{found['sentence']} Kept step ")
    card = (whole / "export" / "README.md").read_text()
    first = card.split("\n")[2]
    assert first.startswith(f"{found['sentence']} ") and "Use these adapters at guidance scale " in first
    assert "best against best" in card and "redness (weight 1.00)" in card


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapters_whatever_the_folder_held_and_the_logger_did(
    whole: Path, tmp_path: Path
) -> None:
    tune(decaying(), tmp_path, seed=1)
    assert not same(lora(whole), lora(tmp_path))
    for name in ("summary.json", "checkpoints/last.ckpt"):  # a run that was stopped before its first checkpoint
        (tmp_path / name).unlink()
    tune(decaying(truth=GoldScore()), tmp_path, logger=lambda run, config: FailingLogger("log_metrics"))
    assert same(lora(whole), lora(tmp_path)) and (tmp_path / "summary.json").exists()
    assert "guidance" not in json.loads((tmp_path / "summary.json").read_text())
    assert (whole / "base.safetensors").read_bytes() == (tmp_path / "base.safetensors").read_bytes()


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 2, 5])
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(whole: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(Killed):
        tune(decaying(truth=GoldScore()), tmp_path, callbacks=[KillAt(step)])
    if step > 1:  # it was saved at step 2 or 4
        assert rate(tmp_path) == pytest.approx(1e-3 * (1 - (step // 2 * 2 - 1) / 6))
    tune(decaying(truth=GoldScore()), tmp_path, resume=True)
    assert same(lora(whole), lora(tmp_path))
    assert rate(whole) == rate(tmp_path) == pytest.approx(1e-3 * (1 - 5 / 6))
    with (whole / "metrics.csv").open() as one, (tmp_path / "metrics.csv").open() as other:
        for straight, resumed in zip(csv.DictReader(one), csv.DictReader(other), strict=True):
            differing = {key for key in straight if straight[key] != resumed[key]}
            assert differing <= {"wall_seconds"}


class Breaks(nn.Module):
    """Darkness that is NaN at some calls with gradient."""

    def __init__(self, *calls: int) -> None:
        super().__init__()
        self.calls, self.count = calls, 0

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        score = Darkness()(images, prompts)
        if torch.is_grad_enabled() and len(images) == 2:
            self.count += 1
            if self.count in self.calls or not self.calls:
                score = score * float("nan")
        return score


def test_a_nan_costs_one_update(whole: Path, tmp_path: Path) -> None:
    summary = tune(decaying(reward=Breaks(2)), tmp_path)
    assert summary["skipped_updates"] == 1 and summary["steps"] == 6
    assert not same(lora(whole), lora(tmp_path))


def test_a_reward_that_is_always_nan_stops_the_run_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 updates had a NaN .* first was the reward at step 1"):
        tune(make_tuning(reward=Breaks(), max_skipped_updates=2), tmp_path)


class Flat(nn.Module):
    """A reward that is cut off from the image."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.detach().mean((1, 2, 3))


def test_a_reward_without_gradient_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the reward \\(Flat\\) has no gradient with respect to the images"):
        tune(make_tuning(reward=Flat(), standardise=False), tmp_path)
    assert not (tmp_path / "base.safetensors").exists()


def test_a_truth_that_does_not_know_the_test_prompts_is_refused_before_the_run(tmp_path: Path) -> None:
    prompts = PromptSplits(PromptList(["a bird"]), PromptList(PROMPTS), PromptList(["a dog", "a cat"]))
    with pytest.raises(ValueError, match="does not support 2 of the prompts, .*'a dog'.*truth=None"):
        tune(make_tuning(truth=GoldScore(), prompts=prompts), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_every_member_of_a_mix_needs_a_gradient(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the reward \\(Flat\\) has no gradient with respect to the images"):
        tune(make_tuning(reward=Mix({"dark": Darkness(), "flat": Flat()})), tmp_path)


class NoOpinion(Darkness):
    """Darkness that is NaN for one prompt."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        score = super().forward(images, prompts)
        return torch.where(torch.tensor([prompt == PROMPTS[1] for prompt in prompts]), torch.nan, score)


def test_a_reward_that_is_nan_for_one_prompt_costs_the_updates_with_it(tmp_path: Path) -> None:
    summary = tune(make_tuning(reward=NoOpinion()), tmp_path)
    assert summary["steps"] == 6 and summary["skipped_updates"] == 3  # once an epoch
    assert all(weight.isfinite().all() for weight in lora(tmp_path).values())


class TooLarge(Darkness):
    """A reward that needs more memory than there is."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        if torch.is_grad_enabled() and len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().forward(images, prompts)


def test_out_of_memory_names_the_plan_and_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="Tried to allocate 20.00 MiB. Largest savings: .*`python -m t2ifb.plan`"
    ) as told:
        tune(make_tuning(reward=TooLarge()), tmp_path)
    text = str(told.value)
    assert "model.gradient_checkpointing=True, micro_batch_size=1, model.decoder_precision='bf16'" in text
    source = StableDiffusionSource(
        str(PIPELINE), gradient_checkpointing=True, precision="bf16", decoder_precision="bf16"
    )
    with pytest.raises(ValueError, match="out of memory") as told:
        tune(make_tuning(reward=TooLarge(), model=source, samples_per_batch=1), tmp_path / "less")
    assert "Largest savings: micro_batch_size=1. `python" in str(told.value)
    with pytest.raises(ValueError, match="out of memory") as told:
        tune(make_tuning(reward=TooLarge(), algorithm=DRaFT(2)), tmp_path / "through")
    assert "algorithm.checkpoint_steps=True" in str(told.value) and "t2ifb.plan" in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judges": {"kl": Darkness()}}, r"judges\['kl'\]: the name is reserved"),
        ({"judges": {"HPSv2.1": Darkness()}}, r"judges\['HPSv2.1'\]: a name has no dot"),
        ({"judges": {"values": Darkness()}}, r"judges\['values'\]: a name has no dot and is no attribute of a module"),
        ({"judges": {"reward": Darkness()}}, r"judges\['reward'\]: the name is reserved"),
        ({"judges": {"prompt": Darkness()}}, r"judges\['prompt'\]: the name is reserved"),
        ({"judges": {"sure": GoldScore()}, "truth": GoldScore()}, "for monitoring only"),
        ({"reward": Mix({"sure": GoldScore()}), "truth": GoldScore()}, "for monitoring only"),
        ({"judge_weights": {"rednes": 1.0}}, "expected one for each of the judges redness, none negative"),
        ({"judge_weights": {"redness": 0.0}}, "expected one for each of the judges redness, none negative"),
        ({"judge_weights": {"redness": -1.0}}, "expected one for each of the judges redness, none negative"),
    ],
)
def test_neither_the_truth_nor_a_name_that_is_taken_is_a_judge(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuning(**changes)


class Phases(lightning.Callback):
    """Notes updates and validations."""

    def __init__(self, phases: list[str]) -> None:
        self.phases = phases

    def on_train_batch_start(self, *_: Any) -> None:
        self.phases.append("update")

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.phases.append("validation")


@pytest.mark.slow
def test_the_recipe_of_a_gpu_runs_on_a_cpu_and_moves_every_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen weights in fp16 and trainer.precision=16-mixed, as in the recipe of sd15: both are bf16 on a CPU."""
    phases: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: phases.append("freed"))
    half = StableDiffusionSource(str(PIPELINE), precision="fp16", gradient_checkpointing=True)
    summary = tune(make_tuning(model=half), tmp_path, callbacks=[Phases(phases)], precision="16-mixed")
    first = phases.index("update")
    assert phases[:first] == ["freed"] * 3  # before and after rounding was measured, and by Lightning
    assert phases[first:] == ["update", "update", "freed", "validation", "freed"] * 3
    assert summary["precision"] == "bf16-mixed" and summary["skipped_updates"] == 0
    assert summary["device"] == {"name": "cpu", "tf32": False}
    weights = lora(tmp_path)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert summary["rounding_floor_kl"] > 0


def test_the_model_card_has_recipe_figures_and_curves(whole: Path) -> None:
    card = " ".join((whole / "export" / "README.md").read_text().split())
    for text in ("| algorithm | ReFL(", "alpha=1.0, beta=1e-06", "| base model |", "AdamW {'lr': 0.001}", "safety"):
        assert text in card
    assert "t2ifb/shapes/weights/pipeline" in card and "| reward | Darkness, reward (SHA-256 " in card
    assert str(PIPELINE) not in card and "/home" not in card
    assert "| redness |" in card and "(tuning_curves.png)" in card
    assert (whole / "export" / "tuning_curves.png").stat().st_size > 5000


def test_a_checkpoint_of_another_rank_is_refused(unfinished: Path) -> None:
    with pytest.raises(ValueError, match="another rank"):
        tune(guided(truth=GoldScore(), lora=LoRA(rank=2)), unfinished, resume=True)


def test_a_run_starts_from_the_adapters_of_another(whole: Path, tmp_path: Path) -> None:
    """The base model, from which the KL is measured, has no adapters. A resumed run does not read its start again."""
    still: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.0), "epochs": 1}
    summary = tune(make_tuning(start_from=whole, **still), tmp_path)
    start = lora(whole)
    assert all(torch.equal(weight, start[name]) for name, weight in lora(tmp_path).items())
    assert summary["test_kept"]["kl"] > 0 and read_metrics(tmp_path / "metrics.csv")[0]["val/kl"] == 0
    assert f"adapters of {whole.name}" in (tmp_path / "export" / "README.md").read_text()
    (tmp_path / "summary.json").unlink()
    tune(make_tuning(start_from="gone", **still), tmp_path, resume=True)
    assert all(torch.equal(weight, start[name]) for name, weight in lora(tmp_path).items())


@pytest.mark.slow
def test_a_run_on_preference_pairs_learns_them_and_encodes_their_images_once(tmp_path: Path) -> None:
    rankings = FolderDataset({"train": make_split(tmp_path / "pictures", "train", [(1, 2, 3), (2, 1)])})
    offline: dict[str, Any] = {"algorithm": DPO(group_size=None, beta_dpo=100.0), "rankings": rankings}
    for name in ("one", "two"):
        tuner = make_tuning(**offline, cache_folder=tmp_path / "cache", batch_size=2, epochs=5)
        summary = tune(tuner, tmp_path / name)
        assert summary["steps"] == 10
        assert read_metrics(tmp_path / name / "metrics.csv")[-1]["train/accuracy"] > 0.5
    one, two = (lora(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
    (stored,) = (tmp_path / "cache" / "latents").glob("*-fp32")
    assert (stored / "encoder.json").exists()


def test_another_batch_size_is_refused_on_resume(unfinished: Path) -> None:
    with pytest.raises(ValueError, match="batch_size was 2 and is 1"):
        tune(guided(truth=GoldScore(), batch_size=1), unfinished, resume=True)


class AnotherDarkness(Darkness):
    """A judge that agrees with the reward; the reward itself is no judge."""


def test_the_checkpoint_that_the_judges_prefer_is_kept(tmp_path: Path) -> None:
    judges = {"dark": AnotherDarkness(), "against": Brightness()}
    summary = tune(make_tuning(judges=judges, judge_weights={"dark": 0.4, "against": 0.0}), tmp_path)
    assert summary["best_step"] == 6 and summary["kept"] == "tuned"
    assert summary["judge_weights"] == {"dark": 0.4, "against": 0.0}
    assert summary["test_kept"].keys() >= {"dark", "against"}  # a judge without weight is still asked
    assert {"val/dark", "val/against"} <= read_metrics(tmp_path / "metrics.csv")[0].keys()
    assert "No checkpoint" not in (tmp_path / "export" / "README.md").read_text()


def test_a_run_that_over_optimises_says_so(tmp_path: Path) -> None:
    bright = [f"a {thing} on a white background" for thing in ("green star", "blue square", "red circle")]
    prompts = PromptSplits(PromptList(PROMPTS), PromptList(bright), PromptList(["a cyan circle on a black background"]))
    changes = {"prompts": prompts, "validation_prompts": 3, "optimizer": partial(torch.optim.AdamW, lr=5e-3)}
    summary = tune(make_tuning(judges={"against": Brightness()}, **changes), tmp_path)
    assert "From step 0 to 4: reward +" in summary["sentence"] and "over-optimisation" in summary["sentence"]


class Brightness(nn.Module):
    """What `Darkness` is against."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3))


def test_a_run_whose_judges_do_not_rise_keeps_its_first_checkpoint_and_can_be_stopped(tmp_path: Path) -> None:
    judges = {"against": Brightness()}
    summary = tune(make_tuning(judges=judges, epochs=20, patience=2), tmp_path)
    assert summary["steps"] == 2 + 2 * 2 and summary["best_step"] == 2
    assert summary["kept"] == "base"
    assert summary["sentence"].startswith("Kept the base model: no checkpoint is better by the held-out scorers.")
    assert "The best one, step 2, is exported: reward +" in summary["sentence"]
    card = (tmp_path / "export" / "README.md").read_text().split("\n")
    assert card[2].startswith(
        "**Keep the base model: no checkpoint of this run is better than it by the held-out scorers.**"
    )
    assert "the best one, step 2." in card[2] and lora(tmp_path)
