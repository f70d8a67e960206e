from t2ifb.reporting.comparison import RATIO, Comparison
from t2ifb.reporting.runs import read_run
from t2ifb.reporting.settings import differing, flat, shown
from tests.reporting.parts import write_tuning_run


def test_a_configuration_becomes_flat() -> None:
    config = {
        "seed": 1,
        "resume": "auto",
        "limit": float("inf"),
        "head": {"_target_": "t2ifb.scorers.heads.MLPHead", "hidden": [8, 4], "bias": True},
        "reward": {"_target_": "t2ifb.scorers.RewardModel.from_pretrained", "parts": [{"weight": 1.0}]},
    }
    assert flat(config) == {
        "seed": 1,
        "limit": "inf",
        "head._target_": "MLPHead",
        "head.hidden": "[8, 4]",
        "head.bias": True,
        "reward._target_": "RewardModel",
        "reward.parts.0.weight": 1.0,
    }


def test_what_points_at_a_plain_value_has_it() -> None:
    config = {"lr": "${optimizer.lr}", "optimizer": {"lr": 1}, "part": "${optimizer}", "none": "${nowhere.x}"}
    assert flat(config) == {"lr": 1, "optimizer.lr": 1, "part": "${optimizer}", "none": "${nowhere.x}"}


def test_only_what_differs_is_listed_and_the_known_settings_come_first() -> None:
    one = {"rank": 4, "algorithm.beta": 0.1, "same": 1, "only here": "y", "flag": 1, "points": "${optimizer}"}
    other = {"rank": 8, "algorithm.beta": 0.0, "same": 1.0, "flag": True, "extra": "x"}
    assert differing([one, other]) == ["algorithm.beta", "rank", "flag", "only here", "extra"]
    assert differing([one]) == []


def test_values_are_shown_as_a_reader_expects_them() -> None:
    assert [shown(value) for value in (None, True, 1e-05, 100.0, "a")] == ["–", "yes", "1e-05", "100", "a"]


def test_the_ratio_of_beta_to_alpha_is_a_setting_where_both_differ(tmp_path) -> None:
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


def test_runs_of_another_reward_are_known_by_its_hash_or_else_by_its_settings(tmp_path) -> None:
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
