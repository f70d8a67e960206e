"""A component's arguments against the signature of its `_target_`, without building it."""

import collections.abc
import importlib
import importlib.util
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ifb.config.errors import nearest

ELSEWHERE = object()
"""Stands for a component that an interpolation brings in from another place, where it is checked."""

RESERVED = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys of a component that are Hydra's and no arguments."""
_SEQUENCES = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def component_errors(node: Any, key: str) -> list[str]:
    """What is wrong with a component and the components inside it; importing their modules is all that it does.

    Args:
        node: Plain containers, interpolations resolved.
        key: Where the node is in the configuration, such as `algorithm.dataset`.
    """
    errors: list[str] = []
    if isinstance(node, dict) and "_target_" in node:
        target = locate(str(node["_target_"]))
        errors += [f"{key}._target_: {target}"] if isinstance(target, str) else _argument_errors(node, key, target)
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        errors += component_errors(child, f"{key}.{name}")
    return errors


def locate(path: str) -> Callable[..., Any] | str:
    """Import the object a dotted path names; when there is none, say why."""
    first, *rest = path.split(".")
    name = first
    try:
        found: Any = importlib.import_module(first)
        for name in rest:
            child = f"{found.__name__}.{name}" if hasattr(found, "__path__") else None
            if child and not hasattr(found, name) and importlib.util.find_spec(child):
                importlib.import_module(child)
            if not hasattr(found, name):
                return f"'{path}' does not exist, {_name_of(found)} has no '{name}'{nearest(name, _names_in(found))}"
            found = getattr(found, name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (first, path):
            return f"'{path}' does not exist, there is no module '{error.name}'"
        return f"importing '{path}' fails at '{name}': {error}"
    return found if callable(found) else f"'{path}' is not callable"


def _argument_errors(node: Mapping[str, Any], key: str, target: Callable[..., Any]) -> list[str]:
    """Unknown, missing and wrongly typed arguments of one component."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built in C: nothing is known about its arguments
        return []
    hints = _hints(target)
    name = _name_of(target)
    given = {argument: value for argument, value in node.items() if argument not in RESERVED}
    keyword = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    errors: list[str] = []
    for argument, value in given.items():
        if argument in keyword:
            default = keyword[argument].default
            hint = hints.get(argument, Any)
            if not (value is None and default is None) and not matches(value, hint):
                errors.append(
                    f"{key}.{argument}: expected {_describe(hint)}, got {_shorten(value)}{_choice(value, hint)}"
                )
        elif not takes_any:
            errors.append(f"{key}.{argument}: {name} takes no argument '{argument}'{nearest(argument, keyword)}")
    if not node.get("_partial_") and "_args_" not in node:
        required = [n for n, p in keyword.items() if p.default is p.empty and n not in given]
        errors += [f"{key}.{argument}: {name} needs this argument, give {key}.{argument}=…" for argument in required]
    return errors


def matches(value: Any, hint: Any) -> bool:
    """Whether a plain value can be an argument annotated with `hint`; True if that cannot be determined."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is ELSEWHERE or value == "???" or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin is typing.Annotated:
        return matches(value, arguments[0])
    kind = origin or hint
    if kind is tuple and len(arguments) > 0 and arguments[-1] is not Ellipsis and isinstance(value, list):
        return len(value) == len(arguments) and all(map(matches, value, arguments))
    if kind in _SEQUENCES:
        inner = arguments[0] if arguments else Any
        return isinstance(value, (list, tuple)) and all(matches(item, inner) for item in value)
    if kind in _MAPPINGS:
        inner = arguments[1] if len(arguments) == 2 else Any
        return isinstance(value, dict) and all(matches(item, inner) for item in value.values())
    return _matches_class(value, kind)


def _matches_class(value: Any, kind: Any) -> bool:
    """`matches` for annotations without parameters."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, (str, Path))
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind in (None, types.NoneType):
        return value is None
    plain = value is None or isinstance(value, (str, int, float, list))
    if kind is collections.abc.Callable:
        return not plain
    if inspect.isclass(kind) and kind.__module__.split(".")[0] in ("t2ifb", "torch"):
        return not plain
    return True


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function or of a class's `__init__`, or nothing when they cannot be evaluated."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)  # type: ignore[misc]
    except Exception:  # an annotation is any expression and may raise anything
        return {}


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return "null"
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else re.sub(r"(\w+\.)+", "", str(hint))


def _choice(value: Any, hint: Any) -> str:
    """The nearest of a Literal's options."""
    literals = [hint] if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    options = [o for h in literals if typing.get_origin(h) is typing.Literal for o in typing.get_args(h)]
    return nearest(value, [option for option in options if isinstance(option, str)]) if isinstance(value, str) else ""


def _shorten(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _name_of(found: Any) -> str:
    return str(getattr(found, "__qualname__", None) or getattr(found, "__name__", found))


def _names_in(found: Any) -> Sequence[str]:
    """What a module or class holds, a package's submodules too."""
    submodules = [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
    return [*getattr(found, "__all__", ()), *(name for name in dir(found) if not name.startswith("_")), *submodules]
