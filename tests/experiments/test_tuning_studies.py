"""The studies of fine-tuning: valid grids, the supervised control, and the whole way on a few images."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.algorithms import study as algorithms
from experiments.alpha_beta_lr import study as alpha_beta_lr
from experiments.beyond_guidance import study as beyond_guidance
from experiments.gradients_per_rollout import study as gradients_per_rollout
from experiments.iteration import study as iteration
from experiments.limits import study as limits
from experiments.limits import supervised
from experiments.overoptimisation import study as overoptimisation
from experiments.reward_models import study as reward_models
from experiments.runs import Run
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.shapes.training.loop import fit
from t2ifb.shapes.weights import PIPELINE
from tests.conftest import run_in
from tests.experiments.conftest import Drawn
from tests.finetuning.tuning_worlds import FEW, export_reward

STUDIES: list[Any] = [algorithms, limits, gradients_per_rollout, overoptimisation, beyond_guidance, iteration]
UNFINISHED = [iteration]


@pytest.mark.parametrize(("study", "variant"), [(study, variant) for study in STUDIES for variant in study.VARIANTS])
def test_every_variant_is_a_valid_run(study: Any, variant: str) -> None:
    schema.register()
    (composed,) = compose_all("train", list(study.run_of(variant, 0).overrides))
    check(composed)


@pytest.mark.parametrize("study", STUDIES)
def test_variants_have_folders_of_their_own(study: Any) -> None:
    assert len({study.run_of(variant, seed).path for variant in study.VARIANTS for seed in (0, 1)}) == 2 * len(
        study.VARIANTS
    )


@pytest.mark.parametrize(
    "study", [*(study for study in STUDIES if study not in UNFINISHED), alpha_beta_lr, reward_models]
)
def test_the_picture_shows_the_figures_that_are_committed(study: Any, tmp_path: Path, drawn: Drawn) -> None:
    result = json.loads((study.HERE / "result.json").read_text())
    study.draw(result, tmp_path / "result.png")
    settings = result.get("settings") or list(result.get("variants", result).values())
    if study is alpha_beta_lr:
        settings = [setting[state] for setting in settings for state in ("kept", "last")]
    found = [each["test"] if study is reward_models else each["gain"]["gold"] for each in settings]
    assert len(found) > 2
    for each in found:
        assert drawn.shows(*(at.get("over_seeds", at)["mean"] for at in (each if isinstance(each, list) else [each])))


def test_supervised_tuning_learns_and_what_is_finished_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RENDERS": 40, "STEPS": 3}.items():
        monkeypatch.setattr(supervised, name, value)
    losses: list[float] = []

    def measured(
        name: str, adapters: nn.Module, loss_at: Callable[[int], torch.Tensor], folder: Path, **how: Any
    ) -> None:
        for done in (False, True):
            with torch.no_grad():
                losses.append(sum(loss_at(step).item() for step in range(3)))
            if not done:
                fit(name, adapters, loss_at, folder, **how)

    monkeypatch.setattr(supervised, "fit", measured)

    def tuned(seed: int) -> list[Tensor]:
        model = StableDiffusionSource(str(PIPELINE)).load()
        adapters = LoRA().add(model)
        supervised.tune(model, adapters, tmp_path, seed)
        return [weight.detach() for weight in adapters]

    once = tuned(seed=0)
    assert losses[1] < losses[0]
    assert all(torch.equal(one, two) for one, two in zip(once, tuned(seed=1), strict=True))


@pytest.mark.slow
def test_a_study_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Drawn) -> None:
    study: Any = overoptimisation
    first = next(iter(study.VARIANTS))
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "VARIANTS", {first: []})
    reward = export_reward(tmp_path / "reward")

    def run_of(variant: str, seed: int) -> Run:
        return Run(tmp_path / f"run{seed}", (*FEW, f"seed={seed}", f"reward.source={reward}"))

    monkeypatch.setattr(study, "run_of", run_of)
    monkeypatch.setattr(study, "reported", lambda seed: run_of(first, seed))
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    begun = run_of(first, 0)
    done = run_in(tmp_path, begun.module, *begun.overrides, "logger=none", f"hydra.run.dir={begun.path}")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["study", "--seeds", "0", "1"])  # the study is to train the second
    study.main()
    result = json.loads((tmp_path / "result.json").read_text())
    figures = result["variants"][first]
    assert figures["steps"] == [0, 1, 2]
    for name in ("reward", "gold", "image_reward"):
        assert len(figures["gain"][name]) == 3 and figures["gain"][name][0]["over_seeds"]["mean"] == 0
    assert figures["kl"][0] == [0, 0] and min(figures["kl"][2]) > 0
    assert drawn.shows(*(at["over_seeds"]["mean"] for at in figures["gain"]["gold"]))
