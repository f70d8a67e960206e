"""`resume=<run folder>` and `resume=auto`: which run goes on, and whether it is still the same run."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from t2ifb.config.compose import compose_all, flatten
from t2ifb.config.errors import ConfigError, missing_file
from t2ifb.utils.files import atomic_write
from t2ifb.utils.overrides import argument, typed

SHOWN = 5
BEGUN_WITH = Path(".hydra") / "begun_with.yaml"
"""The configuration of a run's first start. Hydra's own record is of the last one."""
DEVICES = ("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
"""Where an update is computed. It is the same on any number of devices, or the checkpoint is refused."""
FREE = ("resume", "logger", *DEVICES, "trainer.enable_progress_bar", "memory_gb", "attention")
"""Keys that may differ between a run and its continuation: they change no weight. The last two are of `plan` alone."""
BEGUN = ("checkpoints/last.ckpt", "round_01")
"""What an unfinished run leaves that another one must not overwrite: its checkpoint, or its first round."""


def wished_run(overrides: Sequence[str]) -> str | None:
    """What `resume` is in these arguments; None without it."""
    wish = None
    for override in overrides:
        if _key(override) == "resume":
            wish = OverridesParser.create().parse_override(override).value()
    return None if wish is None else str(wish)


def check_unused(folder: Path) -> None:
    """Check that a new run may start in a folder: the record of the one in it would be overwritten.

    Raises:
        ConfigError: There is a run in it.
    """
    if (folder / "summary.json").exists():
        raise ConfigError([f"hydra.run.dir={folder}: the run in it is finished; give another folder"])
    if any((folder / name).exists() for name in BEGUN):
        advice = f"continue it with {typed('resume', folder)}, or give another folder"
        raise ConfigError([f"hydra.run.dir={folder}: there is an unfinished run in it; {advice}"])


def record_settings(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Write down what a run was begun with. A continuation, which has the same settings, leaves the record.

    Args:
        folder: The run's folder.
        settings: Its configuration as plain containers, as it is written.
        resume: Whether the run is continued, if there is one.
    """
    if not (resume and (folder / BEGUN_WITH).exists()):
        (folder / BEGUN_WITH).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / BEGUN_WITH) as file:
            file.write(OmegaConf.to_yaml(settings).encode("utf-8", "surrogatepass"))


def continue_run(command: str, wish: str, overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """The arguments with which the run that `resume` names goes on in its own folder.

    Its own arguments are taken over, so `resume=<run folder>` alone is enough. The number and kind of devices may be
    others than before. Arguments that also give `hydra.run.dir` have to be complete, and stay as they are.

    Args:
        command: The command that made the run.
        wish: A run folder or `auto`.
        overrides: The arguments as typed.
        config_dir: A further folder with groups and options.

    Raises:
        ConfigError: There is no such run, it is finished, it is in another folder than `hydra.run.dir`, or the
            arguments ask for other values than it has.
    """
    if "hydra.run.dir" in map(_key, overrides):
        _check_in_place(wish, _composed(command, overrides, config_dir))
        return list(overrides)
    if wish == "auto":
        folder = _newest_unfinished(_composed(command, overrides, config_dir))
        if folder is None:
            return [*_without(overrides, {"resume"}), "resume=null"]
    else:
        folder = Path(wish).expanduser().absolute()
        _check_unfinished(folder)
    given = {_key(override) for override in overrides}
    replaced = {"resume", "hydra.mode", *given, *(DEVICES if "trainer" in given else ())}
    saved = [] if wish == "auto" else _saved_overrides(folder)  # `auto` found a run with the values that are typed
    own = [*_without(saved, replaced), *overrides]
    own = [*_without(own, {"resume"}), "hydra.mode=RUN"]  # the run may be one job of a sweep
    _check_same(wish, _config_file(folder), _composed(command, own, config_dir))
    return [*own, argument("resume", folder), argument("hydra.run.dir", folder)]


def _check_in_place(wish: str, config: DictConfig) -> None:
    """Check a run that goes on in the folder of `hydra.run.dir`, if one was begun there.

    Processes of a distributed run do this at the same time, so only the record that is written whole is read.
    """
    folder = Path(str(OmegaConf.select(config, "hydra.run.dir"))).absolute()
    if wish != "auto" and Path(wish).expanduser().resolve() != folder.resolve():
        raise ConfigError([f"resume={wish} and hydra.run.dir={folder} are two folders; leave hydra.run.dir out"])
    if (folder / "summary.json").exists():
        raise ConfigError([_finished(folder)])
    if (folder / BEGUN_WITH).exists():
        _check_same(wish, folder / BEGUN_WITH, config)


def _check_same(wish: str, saved: Path, config: DictConfig) -> None:
    if differing := differences(saved, config):
        raise ConfigError([f"resume={wish}: {line}; a continued run keeps its values" for line in differing])


def _finished(folder: Path) -> str:
    return f"resume: the run in {folder} is finished (it has a summary.json); leave resume out"


def _composed(command: str, overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    composed = compose_all(command, overrides, config_dir=config_dir)
    if len(composed) > 1:
        raise ConfigError(["resume: one run at a time goes on; leave the sweep out"])
    if composed[0].errors:
        raise ConfigError(composed[0].errors)
    return composed[0].config


def _newest_unfinished(config: DictConfig) -> Path | None:
    """The newest unfinished run with these values, with a checkpoint if one has any.

    Says so when there is none, and what the newest other one has.
    """
    parent = Path(str(OmegaConf.select(config, "hydra.run.dir"))).absolute().parent
    other = ""

    def age(folder: Path) -> tuple[bool, str]:
        return (folder / "checkpoints" / "last.ckpt").exists(), folder.name

    for folder in sorted(parent.glob("*"), key=age, reverse=True):
        if not _config_file(folder).is_file() or (folder / "summary.json").exists():
            continue
        differing = differences(_config_file(folder), config)
        if not differing:
            return folder
        other = other or f" (in the unfinished {folder.name} {'; '.join(differing[:SHOWN])})"
    print(f"resume=auto: no unfinished run with these values in {parent}, a new one starts{other}", file=sys.stderr)
    return None


def _check_unfinished(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError([f"resume: {missing_file(folder)}"])
    if not _config_file(folder).is_file():
        text = "is not a run folder, it has no .hydra/config.yaml"
        if (folder / "settings.json").is_file():
            text = "has a run that was started from Python; continue it there, with resume=True"
        raise ConfigError([f"resume: {folder} {text}"])
    if (folder / "summary.json").exists():
        raise ConfigError([_finished(folder)])


def differences(saved: Path, config: Any) -> list[str]:
    """One line per key whose value is not that of a file; as they are written, so that other places are no change.

    What changes no weight is not compared.
    """
    return changes(_flat(OmegaConf.load(saved)), _flat(config))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key whose value is another than it was."""
    keys = [key for key in {**then, **now} if then.get(key, "nothing") != now.get(key, "nothing")]
    return [f"{key} was {then.get(key, 'nothing')}, now it is {now.get(key, 'nothing')}" for key in keys]


def _flat(config: Any) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    assert isinstance(container, dict)
    flat = flatten({key: value for key, value in container.items() if key != "hydra"})
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{free}.") for free in FREE)}


def _config_file(folder: Path) -> Path:
    """Where the configuration is that the run in a folder was begun with."""
    return folder / BEGUN_WITH if (folder / BEGUN_WITH).is_file() else folder / ".hydra" / "config.yaml"


def _saved_overrides(folder: Path) -> list[str]:
    file = folder / ".hydra" / "overrides.yaml"
    return [str(override) for override in OmegaConf.load(file)] if file.is_file() else []


def _without(overrides: Sequence[str], keys: set[str]) -> list[str]:
    return [override for override in overrides if _key(override) not in keys]


def _key(override: str) -> str:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:  # not readable: composition reports it
        return override
    return parsed.key_or_group + (f"@{parsed.package}" if parsed.package else "")
