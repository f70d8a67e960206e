"""Settings of a run as plain containers, laid out as the configuration of the command line."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

PLAIN = (str, int, float, bool, type(None))
PLACES = {
    "model": "diffusion",
    **{name: name for name in ("dataset", "encoder", "head", "optimizer", "prompts")},
    **{name: name for name in ("reward", "judges", "rollout", "sampling", "seed")},
}
"""Keys of arguments that are not below `algorithm`."""
UNRECORDED = ("output_dir", "trainer", "logger", "config", "resume", "cache_folder")
"""Arguments that change no result."""
WEIGHTS = ("alpha", "beta")


def settings_of(run: Any, **more: Any) -> dict[str, Any]:
    """Settings of a run that are known as its attributes, by the names of its arguments.

    Args:
        run: A `FineTuner` or `RewardTrainer`.
        more: Further arguments.
    """
    names = [name for name in inspect.signature(type(run)).parameters if hasattr(run, name) and name not in UNRECORDED]
    found = {name: described(getattr(run, name)) for name in names} | described(more)
    weights = {name: found["algorithm"][name] for name in WEIGHTS if name in found.get("algorithm", {})}
    places = {PLACES[name]: found.pop(name) for name in [*found] if name in PLACES}
    return {**places, "algorithm": {"_target_": _name(type(run)), **found, **weights}}


def described(value: Any) -> Any:
    """A value as plain containers. A component is a mapping with its class as `_target_`, and its arguments."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): described(each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [described(each) for each in value]
    if isinstance(value, partial):
        arguments = {"_args_": described(value.args)} if value.args else {}
        return {"_target_": _name(value.func), "_partial_": True, **arguments, **described(value.keywords)}
    if is_dataclass(value) and not isinstance(value, type):
        return {"_target_": _name(type(value)), **{f.name: described(getattr(value, f.name)) for f in fields(value)}}
    if inspect.isroutine(value) or isinstance(value, type):
        return {"_target_": _name(value), "_partial_": True}
    known = {
        name: each for name, each in getattr(value, "__dict__", {}).items() if name[0] != "_" and name != "training"
    }
    try:
        accepted = set(inspect.signature(type(value)).parameters)
    except ValueError:  # a class in C, such as `torch.dtype`
        accepted = set()
    kept = {name: each for name, each in known.items() if name in accepted or isinstance(each, (*PLAIN, Path))}
    return {"_target_": _name(type(value)), **{name: described(each) for name, each in kept.items()}}


def _name(value: Any) -> str:
    """Full name of a class or function."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}".strip(".")
