"""What a configuration may hold: keys, their types, and nothing else."""

from dataclasses import fields

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ValidationError

from t2ifb.config.compose import compose_all
from t2ifb.config.paths import conf_folder
from t2ifb.config.schema import SCHEMAS, PlanConfig, TrainConfig, register
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
