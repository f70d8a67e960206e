"""Which files set a key, and on which line: `--where KEY` of every command."""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from t2ifb.config.compose import flatten, open_conf, searched_folders
from t2ifb.config.errors import ConfigError, nearest_key
from t2ifb.config.schema import SCHEMAS

COMMAND_LINE = "command line"
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([^${}:,]+)(?:,[^{}]*)?\}")
"""A value that is another key, such as `${optimizer}`, or that key's if it is there: `${oc.select:key,otherwise}`."""


@dataclass(frozen=True)
class Setting:
    """One place that gives a key a value.

    Attributes:
        key: The key that is set, or one above it that refers to another: `algorithm.optimizer` is `${optimizer}`.
        value: As written; empty for a mapping or a list.
        file: None for the command line.
        line: Counted from 1.
    """

    key: str
    value: str
    file: Path | None = None
    line: int = 0

    @property
    def place(self) -> str:
        """File and line, relative to the working folder where the file is inside it."""
        if self.file is None:
            return COMMAND_LINE
        file = self.file.resolve()
        inside = file.is_relative_to(Path.cwd())
        return f"{file.relative_to(Path.cwd()) if inside else file}:{self.line}"


def settings(key: str, config: DictConfig, typed: Sequence[str] | None = None) -> list[Setting]:
    """Every place that sets `key`, the one that wins last.

    Where the key, or a key above it, is a reference to another key, the places that set that one follow.

    Args:
        key: Dotted, such as `optimizer.lr`.
        config: Composed, with its `hydra` node.
        typed: The command line's arguments; by default those that `config` was composed from.
    """
    command = str(config.hydra.job.config_name)
    with open_conf():
        loader = GlobalHydra.instance().config_loader()
        overrides = [str(text) for texts in config.hydra.overrides.values() for text in texts]
        defaults = loader.compute_defaults_list(command, overrides, RunMode.RUN).defaults
    files: list[tuple[Path, str]] = []
    for default in defaults:
        found = (folder / f"{default.config_path}.yaml" for folder in searched_folders(config))
        if file := next((path for path in found if path.is_file()), None):
            files.append((file, default.package or ""))
    given = [str(text) for text in config.hydra.overrides.task] if typed is None else list(typed)
    return _follow(key, command, files, given, set())


def _follow(key: str, command: str, files: list[tuple[Path, str]], typed: list[str], seen: set[str]) -> list[Setting]:
    """The places of `key`, then those of the key that the last of them refers to."""
    seen.add(key)
    found = [setting for file, package in files for setting in _in_file(key, file, package)]
    found = found or list(_in_schema(key, command))
    found += [setting for file, package in files for setting in _in_sweep(key, file, package)]
    found += _typed(key, typed)
    reference = _REFERENCE.fullmatch(found[-1].value) if found else None
    if reference is None:
        return found
    other = reference[1] + key[len(found[-1].key) :]
    return found if other in seen else [*found, *_follow(other, command, files, typed, seen)]


def _in_file(key: str, file: Path, package: str) -> Iterator[Setting]:
    """What a file that is merged at `package` says of `key`."""
    node = yaml.compose(file.read_text(encoding="utf-8-sig"))
    if node is None:
        return
    if f"{package}.".startswith(f"{key}."):
        yield Setting(key, "", file, node.start_mark.line + 1)
        return
    if package and not key.startswith(f"{package}."):
        return
    reached, line = package, 0
    for name in key[len(package) :].lstrip(".").split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        entry = next(((mark, value) for mark, value in entries if mark.value == name), None)
        if entry is None:
            break
        reached, line, node = f"{reached}.{name}".lstrip("."), entry[0].start_mark.line + 1, entry[1]
    value = node.value if isinstance(node, yaml.ScalarNode) else ""
    if line and (reached == key or _REFERENCE.fullmatch(value)):
        yield Setting(reached, value, file, line)


def _in_sweep(key: str, file: Path, package: str) -> Iterator[Setting]:
    """What a sweep file gives the key, job by job."""
    for params in _in_file("hydra.sweeper.params", file, package):
        for line, text in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            name, colon, value = text.strip().partition(":")
            if line > params.line and colon and name == key:
                yield Setting(key, value.strip(), file, line)


def _in_schema(key: str, command: str) -> Iterator[Setting]:
    """The default in the schema of the command, or of the one that it extends."""
    for schema in SCHEMAS[command].__mro__:
        if key in getattr(schema, "__annotations__", {}):
            lines, first = inspect.getsourcelines(schema)
            line = next(number for number, text in enumerate(lines, first) if text.strip().startswith(f"{key}:"))
            default = next(each.default for each in fields(SCHEMAS[command]) if each.name == key)
            value = str(default) if isinstance(default, (str, int, float, bool)) else ""
            yield Setting(key, value, Path(inspect.getfile(schema)), line)
            return


def _typed(key: str, arguments: list[str]) -> Iterator[Setting]:
    """What the command line gives the key, or a key above it."""
    for argument in arguments:
        name = OverridesParser.create().parse_override(argument).key_or_group
        if f"{key}.".startswith(f"{name}."):
            yield Setting(name, argument.partition("=")[2], None)


def where_text(key: str, configs: Sequence[DictConfig], typed: Sequence[str]) -> str:
    """What `--where` prints.

    Args:
        key: Dotted, such as `optimizer.lr`.
        configs: Composed; several in a sweep.
        typed: The command line's arguments.

    Raises:
        ConfigError: There is no such key.
    """
    config = configs[0]
    known: Any = flatten(OmegaConf.to_container(config, resolve=False))
    found = settings(key, config, typed)
    if not found and key not in known:
        raise ConfigError([f"--where {key}: there is no such key{nearest_key(key, known)}"])
    value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    lines = [key if OmegaConf.is_config(value) else f"{key} = {'null' if value is None else value}"]
    lines[0] += " in the first job" if len(configs) > 1 else ""
    width = max((len(setting.place) for setting in found), default=0)
    for setting in found:
        text = f"{setting.key}: {setting.value}".rstrip(": ") if setting.value else setting.key
        lines.append(f"  {setting.place:<{width}}  {text}")
    return "\n".join(lines)
