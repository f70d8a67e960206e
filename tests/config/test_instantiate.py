"""Everything checked before anything is built, then built."""

from pathlib import Path

import pytest

from t2ifb.config.compose import compose_all
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components, check
from tests.config.parts import Data, Loop, Source

CONF = str(Path(__file__).parent / "conf")


def errors(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(compose_all("train", ["+experiment=tiny", *overrides], config_dir=CONF)[0])
    return caught.value.errors


def test_a_right_configuration_is_built() -> None:
    composed = compose_all("train", ["+experiment=tiny", "+dataset.subset=large"], config_dir=CONF)[0]
    check(composed)
    parts = Components(composed.config)
    loop = parts.build("algorithm")
    assert isinstance(loop, Loop)
    assert loop.dataset == Data("here", subset="large")
    assert loop.baselines == {"clip_score": Source("b")}
    assert loop.run() == {"lr": 0.2, "width": 3.0, "epochs": 7}
    assert type(loop.head(3).hidden) is list
    assert parts.build("build") is None
    assert parts.resolved()["algorithm"]["dataset"]["source"] == "here"
    assert parts.value("seed") == 5


def test_an_unfinished_component_lacks_what_is_left_out() -> None:
    overrides = ["+experiment=tiny", "+algorithm._partial_=true"]
    parts = Components(compose_all("train", overrides, config_dir=CONF)[0].config)
    make = parts.unfinished("algorithm", ("dataset",), baselines={"other": Source("c")})
    assert "dataset" not in make.func.keywords
    loop = make(dataset=Data("there"))
    assert loop.dataset == Data("there")
    assert loop.baselines == {"other": Source("c")}


def test_an_argument_that_the_component_does_not_take() -> None:
    assert errors("+optimizer.lrr=1") == ("optimizer.lrr: Step takes no argument 'lrr'; did you mean 'lr'?",)


def test_an_error_is_told_once_where_it_stands_and_with_its_file() -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose_all("train", ["+experiment=wrong_argument"], config_dir=CONF)[0])
    (error,) = caught.value.errors
    assert error.startswith("algorithm.btach_size (conf/experiment/wrong_argument.yaml): Loop takes no argument")
    assert "did you mean 'batch_size'" in error


def test_errors_of_arguments_and_components_come_together() -> None:
    found = errors("sede=1", "algorithm.batch_size=many", "+dataset.subset=smal", "head.hidden=3", "encoder.model=???")
    assert len(found) == 4  # what is missing is not told while an argument is refused
    assert len(errors("algorithm.batch_size=many", "encoder.model=???")) == 2


def test_missing_values_and_broken_references() -> None:
    assert errors("encoder.model=???") == ("encoder.model: a value is needed, give encoder.model=…",)
    (error,) = errors("encoder.model=${nope}")
    assert "encoder.model" in error
    assert "nope" in error


def test_a_component_without_target() -> None:
    assert any("head" in error and "_target_" in error for error in errors("~head._target_"))


def test_a_value_that_the_component_refuses() -> None:
    config = compose_all("train", ["+experiment=tiny", "+encoder.scale=-1"], config_dir=CONF)[0].config
    with pytest.raises(ConfigError, match="encoder: scale has to be positive, got -1"):
        Components(config).build("encoder")


OWN = ["dataset=own_rankings", 'dataset.source="~/mine/"']
FILES = ["prompts=files", *(f"prompts.{split}.path={split}.json" for split in ("train", "validation", "test"))]
MIXTURE = ["dataset=mixture", "+dataset@dataset.datasets.a=own_rankings", "dataset.datasets.a.source=mine"]
PIXELS = ["+dataset@dataset.datasets.b=ranking_files", "+dataset.datasets.b.files.test=b.json"]


@pytest.mark.parametrize(
    ("command", "arguments", "place", "skip"),
    [
        ("prepare", OWN, f"{Path('~/mine').expanduser()}/rankings.csv, train", "dataset.on_error=skip"),
        ("score", OWN, f"{Path('~/mine').expanduser()}/rankings.csv, train", "dataset.on_error=skip"),
        ("score", OWN, "pairs.csv", ""),
        ("prepare", [*OWN, "dataset.source=."], "rankings.csv, train", "dataset.on_error=skip"),
        ("prepare", ["dataset.source=here"], "here, train", "dataset.on_error=skip"),
        ("prepare", [*MIXTURE, *PIXELS], "mine/train.csv", "dataset.datasets.a.on_error=skip"),
        ("train", [*MIXTURE, *PIXELS], "b.json", "dataset.datasets.b.on_error=skip"),
        ("train", ["+experiment=refl", *FILES], "test.json", "prompts.test.on_error=skip"),
        ("generate", ["file=a.json"], "a.json", "on_error=skip"),
        ("generate", ["file=a.json", "on_error=skip"], "a.json", ""),
    ],
)
def test_the_setting_that_skips_bad_records_is_named_and_exists(
    command: str, arguments: list[str], place: str, skip: str
) -> None:
    (composed,) = compose_all(command, arguments)
    assert Components(composed.config).skipping(place) == skip
    if skip:
        check(compose_all(command, [*arguments, skip])[0])


REFL = ["+experiment=refl", "reward.source=x"]


@pytest.mark.parametrize(
    ("command", "arguments", "advice"),
    [
        *(
            ("train", REFL, advice)
            for advice in (
                "algorithm.truth=null", "algorithm.lora.rank=8", "diffusion.gradient_checkpointing=true",
                "algorithm.micro_batch_size=1", "diffusion.decoder_precision=bf16", "algorithm.samples_per_batch=1",
                "diffusion.precision=fp16", "algorithm.diversity=null", "optimizer.fused=false",
                "algorithm.gradient_clip_norm=null", "trainer.precision=bf16-mixed", "scheduler=ddim",
                "diffusion.config=folder", "+encoder.quick_gelu=false",
            )
        ),
        ("train", ["+experiment=refl"], "scorer@reward=image_reward"),
        ("train", ["+experiment=refl", "domain=sd15"], "encoder.pretrained=file"),
        ("train", ["+experiment=draft", "reward.source=x"], "algorithm.algorithm.last_steps=1"),
        ("train", ["+experiment=reward_mlp"], "dataset.ceiling=null dataset.ceiling_parts=[]"),
        ("evaluate", ["+experiment=figure8", "run=x"], "~scorers.gold"),
        ("evaluate", ["+experiment=table1"], "~scorers.gold"),
        ("plan", [], "diffusion.config=folder memory_gb=16"),
    ],
)  # fmt: skip
def test_what_messages_advise_can_be_typed(command: str, arguments: list[str], advice: str) -> None:
    check(compose_all(command, [*arguments, *advice.split()])[0])
