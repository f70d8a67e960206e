"""Composition: what wrong arguments are answered with, before anything is imported."""

from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from t2ifb.config.compose import compose_all, flatten
from t2ifb.config.errors import explain_override

CONF = str(Path(__file__).parent / "conf")


def errors(*overrides: str, command: str = "train", multirun: bool = False) -> list[str]:
    composed = compose_all(command, overrides, multirun=multirun, config_dir=CONF)
    return [error for each in composed for error in each.errors]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("domian=sd15", ["domian", "did you mean 'domain'"]),
        ("domain=sd16", ["no 'sd16' in group 'domain'", "did you mean 'sd15'"]),
        ("+experiment=reward_mpl", ["no 'reward_mpl' in group 'experiment'", "did you mean 'reward_mlp'"]),
        ("experiment=reward_mlp", ["write +experiment=reward_mlp"]),
        ("+experimnt=reward_mlp", ["experimnt", "did you mean 'experiment'"]),
        ("+optimizer=adamw", ["write optimizer=adamw without +"]),
        ("optimizer=3", ["'optimizer' is a group", "adam, adamw"]),
        ("sede=3", ["sede=3", "did you mean 'seed'"]),
        ("+sede=3", ["'sede'", "did you mean 'seed'"]),
        ("++sede=3", ["'sede'", "did you mean 'seed'"]),
        ("optimizer.lrr=3", ["'optimizer.lrr'", "did you mean 'optimizer.lr'"]),
        ("optimiser.lr=3", ["'optimiser'", "did you mean 'optimizer'"]),
        ("encoder.quick_gelu=true", ["'encoder.quick_gelu'", "given with +"]),
        ("seed=three", ["seed=three", "'three'", "Integer"]),
        ("seed=[1]", ["seed=[1]"]),
        ("+seed=3", ["write seed=3 without +"]),
        ("seed=1,2", ["-m"]),
        ("seed", ["not readable as key=value"]),
        ("logger.project=[", ["not readable as key=value", "type 'logger.project=\"[\"'"]),
        ("dataset.source=a=b", ["type 'dataset.source=\"a=b\"'"]),
        ("+dataset.source=a#b", ["type '+dataset.source=\"a#b\"'"]),
        ("logger.tags=[a#b,c]", ["type 'logger.tags=[\"a#b\",c]'"]),
        ("dataset.source=a,b", ["write dataset.source=[a,b] for a list, or 'dataset.source=\"a,b\"' for one value"]),
    ],
)
def test_a_wrong_argument_is_one_line_with_the_right_name(override: str, words: list[str]) -> None:
    found = errors(override)
    assert len(found) == 1
    assert "\n" not in found[0]
    assert all(word in found[0] for word in words), found[0]


def test_a_launcher_that_an_extra_brings_names_the_extra() -> None:
    missing = MissingConfigException("", "hydra/launcher/joblib", [])
    error = explain_override("hydra/launcher=joblib", missing, [], {})
    assert error.startswith("hydra/launcher=joblib: there is no 'joblib'")
    assert "'.[sweeps]'" in error


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("wrong_key", ["conf/experiment/wrong_key.yaml", "'algoritm'", "did you mean 'algorithm'"]),
        ("wrong_option", ["wrong_option", "no 'tinny' in group 'head'", "did you mean 'tiny'"]),
        ("wrong_type", ["conf/experiment/wrong_type.yaml", "seed", "'many'"]),
    ],
)
def test_an_error_in_an_experiment_file_names_the_file(experiment: str, words: list[str]) -> None:
    found = errors(f"+experiment={experiment}")
    assert len(found) == 1
    assert all(word in found[0] for word in words), found[0]


def test_all_errors_are_told_at_once() -> None:
    found = errors("sede=1", "seed=x", "+alhpa=3", "optimizer.lrr=1", "epochs")
    assert len(found) == 5


def test_a_refused_choice_does_not_blame_the_arguments_that_belong_to_it() -> None:
    found = errors("algorithm.alpha=3", "+experiment=tinny")
    assert len(found) == 1
    assert "did you mean 'tiny'" in found[0]


def test_right_arguments_have_no_errors() -> None:
    assert not errors()
    assert not errors("+experiment=tiny", "seed=3", "optimizer.lr=1", "+encoder.scale=2")
    assert not errors("split=test", command="score")
    assert not errors("splits=[test]", command="prepare")


def test_every_value_of_a_sweep_is_looked_at() -> None:
    assert not errors("seed=1,2", "optimizer.lr=0.1,0.2", multirun=True)
    found = errors("seed=1,2,x", "optimizer=adam,adma", multirun=True)
    assert any("seed=x" in error for error in found)
    assert any("did you mean 'adam'" in error for error in found)


def test_a_sweep_file_makes_a_sweep_with_and_without_m() -> None:
    for multirun in (False, True):
        composed = compose_all("train", ["+experiment=tiny", "+sweep=tiny"], multirun=multirun, config_dir=CONF)
        assert [each.config.optimizer.lr for each in composed] == [0.1, 0.3]
        assert not any(each.errors for each in composed)


def test_the_command_line_wins_over_recipe_and_experiment() -> None:
    def config(*overrides: str) -> object:
        return compose_all("train", overrides, config_dir=CONF)[0].config

    tiny = config("+experiment=tiny")
    assert (tiny.algorithm.epochs, tiny.optimizer.lr, tiny.seed) == (7, 0.2, 5)
    overridden = config("+experiment=tiny", "algorithm.epochs=1", "optimizer.lr=3", "seed=2", "head=mlp")
    assert (overridden.algorithm.epochs, overridden.optimizer.lr, overridden.seed) == (1, 3, 2)
    assert overridden.head._target_ == "t2ifb.scorers.heads.MLPHead"
    # The same with the shipped domains, in any order of the arguments.
    swapped = config("dataset=shapes", "domain=sd15", "+experiment=reward_mlp")
    assert swapped.dataset.source.endswith("shapes-2-full")
    assert swapped.encoder.model == "ViT-L-14-quickgelu"


def test_flatten_keeps_inner_nodes_and_empty_ones() -> None:
    assert flatten({"a": {"b": 1, "c": {}}}) == {"a": None, "a.b": 1, "a.c": {}}


@pytest.mark.parametrize(
    ("command", "experiment", "right"),
    [
        ("train", "table1", "python -m t2ifb.evaluate +experiment=table1"),
        ("evaluate", "reward_mlp", "python -m t2ifb.train +experiment=reward_mlp"),
        ("score", "reward_mlp", "python -m t2ifb.train +experiment=reward_mlp"),
        ("prepare", "table1", "python -m t2ifb.evaluate +experiment=table1"),
    ],
)
def test_an_experiment_of_another_command_names_that_command(command: str, experiment: str, right: str) -> None:
    others = ("split=test", "optimizer.lr=1", "batch_size=3")  # right or not, they belong to the other command
    (error,) = errors(f"+experiment={experiment}", *others, command=command)
    assert error == f"+experiment={experiment}: this is not for t2ifb.{command}; run {right}"
