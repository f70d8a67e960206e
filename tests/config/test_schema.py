"""What a configuration may hold: keys, their types, and nothing else."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ValidationError

from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.config.paths import conf_folder
from t2ifb.config.schema import SCHEMAS, PlanConfig, TrainConfig, register, yaml_loader
from t2ifb.utils.files import data_folder


def test_every_command_has_a_primary_configuration_and_every_configuration_a_schema() -> None:
    assert {file.stem for file in conf_folder().glob("*.yaml")} == SCHEMAS.keys() | {"base"}


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_key_of_a_command_is_in_its_schema_and_the_other_way_round(command: str) -> None:
    config = compose_all(command, [])[0].config
    assert {str(key) for key in config if key != "hydra"} == {field.name for field in fields(SCHEMAS[command])}


@pytest.mark.parametrize("command", SCHEMAS)
def test_another_key_is_refused_and_so_is_a_value_of_another_type(command: str) -> None:
    node = OmegaConf.structured(SCHEMAS[command])
    with pytest.raises(ConfigAttributeError):
        node.domian = "shapes"
    with pytest.raises(ValidationError):
        node.usual_guidance_scale = "large"
    node.usual_guidance_scale = 7.5
    node.dataset = {"_target_": "x", "anything": [1, 2]}  # a component's arguments are checked elsewhere


def test_a_plan_takes_the_keys_of_a_training_with_its_values() -> None:
    own = {field.name for field in fields(PlanConfig)} - {field.name for field in fields(TrainConfig)}
    assert own == {"memory_gb", "attention"}
    register()
    node = ConfigStore.instance().load("plan_schema.yaml").node
    given = {str(key) for key in node if not OmegaConf.is_missing(node, key)}
    assert given == own  # merged over train.yaml, it changes nothing of it


def test_it_may_be_registered_again_and_folders_are_those_of_the_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("one", "other"):
        register()
        monkeypatch.setenv("T2IFB_DATA", str(tmp_path_factory.mktemp(name)))
        assert OmegaConf.create({"folder": "${data_folder:}"}).folder == str(data_folder())
    assert OmegaConf.create({"clip": "${shapes_weights:clip}"}).clip.endswith("clip")


PLAIN = schema._plain_yaml_loader()
VALUES = """
floats: [1e-3, 1.0e-3, 1E5, .5, -1., .inf, .nan, 1_0.0, 1:30.5]
integers: [1, -1, 0x1f, 0o7, 017, 1_000, 1:30]
others: [yes, Off, null, ~, '', 2001-12-14, 2001-12-14t21:59:43.10, !!str 5, !!float 3]
text: ["\\x85 \\u2028 \\U0001F600", 'it''s', plain text
  over lines, http://host:8000/a#b, 😀]
url: http://host:8000/a?b=c#d
"${key}": ${oc.env:HOME}
block: |
  one
   two

folded: >-
  one
  two
base: &base {a: 1, b: [1, 2]}
merged: {<<: *base, a: 2}
path: !!python/object/apply:pathlib.Path [a, b]
"""


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML was built without libyaml")
def test_the_fast_yaml_loader_reads_the_same_values() -> None:
    assert issubclass(yaml_loader(), yaml.CSafeLoader)
    read = yaml.load(VALUES, yaml_loader())
    assert repr(read) == repr(yaml.load(VALUES, PLAIN))
    assert repr(read["floats"][0]) == "0.001" and read["others"][5] == "2001-12-14"
    for file in conf_folder().rglob("*.yaml"):
        assert yaml.load(file.read_bytes(), yaml_loader()) == yaml.load(file.read_bytes(), PLAIN)


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [1", "a:\n\t- b", "a: b: c", "!!python/name:os.system ''", "a: *b", "a: \x01", "\ta: 1"]
)
def test_the_fast_yaml_loader_refuses_the_same_files(text: str) -> None:
    for loader in (yaml_loader(), PLAIN):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, loader)


def test_omegaconf_reads_files_with_the_fast_yaml_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setattr(yaml, "load", lambda file, Loader: {"same": Loader is yaml_loader()})
    (tmp_path / "a.yaml").write_text("a: 1")
    assert OmegaConf.load(tmp_path / "a.yaml").same
