"""Every path can be typed as an argument."""

import shlex

from omegaconf import OmegaConf

from t2ifb.config.compose import compose_all
from t2ifb.utils.overrides import argument, typed

NAMES = (
    "plain/path", "with space", "eq=sign", "comma,x", "br[ack]", "x(86)", "tilde~", "~/home", "Ünï-日本", "q'uote",
    'q"uote', "a#b", "a${b}c", "true", "1", "null", "[1]", "{a}", "back\\slash\\", "a;b&c|d", "!x", "choice(a,b)",
)  # fmt: skip


def test_any_path_reaches_the_configuration_unchanged() -> None:
    keys = {f"dataset.test_{number}": name for number, name in enumerate(NAMES)}
    arguments = [argument(f"+{key}", name) for key, name in keys.items()]
    assert shlex.split(" ".join(typed(f"+{key}", name) for key, name in keys.items())) == arguments
    (composed,) = compose_all("prepare", ["dataset=own_rankings", *arguments])
    assert not composed.errors
    assert {key: OmegaConf.select(composed.config, key) for key in keys} == keys


def test_what_needs_no_quotes_has_none() -> None:
    assert typed("resume", "/a/b-c_d/2026-01-01_00-00-00") == "resume=/a/b-c_d/2026-01-01_00-00-00"
