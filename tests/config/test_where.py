"""`--where`: every place that sets a key, the one that wins last."""

from pathlib import Path

import pytest

from t2ifb.config.compose import compose_all
from t2ifb.config.errors import ConfigError
from t2ifb.config.paths import conf_folder
from t2ifb.config.schema import SCHEMAS
from t2ifb.config.where import settings, where_text
from tests.conftest import CHECKOUT, Command

CONF = str(Path(__file__).parent / "conf")


def places(key: str, *overrides: str, command: str = "train", config_dir: str | None = None) -> list[str]:
    config = compose_all(command, overrides, config_dir=config_dir)[0].config
    found = settings(key, config, overrides)
    for setting in found:  # the line is the one that sets the key
        if setting.file is not None:
            line = setting.file.read_text().splitlines()[setting.line - 1]
            assert f"{setting.key.rpartition('.')[2]}:" in line, (setting, line)
    return [
        f"{setting.file.parent.name}/{setting.file.name} {setting.value}" if setting.file else f"typed {setting.value}"
        for setting in found
    ]


def test_files_are_in_the_order_that_they_are_merged_in() -> None:
    assert places("optimizer.lr", "+experiment=tiny", config_dir=CONF) == [
        "conf/train.yaml 1.0e-5",
        "optimizer/tiny.yaml 0.1",
        "experiment/tiny.yaml 0.2",
    ]
    assert places("algorithm.epochs", "+experiment=tiny", config_dir=CONF) == ["tiny/tiny.yaml 7"]
    assert places("baselines.clip_score.model", "+experiment=tiny", config_dir=CONF) == ["scorer/tiny.yaml b"]
    assert places("optimizer.momentum") == []


def test_files_that_other_files_include_are_found() -> None:
    """The experiment includes another one, the algorithm what it shares, the recipe the judges."""
    beta = places("algorithm.beta", "+experiment=refl_overoptimised")
    assert beta == ["algorithm/fine_tuning.yaml 0.01", "experiment/refl_overoptimised.yaml 0.0"]
    assert places("algorithm.algorithm.last_steps", "+experiment=draft") == ["shapes/draft.yaml 5"]
    window = places("algorithm.algorithm.gradients_per_rollout", "+experiment=refl_overoptimised", "domain=sd15")
    assert window == ["stable_diffusion/refl.yaml 1"]
    judge = places("judges.image_reward.source", "+experiment=refl")
    assert judge == [
        "scorer/image_reward.yaml ${oc.select:scorer_sources.image_reward,zai-org/ImageReward}",
        "setting/shapes.yaml ${shapes_weights:image_reward}",
    ]
    scorer = places("scorers.aesthetic_score.encoder.model", command="evaluate")
    assert scorer == [
        "scorer/aesthetic_score.yaml ${encoder}",
        "encoder/shapes_clip.yaml local-dir:${shapes_weights:clip}",
    ]


def test_the_command_line_comes_last_and_a_default_of_the_schema_is_found() -> None:
    assert places("optimizer.lr", "optimizer.lr=3", "domain=sd15") == ["conf/train.yaml 1.0e-5", "typed 3"]
    assert places("seed") == ["config/schema.py 0"]
    assert places("seed", command="plan") == ["config/schema.py 0"]
    assert places("seed", "seed=2") == ["config/schema.py 0", "typed 2"]


def test_a_reference_is_followed() -> None:
    scale = places("algorithm.rollout.guidance_scale", "+experiment=refl", "domain=sd15")
    assert scale == [
        "algorithm/fine_tuning.yaml ${rollout}",
        "sampling/sd15.yaml ${usual_guidance_scale}",
        "domain/sd15.yaml 7.5",
    ]


def test_a_sweep_file_is_a_place() -> None:
    swept = places("optimizer.lr", "+experiment=tiny", "+sweep=tiny", config_dir=CONF)
    assert swept == [
        "conf/train.yaml 1.0e-5",
        "optimizer/tiny.yaml 0.1",
        "experiment/tiny.yaml 0.2",
        "sweep/tiny.yaml 0.1,0.3",
    ]


@pytest.mark.parametrize("domain", ["shapes", "sd15"])
@pytest.mark.parametrize("experiment", sorted(file.stem for file in (conf_folder() / "experiment").glob("[rd]*.yaml")))
def test_the_learning_rate_is_in_at_most_three_files(experiment: str, domain: str) -> None:
    found = [place.split()[0] for place in places("optimizer.lr", f"+experiment={experiment}", f"domain={domain}")]
    stage = "reward" if experiment == "reward_mlp" else "fine_tuning"
    setting = "stable_diffusion" if domain == "sd15" else domain
    recipes = {f"{setting}/{name}.yaml" for name in (stage, experiment)}
    assert found[0] == "conf/train.yaml"
    assert set(found) <= {"conf/train.yaml", f"experiment/{experiment}.yaml", *recipes}
    assert len(found) <= 3


def line_of(file: str, text: str) -> int:
    """Number of the line of a file in the checkout, from 1, that has a text and nothing else."""
    return 1 + [line.strip() for line in (CHECKOUT / file).read_text().splitlines()].index(text)


def test_the_text_has_the_value_and_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    typed, recipe = ["+experiment=refl", "optimizer.lr=0.3"], "conf/recipe/shapes/fine_tuning.yaml"
    config = compose_all("train", typed)[0].config
    first, *lines = where_text("optimizer.lr", [config], typed).splitlines()
    assert first == "optimizer.lr = 0.3"
    assert [line.split() for line in lines] == [
        [f"conf/train.yaml:{line_of('conf/train.yaml', 'lr: 1.0e-5')}", "optimizer.lr:", "1.0e-5"],
        [f"{recipe}:{line_of(recipe, 'lr: 1.0e-3')}", "optimizer.lr:", "1.0e-3"],
        ["command", "line", "optimizer.lr:", "0.3"],
    ]
    assert where_text("judges", [config], typed).splitlines()[0] == "judges"
    assert where_text("optimizer.lr", [config, config], typed).startswith("optimizer.lr = 0.3 in the first job\n")


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    config = compose_all("train", [])[0].config
    with pytest.raises(
        ConfigError, match=r"--where optimizer\.lrr: there is no such key; did you mean 'optimizer\.lr'"
    ):
        where_text("optimizer.lrr", [config], [])


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_command_answers_and_its_help_says_so(run_here: Command, command: str) -> None:
    done = run_here(f"t2ifb.{command}", "--where", "usual_guidance_scale", "domain=sd15")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usual_guidance_scale = 7.5\n")
    assert "sd15.yaml:8" in done.stdout
    assert "--where KEY" in run_here(f"t2ifb.{command}", "--help").stdout


def test_where_without_a_key_is_refused(run_here: Command) -> None:
    done = run_here("t2ifb.train", "--where")
    assert done.returncode == 2
    assert "--where optimizer.lr" in done.stderr
