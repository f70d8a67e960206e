"""What a run of Python records of its arguments."""

import json
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate

from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.prompts import PromptList, PromptSplits, RankingPrompts
from t2ifb.diffusion.path import cps_variance
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.schedule import flow
from t2ifb.finetuning.grpo import GRPO
from t2ifb.reporting.settings import KNOWN, flat
from t2ifb.scorers.heads import MLPHead
from t2ifb.training.settings import described
from tests.finetuning.tuning_worlds import Darkness, make_tuning
from tests.training.worlds import make_training


def test_a_fine_tuning_run_has_the_keys_of_the_command_line() -> None:
    found = make_tuning(algorithm=GRPO(group_size=4), seed=3).settings()
    settings = flat(json.loads(json.dumps(found)))
    assert all(key in settings for key in KNOWN)
    expected = {
        "algorithm._target_": "FineTuner", "algorithm.alpha": 1.0, "algorithm.batch_size": 2, "optimizer.lr": 1e-3,
        "algorithm.algorithm.group_size": 4, "reward._target_": "Darkness", "judges.redness._target_": "Redness",
        "sampling.num_inference_steps": 4, "rollout.guidance_scale": 1.0, "seed": 3, "algorithm.lora.rank": 4,
    }  # fmt: skip
    assert {key: settings.get(key) for key in expected} == expected
    assert str(settings["diffusion.source"]).endswith("pipeline")
    assert not any("output_dir" in key or "resume" in key for key in settings)


def test_a_reward_run_has_the_keys_of_the_command_line(tmp_path: Path) -> None:
    training = make_training(tmp_path, batch_size=29)
    settings = flat(json.loads(json.dumps(training.settings())))
    assert settings["algorithm._target_"] == "RewardTrainer" and settings["algorithm.batch_size"] == 29
    assert {"encoder.model", "head._target_", "optimizer._target_", "seed", "dataset._target_"} <= settings.keys()


def test_components_are_their_class_and_plain_arguments() -> None:
    assert described(partial(MLPHead, hidden=(8, 4), dropout=[])) == {
        "_target_": "t2ifb.scorers.heads.MLPHead", "_partial_": True, "hidden": [8, 4], "dropout": [],
    }  # fmt: skip
    assert described(Path("a")) == "a" and described({"x": None}) == {"x": None}
    assert described(torch.optim.SGD) == {"_target_": "torch.optim.sgd.SGD", "_partial_": True}
    assert described(torch.float32) == {"_target_": "torch.dtype"}
    assert described(Darkness()) == {"_target_": f"{Darkness.__module__}.Darkness"}


def test_what_draws_images_can_be_built_again(tmp_path: Path) -> None:
    """`annotate run=` draws with the sampling and the prompts of a run that Python started."""
    by_positions = partial(flow, variance=partial(cps_variance, 0.5))
    for sampler in (Sampler(4, 2.0, partial(flow, variance=partial(cps_variance, level=0.5))), Sampler(4, 7.5)):
        again = instantiate(described(sampler))
        assert described(again) == described(sampler)
        assert callable(again.schedule)
    assert instantiate(described(by_positions)).keywords["variance"].args == (0.5,)
    lists = PromptSplits(PromptList(["a"]), PromptList(["b", "c"]), RankingPrompts(ImageRewardDB(tmp_path), "test"))
    again = instantiate(described(lists))
    assert again.validation.texts == ["b", "c"]
    assert isinstance(again.test.dataset, ImageRewardDB)
    assert Path(again.test.dataset.source) == tmp_path
