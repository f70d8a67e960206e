"""Every experiment of `conf/`, as typed, by its own command, on a few pictures in ImageRewardDB's layout."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
import yaml

from t2ifb.config.command import run
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from t2ifb.config.paths import conf_folder
from t2ifb.evaluate import evaluate
from t2ifb.scorers import RewardModel
from t2ifb.shapes.weights import PIPELINE
from t2ifb.train import train
from tests.scorers.parts import tiny_clip
from tests.scorers.published_parts import write_published
from tests.shapes.parts import write_database

TASKS = {"train": train, "evaluate": evaluate}


def algorithm_of(name: str) -> str | None:
    """The algorithm that an experiment's file, or one that it builds on, chooses; only `train` has algorithms.

    Read from the files, as composing each experiment would take seconds whenever tests are collected.
    """
    entries = yaml.safe_load((conf_folder() / "experiment" / f"{name}.yaml").read_text())["defaults"]
    chosen = [entry.get("override /algorithm") for entry in entries if isinstance(entry, dict)]
    others = [algorithm_of(entry) for entry in entries if entry in NAMES]
    return next(filter(None, [*chosen, *others]), None)


DOMAINS = sorted(file.stem for file in (conf_folder() / "domain").glob("*.yaml"))
NAMES = sorted(file.stem for file in (conf_folder() / "experiment").glob("*.yaml"))
EXPERIMENTS = {
    "train": [name for name in NAMES if algorithm_of(name)],
    "evaluate": [name for name in NAMES if not algorithm_of(name)],
}
ROUNDS = ["iterate"]
"""Rounds of several runs; `tests/test_train.py` has them."""
TUNINGS = [name for name in EXPERIMENTS["train"] if algorithm_of(name) != "reward" and name not in ROUNDS]
ONE_UPDATE = ("algorithm.algorithm.updates=1", "algorithm.algorithm.group_size=2")
OWN_SAMPLES = {
    "grpo": ONE_UPDATE,
    "dpo": (*ONE_UPDATE, "algorithm.algorithm.best=1", "algorithm.algorithm.pairs_per_update=2"),
    "best_of_n": (*ONE_UPDATE, "algorithm.algorithm.samples_per_update=2"),
    "nft": ONE_UPDATE,
    "reward_weighted": ("algorithm.algorithm.group_size=2",),
    "guidance_distillation": (),
}
"""Arguments that make an experience one small update."""
GUIDED = ("grpo", "dpo", "best_of_n", "nft")
"""Algorithms that tune with guidance in the embedded domains."""
EMBEDDED = ("shapes", "shapes_flow")
USUAL = {"sd15": 7.5, "shapes": 4.0, "shapes_flow": 2.5}
"""Usual guidance scale of each domain."""
REWARDS = [name for name in EXPERIMENTS["train"] if name not in (*TUNINGS, *ROUNDS)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_database(tmp_path_factory.mktemp("db"))


def go(monkeypatch: pytest.MonkeyPatch, folder: Path, command: str, *arguments: str) -> Path:
    """Run `python -m t2ifb.<command>` in a folder; gives the run's folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2IFB_DATA", str(folder / "data"))
    monkeypatch.setattr(sys, "argv", [command, *arguments, "build=null"])
    before = set(folder.glob("outputs/*/*/*/summary.json"))
    assert run(command, TASKS[command]) == 0
    (summary,) = set(folder.glob("outputs/*/*/*/summary.json")) - before
    return summary.parent


def take_two_steps(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Path:
    """Train in a folder; all comparisons make one batch, two epochs two updates."""
    options = ["algorithm.batch_size=100", "algorithm.epochs=2", "logger=none", "trainer.accelerator=cpu"]
    return go(monkeypatch, folder, "train", *arguments, *options)


def in_domain(domain: str, folder: Path, database: Path) -> list[str]:
    """Arguments for a domain on the small data, with a tiny encoder where the real one would be downloaded."""
    arguments = [f"domain={domain}", f"dataset.source={database}"]
    if domain in EMBEDDED:
        return arguments
    return [*arguments, f"encoder.model=local-dir:{tiny_clip(folder / 'clip')}", "encoder.pretrained=null"]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_right_in_every_domain(name: str) -> None:
    command = "train" if name in EXPERIMENTS["train"] else "evaluate"
    for domain in DOMAINS:
        (composed,) = compose_all(command, [f"+experiment={name}", f"domain={domain}"])
        check(composed)
        if command == "train":
            assert ("reward" in composed.config.algorithm) == (name not in REWARDS)
            assert (composed.config.iteration is not None) == (name in ROUNDS)


class World(NamedTuple):
    """A domain, a folder, arguments that work there, and a run of `reward_mlp` in it."""

    domain: str
    folder: Path
    arguments: list[str]
    trained: Path


@pytest.fixture(scope="module", params=["shapes", "sd15", pytest.param("shapes_flow", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, database: Path) -> World:
    folder = tmp_path_factory.mktemp(request.param)
    arguments = in_domain(request.param, folder, database)
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained = take_two_steps(monkeypatch, folder, "+experiment=reward_mlp", *arguments)
    return World(request.param, folder, arguments, trained)


@pytest.mark.parametrize("experiment", REWARDS)
def test_every_reward_experiment_takes_two_steps(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    domain, _, arguments, folder = world
    if domain == "shapes_flow":
        pytest.skip("data and scorers are those of shapes")
    if experiment != "reward_mlp":
        folder = take_two_steps(monkeypatch, tmp_path, f"+experiment={experiment}", *arguments)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    summary = json.loads((folder / "summary.json").read_text())
    tested = ["test", "compositional"] if domain == "shapes" else ["test"]
    for split in tested:
        assert {"random", "CLIP Score", "this model"} <= summary[f"{split}/table"].keys()
        assert (folder / f"table_{split}.md").exists()
    if domain == "shapes":
        assert summary["test/table"]["annotator ceiling"] == 1.0
        assert summary["test/by_part"].keys() == {"alignment", "fidelity"}
        assert summary["test/by_part"]["alignment"]["annotator ceiling"] > 0.9  # of clean pictures gold is alignment


@pytest.fixture(scope="module")
def tunable(world: World) -> World:
    """The same with what fine-tuning needs besides."""
    domain, folder, arguments, trained = world
    if domain in EMBEDDED:
        few = ["prompts.train.count=40", "prompts.validation.count=2", "prompts.test.count=2"]
        return World(domain, folder, [*arguments, *few], trained)
    (folder / "prompts.json").write_text(json.dumps([{"text": f"a red {n}", "image": ""} for n in range(40)]))
    published = [name for name in write_published(folder / "published") if not name.startswith("scorers.clip")]
    judges = [name.replace("scorers.", "judges.") for name in published if "aesthetic" in name or "image_rew" in name]
    files = [f"prompts.train.path={folder / 'prompts.json'}", f"diffusion.source={PIPELINE}"]
    plain = ["diffusion.precision=fp32", "trainer.precision=32-true"]
    return World("sd15", folder, [*arguments, *files, *plain, *judges], trained)


@pytest.mark.parametrize(
    "experiment", [name if name == "refl" else pytest.param(name, marks=pytest.mark.slow) for name in TUNINGS]
)
def test_every_fine_tuning_takes_two_steps_by_the_newest_reward_run_or_its_own(
    monkeypatch: pytest.MonkeyPatch, tunable: World, experiment: str
) -> None:
    domain, tmp_path, arguments, trained = tunable
    if domain == "sd15" and experiment in OWN_SAMPLES:
        pytest.skip("the domain makes no difference to it, and shapes is faster")
    quick = [
        "rollout.num_inference_steps=18", "sampling.num_inference_steps=2", "algorithm.batch_size=2",
        "algorithm.epochs=0.1", "prompts.most=2", "algorithm.validation_prompts=2", "logger=none",
        "trainer.accelerator=cpu", "algorithm.guidance_scales=[2]", "algorithm.best_of=2",
        *OWN_SAMPLES.get(experiment, ()),
    ]  # fmt: skip
    folder = go(monkeypatch, tmp_path, "train", f"+experiment={experiment}", *arguments, *quick)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    reward = json.loads((folder / "reward.json").read_text())["reward"]
    judges = {"clip_score", "aesthetic_score", "image_reward"}
    if experiment == "refl_overoptimised":
        assert "AestheticScore" in reward["_target_"]
        judges -= {"aesthetic_score"}
    else:
        assert reward["source"] == str(trained)
    assert judges | {"reward"} <= summary["test_kept"].keys()
    assert ("aesthetic_score" in summary["test_kept"]) == ("aesthetic_score" in judges)
    assert ("gold/alignment" in summary["test_kept"]) == (domain in EMBEDDED)
    assert (folder / "export" / "pytorch_lora_weights.safetensors").exists()
    found = json.loads((folder / "judge_weights.json").read_text())  # by the validation rankings
    assert summary["judge_weights"] == found["weights"] and found["accuracies"].keys() == found["weights"].keys()
    assert judges <= found["weights"].keys() <= summary["test_kept"].keys()
    own = USUAL[domain] if domain == "sd15" or experiment in GUIDED else 1.0
    assert summary["guidance"]["scales"] == sorted([2.0, own])
    assert summary["sentence"].startswith(summary["guidance"]["sentence"])
    if experiment == "refl":
        compare_with_base(monkeypatch, tmp_path, folder, domain, arguments)


def compare_with_base(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tuned: Path, domain: str, arguments: list[str]
) -> None:
    """Figure 8 of a tuned run: the reward that it was trained on is among the scorers, and marked."""
    known = ("domain=", "dataset.", "encoder.", "prompts.", "diffusion.")
    given = [argument for argument in arguments if argument.startswith(known)]
    if domain == "sd15":
        given += write_published(folder / "published for figure 8")
    quick = ["sampling.num_inference_steps=2", "prompts.most=2", "evaluation.images_per_prompt=2", "device=cpu"]
    table = go(monkeypatch, folder, "evaluate", "+experiment=figure8", f"run={tuned}", *given, *quick)
    (rows,) = json.loads((table / "summary.json").read_text())["figure8"].values()
    assert {"clip_score", "aesthetic_score", "blip_score", "image_reward", "reward", "diversity"} <= rows.keys()
    assert ("alignment" in rows) == (domain in EMBEDDED)
    assert [name for name, row in rows.items() if row["trained_on"]] == ["reward"]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS["evaluate"] if name != "figure8"])
def test_every_evaluation_judges_a_reward_run(monkeypatch: pytest.MonkeyPatch, world: World, experiment: str) -> None:
    domain, tmp_path, arguments, trained = world
    if domain == "shapes_flow":
        pytest.skip("data and scorers are those of shapes")
    arguments = arguments + (write_published(tmp_path / "published for table 1") if domain == "sd15" else [])
    folder = go(monkeypatch, tmp_path, "evaluate", f"+experiment={experiment}", "device=cpu", *arguments)
    assert folder.parent == tmp_path / "outputs" / domain / experiment
    assert not (folder / "checkpoints").exists()
    table, summary = (json.loads((run / "summary.json").read_text()) for run in (folder, trained))
    assert table["sources"]["reward_model"] == str(trained)
    assert table["data"] == summary["data"]["splits"]["test"]
    ours = table["table"]
    assert ours["reward model"] == pytest.approx(summary["test/accuracy"], abs=0.1)
    assert ours["random"] == summary["test/table"]["random"]
    assert ours.keys() >= {"CLIP Score", "Aesthetic Score", "BLIP Score", "ImageReward"}
    assert (ours.keys() >= {"PickScore", "HPSv2.1"}) == (domain == "sd15")
    assert ("annotator ceiling" in ours) == (domain == "shapes")
    assert ("57.76" in (folder / "table1.md").read_text()) == (domain == "sd15")


@pytest.mark.huge
def test_the_reports_recipe_with_vit_l_14_from_a_local_file(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-L-14-quickgelu").state_dict(), weights := tmp_path / "vit_l_14.pt")
    folder = take_two_steps(
        monkeypatch, tmp_path, "+experiment=reward_mlp", "domain=sd15", f"dataset.source={database}",
        f"encoder.pretrained={weights}",
    )  # fmt: skip
    published = json.loads((folder / "table_test.json").read_text())
    assert {row["published"] for row in published} >= {54.82, 57.35, 57.76, 65.14, 62.82}
    reward = RewardModel.from_pretrained(folder)
    images = torch.rand(2, 3, 300, 200, requires_grad=True)
    reward(images, ["a cat", "a dog"]).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
