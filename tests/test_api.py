"""The public API: lazy names, strings as shorthand, and the same runs as the command line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

import t2ifb
from t2ifb import CLIPScore, FineTuner, ReFL, RewardModel, RewardTrainer
from t2ifb.config.reward_source import rewards_of
from t2ifb.data.datasets import open_dataset
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.prompts import prompt_splits
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.run_parts import prepare
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.weights import CLIP, IMAGE_REWARD, PIPELINE
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.discovery import typed_imports
from tests.conftest import CHECKOUT
from tests.finetuning.tuning_worlds import Darkness, make_tuning
from tests.training.worlds import brightness_world, same

NAMES = (
    "FineTuner", "RewardTrainer", "RewardModule", "FineTuningModule", "ReFLModule", "ReFL", "DRaFT", "RewardWeighted",
    "CLIPScore", "AestheticScore", "BLIPScore", "ImageReward", "PickScore", "HPSv2", "RewardModel", "Ensemble", "Mix",
    "CommandScore", "HTTPScore", "ModuleScore",
    "bradley_terry_loss", "gaussian_kl", "load_rankings", "RankedPrompt",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_listed_and_there(name: str) -> None:
    assert name in dir(t2ifb)
    assert getattr(t2ifb, name).__name__ == name


def test_names_are_loaded_on_first_use_and_unknown_ones_are_errors() -> None:
    code = (
        "import sys, t2ifb, t2ifb.scorers; dir(t2ifb); assert 'torch' not in sys.modules\n"
        "from t2ifb import ReFL; assert 'torch' in sys.modules\n"
        "assert not hasattr(t2ifb, 'Policy') and not hasattr(t2ifb, 'FineTuning')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)


def test_type_checkers_know_no_other_names_than_there_are() -> None:
    for file in ("__init__.py", "scorers/__init__.py"):
        assert typed_imports(CHECKOUT / "t2ifb" / file).keys() <= set(dir(t2ifb))


PROMPTS = [
    f"a {color} {shape} on a gray background" for color in ("red", "blue", "green") for shape in ("star", "circle")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rankings and prompts, and a reward run in Python with strings and defaults."""
    folder = tmp_path_factory.mktemp("api")
    brightness_world(folder / "db", prompts=6)
    for name, some in (("train", PROMPTS[:4]), ("validation", PROMPTS[4:5]), ("test", PROMPTS[5:])):
        (folder / f"{name}.txt").write_text("\n".join(some))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2IFB_DATA", str(folder / "data"))
        RewardTrainer(folder / "db", str(CLIP), folder / "runs" / "reward", batch_size=18, epochs=1).fit()
        yield folder


def command(folder: Path, name: str, *arguments: str) -> Path:
    """The same run as a command, with Python's defaults where the recipe of the setting has others."""
    run = folder / "commands" / name
    words = ["-m", "t2ifb.train", "logger=none", f"data_folder={folder / 'other data'}", f"hydra.run.dir={run}"]
    subprocess.run([sys.executable, *words, *arguments], cwd=CHECKOUT, check=True)
    return run


@pytest.mark.slow
def test_a_reward_is_the_one_that_the_command_trains(folder: Path) -> None:
    run = command(
        folder, "reward", "+experiment=reward_mlp", "dataset=imagereward_db", f"dataset.source={folder / 'db'}",
        "build=null", "algorithm.batch_size=18", "algorithm.epochs=1", "optimizer.lr=1e-5", "optimizer.weight_decay=0",
    )  # fmt: skip
    one, other = (load_file(each / "export" / "reward.safetensors") for each in (run, folder / "runs" / "reward"))
    assert same(one, other)


@pytest.mark.slow
def test_adapters_are_those_that_the_command_tunes(folder: Path) -> None:
    tuned = folder / "runs" / "tuned"
    judges = {"image_reward": partial(t2ifb.ImageReward.from_pretrained, source=str(IMAGE_REWARD)), "again": "latest"}
    summary = FineTuner(
        str(PIPELINE),
        "latest",
        {split: folder / f"{split}.txt" for split in ("train", "validation", "test")},
        tuned,
        ReFL(window=(0, 2), alpha=1.0, beta=0.01),
        sampling=Sampler(3, 1.0),
        judges=judges,
        batch_size=2,
        epochs=1,
        validate_every=2,
        images_per_prompt=1,
    ).fit()
    assert summary["steps"] == 2 and summary["judge_weights"] == {"image_reward": 1.0}
    assert rewards_of(tuned)[0]["source"] == str(folder / "runs" / "reward")
    assert rewards_of(tuned / "export") == rewards_of(tuned)
    assert len(list((folder / "data" / "baseline_cache").glob("*.safetensors"))) == 2
    run = command(
        folder, "tuned", "+experiment=refl", f"reward.source={folder / 'runs' / 'reward'}", "prompts=files",
        *(f"prompts.{split}.path={folder / split}.txt" for split in ("train", "validation", "test")),
        "algorithm.algorithm.window=[0,2]", "algorithm.algorithm.gradients_per_rollout=1", "algorithm.batch_size=2",
        "algorithm.epochs=1", "algorithm.validate_every=2", "algorithm.images_per_prompt=1",
        "algorithm.gradient_clip_norm=null", "algorithm.standardise=null", "optimizer.lr=1e-5",
        "optimizer.weight_decay=0.01", "sampling.num_inference_steps=3", "rollout.num_inference_steps=3",
        "algorithm.guidance_scales=[]", "algorithm.truth=null",
        *(f"judges.{name}=null" for name in ("clip_score", "aesthetic_score", "blip_score")),
    )  # fmt: skip
    one, other = (load_file(each / "export" / "pytorch_lora_weights.safetensors") for each in (run, tuned))
    assert same(one, other)
    found = json.loads((run / "summary.json").read_text())
    assert found["test_kept"].keys() == summary["test_kept"].keys()
    for name in ("reward", "image_reward", "kl"):
        assert found["test_kept"][name] == summary["test_kept"][name]


def test_a_finished_run_is_not_overwritten(folder: Path) -> None:
    with pytest.raises(ValueError, match="output_dir='.*reward': the run in it is finished"):
        RewardTrainer(folder / "db", str(CLIP), folder / "runs" / "reward").fit()


def test_a_resumed_run_keeps_its_reward(folder: Path, tmp_path: Path) -> None:
    def tuner(reward: Any = "latest", resume: bool = False) -> FineTuner:
        return make_tuning(reward=reward, output_dir=run.path, resume=resume, judges={})

    run, trainer = RunFolder(folder / "runs" / "begun"), partial(Trainer)
    prepare(tuner(), run, trainer)
    assert json.loads((run.path / "reward.json").read_text())["reward"]["source"] == str(folder / "runs" / "reward")
    newer = folder / "runs" / "newer"
    shutil.copytree(folder / "runs" / "reward", newer)
    prepare(tuner(resume=True), run, trainer)
    shutil.rmtree(newer)
    with pytest.raises(ValueError, match="reward: .* is not what the run was started with; start a new run"):
        prepare(tuner(Darkness(), resume=True), run, trainer)


def test_a_list_of_prompts_is_split_by_hash() -> None:
    texts = [f"prompt {number}" for number in range(40)]
    splits = prompt_splits([*texts, "Prompt  3"])
    found = {split: splits.of(split) for split in ("train", "validation", "test")}
    assert [len(found[split]) for split in ("validation", "test")] == [4, 4]
    assert sorted({*found["train"], *found["validation"], *found["test"]} - {"Prompt  3"}) == sorted(texts)
    assert prompt_splits(texts).of("test") == found["test"] != prompt_splits(texts, seed=1).of("test")


def test_a_folder_shows_what_data_set_it_is(folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_dataset(str(folder / "db")), ImageRewardDB)
    (tmp_path / "rankings.csv").write_text("prompt,image,rank\n")
    assert isinstance(open_dataset(tmp_path), OwnRankings)
    assert open_dataset("ymhao/HPDv2").__class__.__name__ == "HPDv2"
    assert open_dataset("yuvalkirstain/pickapic_v2").__class__.__name__ == "PickAPic"
    own = OwnRankings(tmp_path)
    assert open_dataset(own) is own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "nothing"}, "reward='nothing' is neither a file or folder, nor a hub id, nor one of the scorers"),
        ({"reward": "clip_score"}, r"reward='CLIPScore' needs source; give reward=CLIPScore.from_pretrained\(source="),
        ({"reward": "latest"}, "reward='latest': there is no finished reward run in .*train one with RewardTrainer"),
        ({"judges": {"mine": "nothing"}}, r"judges\['mine'\]='nothing' is neither"),
        ({"prompts": ["a", "A ", "b"]}, "prompts has 2 distinct prompts; expected at least one for each of train, val"),
        ({"prompts": {"train": ["a"]}}, "prompts has the keys train; expected train, validation, test"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"guidance_prompts": 0, "best_of": 0}, "guidance_prompts=0 must be at least 1; best_of=0 must be"),
        ({"guidance_scales": [0.5]}, "guidance_scales: 0.5 is below 1, which is no guidance"),
        ({"judge_weights": {"redness": -1.0}}, r"judge_weights=\{'redness': -1.0\}: expected one for each"),
        ({"diversity": "ViT"}, "encoder='ViT' is neither a folder nor <model>/<pretrained>"),
        ({"rankings": "nowhere"}, "dataset='nowhere' is not the folder or hub id of a known data set"),
    ],
)
def test_messages_name_the_argument(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuning(output_dir=tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "16-true"},
            "16-true would round .* use trainer.precision=16-mixed, and model.precision=",
        ),
        ({"max_epochs": 3}, "trainer.max_epochs is set by the run: give epochs="),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val is set by the run: give gradient_clip_norm="),
        ({"accumulate_grad_batches": 2}, "use batch_size=…, and micro_batch_size="),
    ],
)
def test_messages_of_a_run_name_the_argument(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_tuning(output_dir=tmp_path / "run", trainer=partial(Trainer, accelerator="cpu", **options)).fit()


def test_names_of_models_are_sources() -> None:
    tuner = make_tuning(model=str(PIPELINE), sampling=None, rollout=None, diversity="ViT-L-14-quickgelu/openai")
    assert tuner.model == StableDiffusionSource(str(PIPELINE)) and tuner.sampling == Sampler(40, 7.5)
    assert tuner.rollout == Sampler(40, 7.5, unconditional="detached")
    assert tuner.diversity == CLIPSource("ViT-L-14-quickgelu", "openai")
    assert isinstance(CLIPScore(CLIPSource(f"local-dir:{CLIP}")), torch.nn.Module) and RewardModel.name
