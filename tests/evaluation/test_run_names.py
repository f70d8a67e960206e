from pathlib import Path

from t2ifb.evaluation.run_names import labels, short_names


def test_names_are_the_shortest_ends_that_tell_runs_apart() -> None:
    paths = [Path("/o/shapes/refl/1"), Path("/o/shapes/draft/1"), Path("/o/shapes/refl/2"), Path("/p/shapes/draft/1")]
    assert short_names(paths) == ["refl/1", "o/shapes/draft/1", "2", "p/shapes/draft/1"]
    assert short_names([Path("/1"), Path("/a/1")]) == ["/1", "a/1"]
    assert short_names(paths[:1]) == ["1"]


def test_a_time_is_a_name_only_where_nothing_else_tells_runs_apart() -> None:
    times = ("2026-11-26_05-09-34_547353", "2026-11-26_06-00-00_000001")
    paths = [Path("/o/shapes/refl") / times[0], Path("/o/shapes/reward_mlp") / times[1]]
    assert short_names(paths) == ["refl", "reward_mlp"]
    assert short_names(paths[:1]) == ["refl"]
    both = [*paths, Path("/o/shapes/refl") / times[1], Path("/o/shapes/reward_mlp")]
    assert short_names(both) == [f"refl/{times[0]}", f"reward_mlp/{times[1]}", f"refl/{times[1]}", "reward_mlp"]


def test_settings_are_called_by_their_shortest_ends() -> None:
    keys = ["optimizer.lr", "prompts.train.count", "prompts.test.count", "algorithm.algorithm._target_", "seed"]
    assert list(labels(keys).values()) == ["lr", "train.count", "test.count", "algorithm", "seed"]
    assert list(labels(["prompts.test.count", "seed"]).values()) == ["test.count", "seed"]
