"""Runs of a kind are grouped, and told apart by the settings that differ."""

from pathlib import Path

import pytest

from t2ifb.reporting.comparison import NAMED, RATIO, Comparison
from t2ifb.reporting.runs import FIGURE8, REWARD, TABLE1, TUNING, read_run
from tests.reporting.parts import write_evaluations, write_reward_run, write_tuning_run


def test_the_ratio_of_beta_to_alpha_is_a_setting_where_both_differ(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(n), beta=beta)) for n, beta in enumerate((0.1, 0.2))]
    (group,) = Comparison(runs).groups
    assert group.differing == ["algorithm.beta"]
    runs[1].settings["algorithm.alpha"] = 2.0
    comparison = Comparison(runs)
    assert comparison.groups[0].differing == ["algorithm.alpha", "algorithm.beta"]  # the ratio is the same: 0.1
    runs[1].settings["algorithm.alpha"] = 4.0
    comparison = Comparison(runs)
    assert comparison.groups[0].differing == ["algorithm.alpha", "algorithm.beta", RATIO]
    assert [settings[RATIO] for settings in comparison.settings] == [0.1, 0.05]
    assert comparison.about(1) == "alpha 4, beta 0.2"


def test_runs_of_another_reward_are_known_by_its_hash_or_else_by_its_settings(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(n))) for n in range(2)]
    settings = [run.settings for run in runs]
    assert not Comparison(runs).groups[0].rewards_differ
    for each, source in zip(settings, ("latest", "outputs/one"), strict=True):
        each["reward.source"] = source
    assert Comparison(runs).groups[0].rewards_differ
    for each in settings:
        each["reward_sha256"] = "abc"
    assert not Comparison(runs).groups[0].rewards_differ
    settings[1]["reward_sha256"] = "def"
    assert Comparison(runs).groups[0].rewards_differ


def test_runs_are_grouped_by_kind_in_one_order(tmp_path: Path) -> None:
    write_evaluations(tmp_path)
    write_reward_run(tmp_path / "reward")
    for number in range(2):
        write_tuning_run(tmp_path / str(number), lr=0.001 * (number + 1), seed=number)
    comparison = Comparison([read_run(tmp_path / name) for name in ("figure8", "0", "reward", "1", "table1")])
    assert [(group.kind, group.runs) for group in comparison.groups] == [
        (TUNING, [1, 3]), (REWARD, [2]), (TABLE1, [4]), (FIGURE8, [0]),
    ]  # fmt: skip
    assert [group.counted for group in comparison.groups] == [
        "2 fine-tuning runs", "1 reward run", "1 table 1", "1 figure 8",
    ]  # fmt: skip
    assert comparison.names == ["figure8", "0", "reward", "1", "table1"]
    tuning = comparison.group(TUNING)
    assert tuning is not None and tuning.title == "Fine-tuning runs"
    assert tuning.differing == ["optimizer.lr", "seed"]
    assert tuning.values == {"optimizer.lr": [0.001, 0.002], "seed": [0, 1]}
    assert tuning.same["algorithm.beta"] == 0.1 and not tuning.same.keys() & tuning.values.keys()
    assert comparison.about(3) == "lr 0.002, seed 1"
    assert comparison.about(2) == ""
    assert comparison.group("other") is None
    assert [run.path.name for run in comparison.of_kind(TUNING)] == ["0", "1"]


def test_tables_are_counted_apart_from_their_number(tmp_path: Path) -> None:
    runs = [read_run(write_evaluations(tmp_path / str(number)) / "table1") for number in range(2)]
    (group,) = Comparison(runs).groups
    assert group.counted == "2 × table 1"


def test_a_run_is_described_by_few_settings_and_by_none_that_says_where_it_came_from(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(number))) for number in range(2)]
    for name in "abcdef":
        runs[0].settings[name], runs[1].settings[name] = 1, 2
    runs[1].settings["git_commit"] = "other"
    (group,) = Comparison(runs).groups
    assert "git_commit" in group.differing and "git_commit" not in group.named
    assert group.named == ["a", "b", "c", "d"] and len(group.named) == NAMED


@pytest.mark.parametrize(("alpha", "ratio"), [(0.0, None), ("x", None), (None, None), (3, 0.0333333)])
def test_a_ratio_is_a_number_or_unknown(tmp_path: Path, alpha: object, ratio: float | None) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(number), beta=beta)) for number, beta in enumerate((0.1, 0.7))]
    runs[0].settings["algorithm.alpha"] = alpha  # type: ignore[assignment]
    comparison = Comparison(runs)
    assert [settings[RATIO] for settings in comparison.settings] == [ratio, 0.7]


def test_a_run_with_unknown_settings_changes_nothing_for_the_others(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(n), beta=beta)) for n, beta in enumerate((0.1, 0.1, 0.2))]
    runs[1].settings["algorithm.alpha"] = 2.0
    for run in runs:
        run.settings["reward.source"] = "one"
    (runs[0].path / ".hydra" / "config.yaml").unlink()
    unknown = read_run(runs[0].path)
    assert unknown.settings.keys() == {"git_commit"}
    (group,) = Comparison([unknown, *runs[1:]]).groups
    assert group.differing == ["algorithm.alpha", "algorithm.beta", RATIO]
    assert group.values["algorithm.beta"] == [None, 0.1, 0.2]
    assert group.same["optimizer.lr"] == 0.001 and not group.rewards_differ


def test_a_missing_hash_or_commit_is_no_difference(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(n))) for n in range(2)]
    del runs[0].settings["git_commit"]
    runs[0].settings["reward_sha256"] = "abc"
    (group,) = Comparison(runs).groups
    assert group.differing == [] and not group.rewards_differ
    for run, source in zip(runs, ("one", "two"), strict=True):
        run.settings["reward.source"] = source
    assert Comparison(runs).groups[0].rewards_differ  # one hash does not say that both are equal
