"""From a composed configuration to objects: the only code that calls `instantiate`."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from t2ifb.config.compose import Composed, flatten, searched_folders
from t2ifb.config.errors import ConfigError
from t2ifb.config.paths import conf_folder
from t2ifb.config.signatures import ELSEWHERE, RESERVED, component_errors, locate
from t2ifb.config.spelling import typed_arguments
from t2ifb.config.where import settings

ON_ERROR = "on_error"
NOT_PARTS = ("baselines", "judges", "scorers")
"""Keys of the schema that hold a mapping from names to components, not a component."""
PLAIN = ("scorer_sources",)
"""Keys of the schema that hold a mapping from names to plain values."""


def check(composed: Composed) -> None:
    """Find everything that is wrong with a configuration before anything heavy is loaded.

    Arguments and keys outside the schema were found in composition; here come missing values, interpolations that
    lead nowhere, and every component's `_target_` and arguments.

    Raises:
        ConfigError: With all errors.
    """
    config = composed.config
    errors = list(composed.errors)
    refused = bool(errors)  # then a refused argument may be the one that would have given a missing value
    for key, raw in _raw(config).items() if composed.choices_hold else ():
        if not refused:
            errors += [
                f"{name}: a value is needed, give {name}=…"
                for name, value in flatten(raw, key).items()
                if value == "???"
            ]
        try:
            node = _own(raw, _plain(config, key))
        except OmegaConfBaseException as error:
            if not isinstance(error, InterpolationToMissingValueError):  # reported where it is missing
                errors.append(f"{error.full_key or key}: {str(error).splitlines()[0]}")
            continue
        if isinstance(node, dict) and key not in (*NOT_PARTS, *PLAIN) and "_target_" not in node:
            errors.append(f"{key}: not a component, it has no _target_; choose one by {_choice(key)}")
        for name, child in node.items() if isinstance(node, dict) and key in NOT_PARTS else ():
            if child is not None and child is not ELSEWHERE and not (isinstance(child, dict) and "_target_" in child):
                errors.append(f"{key}.{name}: not a component, it has no _target_; give +scorer@{key}.{name}=<option>")
        errors += [_with_file(error, config) for error in component_errors(node, key)]
    if errors:
        raise ConfigError(errors)


class Components:
    """The values and the components of one run, each built when it is asked for.

    Args:
        config: A checked configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config

    def value(self, key: str) -> Any:
        """A plain value, interpolations resolved."""
        return _plain(self._config, key)

    def build(self, key: str, **given: Any) -> Any:
        """Build the component `key` and those inside it; None for a component that is null.

        Args:
            key: The component.
            given: Arguments that the configuration does not have, or that replace its own.

        Raises:
            ConfigError: The component refuses its arguments.
        """
        made = self._instantiated(key, given)
        if made is None or not given:
            return made
        try:
            return made(**given)
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError([f"{key}: {self.advised(error, key)}"]) from error

    def unfinished(self, key: str, without: Sequence[str] = (), **given: Any) -> Any:
        """A component that the configuration gives as a partial, with more arguments, not called.

        Args:
            key: The component.
            without: Arguments of the configuration that are left out, and are not built.
            given: Arguments that the configuration does not have, or that replace its own.

        Raises:
            ConfigError: A component among its arguments refuses its own.
        """
        return partial(self._instantiated(key, (*given, *without)), **given)

    def _instantiated(self, key: str, without: Collection[str]) -> Any:
        """The component without some of its arguments; None for null."""
        node = self.value(key)
        if node is None:
            return None
        try:
            return instantiate({name: each for name, each in node.items() if name not in without}, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__
            if isinstance(cause, (ValueError, TypeError, OSError)):
                raise ConfigError([f"{key}: {self.advised(cause, key)}"]) from error
            raise cause or error from error

    def advised(self, error: Exception, key: str = "algorithm") -> str:
        """The message of the library, followed by the arguments of the command line that it names.

        Args:
            error: The error.
            key: The component that it is about.
        """
        typed = typed_arguments(str(error), _raw(self._config), key)
        return f"{error}" + (f" (on the command line: {' '.join(typed)})" if typed else "")

    def skipping(self, place: str) -> str:
        """The arguments that make the components that read `place` skip bad records; empty if none does.

        Args:
            place: A path, or a text that begins with one, as `BadRecords.place`.
        """
        found = [f"{name}=skip" for key, raw in _raw(self._config).items() for name in self._skips(key, raw, place)]
        return " and ".join(found)

    def _skips(self, key: str, raw: Any, place: str) -> Iterator[str]:
        if key == ON_ERROR and raw != "skip" and _reads(self.value("file"), place):
            yield key
        elif isinstance(raw, dict):
            yield from _skip_keys(_own(raw, self.value(key)), key, place)

    def settle(self, key: str, value: Any) -> None:
        """Put a value in the place of one that was to be found out, such as the run that `latest` means."""
        OmegaConf.update(self._config, key, value, merge=False, force_add=True)

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain containers, to be recorded."""
        return {key: self.value(key) for key in _raw(self._config)}

    def written(self) -> dict[str, Any]:
        """The whole configuration as plain containers, interpolations as they are written."""
        return _raw(self._config)

    @property
    def arguments(self) -> list[str]:
        """The arguments as typed."""
        return [str(argument) for argument in HydraConfig.get().overrides.task]

    @property
    def run_folder(self) -> Path:
        """Where Hydra put this run."""
        return Path(HydraConfig.get().runtime.output_dir)


def lazy(node: Any) -> Any:
    """A component as a `partial` that makes it when called, and so are the components among its arguments.

    What gets it can tell what would be built without building it. A component that the configuration already gives as
    a partial becomes a partial of `partial`.

    Args:
        node: Plain containers, checked.
    """
    if isinstance(node, dict) and "_target_" in node:
        target = locate(str(node["_target_"]))
        assert callable(target), target
        arguments = {name: lazy(value) for name, value in node.items() if name not in RESERVED}
        positional = [lazy(value) for value in node.get("_args_", ())]
        if node.get("_partial_"):
            return partial(partial, target, *positional, **arguments)
        return partial(target, *positional, **arguments)
    if isinstance(node, dict):
        return {name: lazy(value) for name, value in node.items()}
    return [lazy(value) for value in node] if isinstance(node, list) else node


def _skip_keys(node: Any, key: str, place: str) -> Iterator[str]:
    """`on_error` of each component in a node that reads `place`, with a + where no file sets it."""
    if not isinstance(node, dict):
        return
    reads_it = any(_reads(value, place) for name, value in node.items() if name not in RESERVED)
    if "_target_" in node and reads_it and node.get(ON_ERROR) != "skip":
        target = locate(str(node["_target_"]))
        if callable(target) and ON_ERROR in signature(target).parameters:
            yield f"{'' if ON_ERROR in node else '+'}{key}.{ON_ERROR}"
    for name, child in node.items():
        yield from _skip_keys(child, f"{key}.{name}", place)


def _reads(value: Any, place: str) -> bool:
    """Whether an argument is the path that a text begins with, or a mapping with that path."""
    if isinstance(value, dict):
        return any(_reads(item, place) for item in value.values())
    if not isinstance(value, str) or not value:
        return False
    path = str(Path(value).expanduser())
    return place.startswith(path) or (path == "." and not Path(place).is_absolute())


def _plain(config: DictConfig, key: str) -> Any:
    node = OmegaConf.select(config, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _raw(config: DictConfig) -> dict[str, Any]:
    """The configuration without Hydra's own part, interpolations as they are written."""
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def _with_file(error: str, config: DictConfig) -> str:
    """Name the file that set the key, when it is one of the chosen files and not the command line."""
    key, _, text = error.partition(": ")
    last = next(iter(settings(key, config)[-1:]), None)
    if (
        last is None
        or last.file is None
        or not any(last.file.is_relative_to(path) for path in searched_folders(config))
    ):
        return error
    return f"{key} (conf/{last.file.parent.name}/{last.file.name}): {text}"


def _choice(key: str) -> str:
    """How a component is chosen: by its group, or by an experiment where it has none."""
    return f"{key}=<option>" if (conf_folder() / key).is_dir() else "+experiment=<option>; --help lists them"


def _own(raw: Any, resolved: Any) -> Any:
    """The resolved node without the components that it only refers to: they are checked where they stand."""
    if isinstance(raw, str) and isinstance(resolved, dict):
        return ELSEWHERE
    if isinstance(raw, dict) and isinstance(resolved, dict):
        return {key: _own(raw[key], resolved[key]) for key in resolved}
    return resolved
