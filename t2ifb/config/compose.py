"""Composition with every error collected, before Hydra itself starts: no part is imported here."""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2ifb.config.errors import ConfigError, explain_override, nearest
from t2ifb.config.paths import conf_folder
from t2ifb.config.schema import SCHEMAS, register

_COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


@dataclass(frozen=True)
class Composed:
    """One composed configuration and what was wrong with the arguments that it was composed from."""

    config: DictConfig
    errors: tuple[str, ...]
    choices_hold: bool = True
    """False when a group's option was refused: `config` is then not what the user meant."""


def compose_all(
    command: str, overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None
) -> list[Composed]:
    """Compose what `overrides` ask for: one configuration, or those of a sweep.

    Of a sweep every combination of swept options is composed, as they say what jobs are and where they go, and every
    value of every other swept key on its own: that finds a wrong value in the last job before the first job starts,
    without composing the whole product.

    Args:
        command: Which primary configuration, a key of `SCHEMAS`.
        overrides: The arguments as typed.
        multirun: `-m` was given; a sweep file has the same effect.
        config_dir: A further folder with groups and options, `--config-dir`.

    Raises:
        ConfigError: An argument that cannot be read at all, or a broken configuration folder.
    """
    with open_conf():
        parsed = [(text, *_sweep(text)) for text in overrides]
        search = [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"] if config_dir else []
        plain = [*search, *(text for text, key, _ in parsed if key is None)]
        base = _compose(command, plain)
        swept = {key: values for _, key, values in parsed if key is not None}
        sweeping = multirun or str(OmegaConf.select(base.config, "hydra.mode")).endswith("MULTIRUN")
        if not sweeping:
            return [_compose(command, [*search, *overrides])] if swept else [base]
        groups = groups_in(searched_folders(base.config))
        jobs = _jobs({**_swept_in_file(base.config), **swept}, groups)
        return [_compose(command, [*plain, *job]) for job in jobs]


def open_conf() -> initialize_config_dir:
    """Hydra's context over the configuration folder; a context that was open is closed first."""
    register()
    GlobalHydra.instance().clear()
    return initialize_config_dir(str(conf_folder()), version_base="1.3", job_name="t2ifb")


def _sweep(override: str) -> tuple[str | None, list[str]]:
    """The key and the arguments, one per value, of a sweep such as `seed=0,1`; (None, []) of any other argument."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        if not parsed.is_sweep_override() or parsed.key_or_group == "hydra.mode":
            return None, []
        value = parsed.value()
        ends = [value.start, value.end] if isinstance(value, IntervalSweep) else parsed.sweep_string_iterator()
        return parsed.get_key_element(), [f"{parsed.get_key_element()}={end}" for end in ends]
    except HydraException:  # not readable: `_compose` reports it
        return None, []


def _swept_in_file(config: DictConfig) -> dict[str, list[str]]:
    """The sweep that `hydra.sweeper.params` of a sweep file asks for."""
    params: dict[str, Any] = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return {key: _sweep(f"{key}={value}")[1] or [f"{key}={value}"] for key, value in params.items()}


def _jobs(swept: dict[str, list[str]], groups: Container[str]) -> Iterator[list[str]]:
    """The arguments of a job for each combination of options, the first job's first, then for each further value."""
    first = {key: values[0] for key, values in swept.items()}
    options = [key for key in swept if _chosen_group(key) in groups]
    for chosen in product(*(swept[key] for key in options)):
        yield list({**first, **dict(zip(options, chosen, strict=True))}.values())
    for key in (key for key in swept if key not in options):
        yield from (list({**first, key: value}.values()) for value in swept[key][1:])


def _compose(command: str, overrides: Sequence[str]) -> Composed:
    """Compose; when that fails, add one argument after the other to find all those that are wrong."""
    try:
        config = compose(command, overrides=list(overrides), return_hydra_config=True)
        return Composed(config, tuple(_unknown_keys(command, config)))
    except _COMPOSITION_ERRORS:
        return _compose_stepwise(command, overrides)


def _compose_stepwise(command: str, overrides: Sequence[str]) -> Composed:
    """Keep the arguments that compose, explain the others.

    Groups are chosen first. Once a choice is refused, dotted keys are not judged any more: they may belong to what
    would have been chosen.
    """
    groups = groups_in([conf_folder()])
    try:
        config = compose(command, return_hydra_config=True)
    except _COMPOSITION_ERRORS as error:
        raise ConfigError([explain_override(f"conf/{command}.yaml", error, [], groups)]) from error
    if foreign := [text for override in overrides if (text := _belongs_elsewhere(command, override))]:
        return Composed(config, tuple(foreign), choices_hold=False)  # then the others are that command's too
    accepted: list[str] = []
    errors: list[str] = []
    choices_hold = True
    first = {"hydra.searchpath", *groups}
    for override in sorted(overrides, key=lambda text: _chosen_group(text) not in first):
        if not choices_hold and "." in override.partition("=")[0]:
            continue
        try:
            config = compose(command, overrides=[*accepted, override], return_hydra_config=True)
            accepted.append(override)
        except _COMPOSITION_ERRORS as error:
            errors.append(explain_override(override, error, _keys(config), groups))
            choices_hold = choices_hold and _chosen_group(override) not in groups
    return Composed(config, (*errors, *_unknown_keys(command, config)), choices_hold)


def _belongs_elsewhere(command: str, override: str) -> str | None:
    """What to tell of an experiment that another command runs; None of any other argument."""
    if _chosen_group(override) != "experiment":
        return None
    commands = commands_of(override)
    if command in commands or not commands:
        return None
    return f"{override}: this is not for t2ifb.{command}; run python -m t2ifb.{commands[0]} {override}"


def commands_of(override: str) -> list[str]:
    """The commands that an argument such as `+experiment=table1` composes with; needs `open_conf`."""
    found = []
    for command in SCHEMAS:
        with suppress(*_COMPOSITION_ERRORS):
            compose(command, overrides=[override])
            found.append(command)
    return found


def _chosen_group(override: str) -> str:
    """The group that an argument such as `+experiment=refl` or `scorer@reward=gold` chooses from, if it is one."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _unknown_keys(command: str, config: DictConfig) -> list[str]:
    """Keys outside the schema: Hydra accepts them when they come with `+`."""
    known = {field.name for field in fields(SCHEMAS[command])}
    unknown = [str(key) for key in config if key not in known and key != "hydra"]
    names = [*known, *groups_in([conf_folder()])]
    return [f"+{key}: there is no key or group '{key}'{nearest(key, names)}" for key in unknown]


def groups_in(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Every group of some configuration folders, but for Hydra's own, and its options."""
    options: dict[str, set[str]] = {}
    for file in (file for folder in folders for file in folder.glob("*/*.yaml")):
        options.setdefault(file.parent.name, set()).add(file.stem)
    return {name: sorted(options[name]) for name in sorted(options) if name != "hydra"}


def searched_folders(config: DictConfig) -> list[Path]:
    """The folders that a configuration was composed from."""
    return [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]


def _keys(config: DictConfig) -> list[str]:
    """Every dotted key of a configuration, inner nodes too."""
    return list(flatten(OmegaConf.to_container(config, resolve=False)))


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; inner nodes are keys too, with None as their value unless they are empty."""
    if not isinstance(node, dict) or not node:
        return {prefix: node} if prefix else {}
    flat: dict[str, Any] = {prefix: None} if prefix else {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
