"""Every path can be typed as an argument."""

import shlex

import pytest
from omegaconf import OmegaConf

from t2ifb.config.compose import compose_all
from t2ifb.utils.overrides import argument, typed

NAMES = (
    "plain/path", "with space", "eq=sign", "comma,x", "br[ack]", "x(86)", "tilde~", "~/home", "Ünï-日本", "q'uote",
    'q"uote', "a#b", "a${b}c", "true", "1", "null", "[1]", "{a}", "back\\slash\\", "a;b&c|d", "!x", "choice(a,b)",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_path_reaches_the_configuration_unchanged(name: str) -> None:
    (typed_argument,) = shlex.split(typed("dataset.source", name))
    assert typed_argument == argument("dataset.source", name)
    (composed,) = compose_all("prepare", ["dataset=own_rankings", typed_argument])
    assert not composed.errors
    assert OmegaConf.select(composed.config, "dataset.source") == name


def test_what_needs_no_quotes_has_none() -> None:
    assert typed("resume", "/a/b-c_d/2026-01-01_00-00-00") == "resume=/a/b-c_d/2026-01-01_00-00-00"
