from t2ifb.reporting.settings import differing, flat, shown


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


def test_unknown_values_do_not_differ() -> None:
    one, other = {"seed": 0, "git_commit": "a"}, {"seed": 0, "rank": 4}
    assert differing([one, {}]) == differing([one, {"git_commit": "a"}]) == []
    assert differing([one, other]) == ["rank"]
    assert differing([one, {"git_commit": "b"}]) == ["git_commit"]


def test_values_are_shown_as_a_reader_expects_them() -> None:
    assert [shown(value) for value in (None, True, 1e-05, 100.0, "a")] == ["–", "yes", "1e-05", "100", "a"]
