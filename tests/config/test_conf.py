"""The shipped configuration: the report's values, and arguments that the components take."""

import re
import textwrap
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from t2ifb.config.compose import compose_all
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import check
from t2ifb.config.paths import conf_folder
from t2ifb.shapes.annotators import SIZES

OPTIONS = {
    group: sorted(file.stem for file in (conf_folder() / group).glob("*.yaml"))
    for group in (
        "domain", "head", "logger", "optimizer", "trainer", "dataset", "encoder", "scorer",
        "diffusion", "prompts", "sampling", "scheduler",
    )
}  # fmt: skip


@cache
def training(*overrides: str) -> DictConfig:
    """A configuration of `train` that several tests read."""
    return compose_all("train", overrides)[0].config


def test_sd15_has_the_reports_values() -> None:
    """PAPER.md, stage 1 and table 1."""
    config = compose_all("train", ["+experiment=reward_mlp", "domain=sd15"])[0].config
    assert config.encoder.model == "ViT-L-14-quickgelu"
    assert config.encoder.pretrained == "openai"
    assert list(config.head.hidden) == [1024, 256, 128, 32]
    assert list(config.head.dropout) == [0.2, 0.2, 0.1]
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert list(config.optimizer.betas) == [0.9, 0.99]
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.weight_decay == 0.0
    assert config.algorithm.batch_size == 256
    assert config.algorithm.epochs == 20
    assert config.dataset.source == "zai-org/ImageRewardDB"
    assert config.dataset.subset == "8k"
    assert dict(config.dataset.published) == {
        "CLIP Score": 54.82,
        "Aesthetic Score": 57.35,
        "BLIP Score": 57.76,
        "ImageReward": 65.14,
        "the report's MLP": 62.82,
    }


def test_sd15_tunes_with_the_reports_values() -> None:
    """PAPER.md, stage 2; guidance and eta are not in it."""
    config = compose_all("train", ["+experiment=refl", "domain=sd15"])[0].config
    tuning = config.algorithm
    assert config.diffusion.source == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (tuning.alpha, tuning.beta) == (100.0, 0.01)
    assert (tuning.batch_size, tuning.epochs) == (1, 10)
    assert (tuning.lora.rank, tuning.lora.lora_alpha) == (4, None)
    assert tuning.lora.targets is None  # the attention projections of the model
    assert tuning.rollout.num_inference_steps == 40
    assert tuning.algorithm.window is None  # the last ten
    assert tuning.algorithm.gradients_per_rollout == 1
    assert tuning.gradient_clip_norm is None
    assert tuning.standardise is None
    assert config.optimizer._target_ == "torch.optim.AdamW"
    assert config.optimizer.lr == 1e-5
    assert (list(config.optimizer.betas), config.optimizer.eps) == ([0.9, 0.999], 1e-8)
    assert config.optimizer.weight_decay == 0.01
    assert config.trainer.precision == "16-mixed"
    assert config.scheduler.eta == 1.0


def test_sd15_has_one_guidance_scale() -> None:
    """Adapters that are tuned at one scale and used at another are worse than none."""
    for command, experiment in (("train", "refl"), ("plan", "refl"), ("evaluate", "figure8")):
        for overrides, scale in (([], 7.5), (["usual_guidance_scale=5"], 5.0)):
            config = compose_all(command, [f"+experiment={experiment}", "domain=sd15", *overrides])[0].config
            samplers = [config[name] for name in ("rollout", "sampling") if name in config]
            if "algorithm" in config:
                samplers += [config.algorithm.rollout, config.algorithm.sampling]
            assert samplers
            assert {sampler.guidance_scale for sampler in samplers} == {scale}
    assert compose_all("train", ["+experiment=refl", "domain=sd15"])[0].config.rollout.unconditional == "detached"


def test_the_domains_share_the_algorithm_and_the_head() -> None:
    shapes, sd15 = training("domain=shapes"), training("domain=sd15")
    assert shapes.algorithm._target_ == sd15.algorithm._target_
    assert shapes.head == sd15.head
    assert shapes.build is not None
    assert sd15.build is None


@pytest.mark.parametrize("domain", OPTIONS["domain"])
def test_a_new_algorithm_is_one_yaml(domain: str, tmp_path: Path) -> None:
    """The one in docs/extend/algorithm.md, with a class that is there. No recipe has its name."""
    page = (conf_folder().parent / "docs" / "extend" / "algorithm.md").read_text()
    (block,) = re.findall(r"^ {4}```yaml\n(.*?)^ {4}```", page, re.DOTALL | re.MULTILINE)
    text = (
        textwrap.dedent(block)
        .replace("my_algorithm.MyAlgorithm", "draft.DRaFT")
        .replace("clip: 1.0e-3", "last_steps: 2")
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "my_algorithm.yaml").write_text(text)
    (composed,) = compose_all("train", ["+experiment=my_algorithm", f"domain={domain}"], config_dir=str(tmp_path))
    check(composed)
    assert composed.config.algorithm.algorithm.last_steps == 2
    assert composed.config.judges


def test_an_evaluation_is_chosen_by_its_experiment() -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose_all("evaluate", [])[0])
    (error,) = caught.value.errors
    assert error.startswith("evaluation: ")
    assert "+experiment=<option>" in error


def test_the_published_figures_stand_beside_the_table_too() -> None:
    train, table = (
        compose_all(command, [f"+experiment={experiment}", "domain=sd15"])[0].config
        for command, experiment in (("train", "reward_mlp"), ("evaluate", "table1"))
    )
    assert train.dataset.published == table.evaluation.published
    assert compose_all("evaluate", ["+experiment=table1"])[0].config.evaluation.published is None


def test_scorers_are_added_and_left_out_on_the_command_line() -> None:
    def scorers(*overrides: str) -> list[str]:
        composed = compose_all("evaluate", ["+experiment=table1", *overrides])[0]
        check(composed)
        return [name for name, scorer in composed.config.scorers.items() if scorer is not None]

    published = ["clip_score", "aesthetic_score", "blip_score", "image_reward"]
    assert scorers() == [*published, "reward_model", "gold"]
    mine = ("+scorer@scorers.mine=reward_model", "scorers.mine.source=somewhere")
    assert scorers(*mine) == [*published, "reward_model", "gold", "mine"]
    assert scorers("~scorers.gold", "~scorers.reward_model") == published
    assert scorers("dataset=hpdv2") == [*published, "reward_model"]  # the truth knows its own prompts only
    assert scorers("domain=sd15") == [*published, "pick_score", "hps_v2", "reward_model"]
    with pytest.raises(ConfigError, match=r"scorers\.mine: not a component.*give \+scorer@scorers\.mine=<option>"):
        scorers("+scorers.mine=reward_model")


@pytest.mark.parametrize("group", ["head", "logger", "optimizer", "trainer", "dataset", "encoder"])
def test_every_option_is_right(group: str) -> None:
    for option in OPTIONS[group]:
        check(compose_all("train", [f"{group}={option}"])[0])


@pytest.mark.parametrize("size", SIZES)
def test_each_size_of_shapes_has_a_folder_of_its_own(size: str) -> None:
    for command in ("train", "prepare", "evaluate"):
        usual, other = (compose_all(command, arguments)[0].config for arguments in ([], [f"build.size={size}"]))
        assert {**usual.dataset, "source": ""} == {**other.dataset, "source": ""}
        assert other.build.folder.endswith(f"shapes-2-{size}")


def test_shapes_that_were_made_before_are_used_without_building_them() -> None:
    usual, other = (compose_all("train", arguments)[0] for arguments in ([], ["build=null"]))
    assert other.config.build is None and other.config.dataset.source == usual.config.dataset.source
    assert not other.errors


@pytest.mark.parametrize("domain", OPTIONS["domain"])
@pytest.mark.parametrize("dataset", [n for n in OPTIONS["dataset"] if n not in ("shapes", "imagereward_db")])
def test_what_belongs_to_a_data_set_does_not_come_with_another(domain: str, dataset: str) -> None:
    """Neither another set's test splits, nor its truth, nor what was published about it."""
    facts = {"test_splits", "ceiling", "ceiling_parts", "published"}
    own, other = training(f"domain={domain}"), training(f"domain={domain}", f"dataset={dataset}")
    assert not facts & other.dataset.keys()
    assert facts & own.dataset.keys() == ({"published"} if domain.startswith("sd") else facts - {"published"})


def test_a_mixture_is_put_together_on_the_command_line() -> None:
    sets = ["+dataset@dataset.datasets.a=hpdv2", "+dataset@dataset.datasets.b=own_rankings"]
    values = ["dataset.datasets.b.source=somewhere", "+dataset.weights.b=0.25", "dataset.evaluated=[a]"]
    composed = compose_all("train", ["+experiment=reward_mlp", "dataset=mixture", *sets, *values])[0]
    check(composed)
    assert composed.config.dataset.datasets.a == compose_all("train", ["dataset=hpdv2"])[0].config.dataset
    assert composed.config.dataset.datasets.b.source == "somewhere"


@pytest.mark.parametrize("scorer", OPTIONS["scorer"])
def test_every_scorer_is_right(scorer: str) -> None:
    needed = {
        "reward_model": ["scorer.source=somewhere"],
        "ensemble": ["scorer.sources=[one,two]"],
        "http": ["scorer.url=http://127.0.0.1:8000/score", "scorer.token_variable=JUDGE_TOKEN"],
        "command": ["scorer.command=[python,judge.py]"],
        "module": ["scorer.path=my_scorer.py", "scorer.class_name=Mine", "scorer.arguments={scale: 2}"],
    }
    alone = ["score", f"scorer={scorer}"], ["train", f"scorer@reward={scorer}", "+experiment=refl"]
    command, *arguments = alone[scorer.startswith("judging_")]  # which is what some judge is, and so only a reward
    check(compose_all(command, [*arguments, *needed.get(scorer, [])])[0])


def test_prepare_is_right_in_every_domain() -> None:
    for domain in OPTIONS["domain"]:
        check(compose_all("prepare", [f"domain={domain}"])[0])


def test_every_sweep_names_keys_that_exist() -> None:
    for file in (conf_folder() / "sweep").glob("*.yaml"):
        (experiment,) = re.findall(r"\+experiment=(\w+)", file.read_text())  # the call that its comment shows
        composed = compose_all("train", [f"+experiment={experiment}", f"+sweep={file.stem}"])
        assert len(composed) > 1
        assert not any(each.errors for each in composed)


def test_the_run_folder_is_domain_experiment_time() -> None:
    for overrides, start in (([], "shapes/custom"), (["+experiment=reward_mlp", "domain=sd15"], "sd15/reward_mlp")):
        folder = str(OmegaConf.select(compose_all("train", overrides)[0].config, "hydra.run.dir"))
        assert re.fullmatch(rf"outputs/{start}/\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{{6}}", folder)
