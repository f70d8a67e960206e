"""Hashes and versions of code, weights and arguments, so that results of others are not reused."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that sample images. Other releases may sample other images from the same noise."""
    return {name: version(name) for name in LIBRARIES}


@lru_cache(maxsize=256)
def code_hash(module: str) -> str:
    """SHA-256 of a module's source and of all modules of its package that it imports, directly or not.

    The ground truth of `shapes`, for example, is defined by code alone. Other packages are not included, because every
    release of torch would then invalidate a scorer's results. Modules are read, not executed; only their parent
    packages are imported.

    Args:
        module: Full module name. For modules without source, such as built-in ones, only the name is hashed.
    """
    package = module.rpartition(".")[0]
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources or (source := _source(name)) is None:
            continue
        sources[name] = source
        waiting += [found for found in _imported(source) if package and found.startswith(f"{package}.")]
    digest = hashlib.sha256(module.encode())
    for name in sorted(sources):
        digest.update(hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()[:16]


def _source(module: str) -> bytes | None:
    try:
        spec = find_spec(module)
        return Path(spec.origin).read_bytes() if spec and spec.origin and spec.origin.endswith(".py") else None
    except (ImportError, ValueError, OSError):  # a name inside a module, a script, or a missing file
        return None


def _imported(source: bytes) -> Iterator[str]:
    """Full names of possible modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def fingerprint(value: Any) -> Any:
    """Describe an argument by plain containers that are equal in two processes where the argument is.

    A network is described by its class, weights and plain attributes, and those of its submodules. Named files and
    folders are described by their paths, times and sizes; for a run folder only its export counts.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return _stamped(str(value))
    if isinstance(value, Mapping):
        return {str(key): fingerprint(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(item) for item in value]
    if isinstance(value, partial):
        return [qualified_name(value.func), fingerprint(value.args), fingerprint(value.keywords)]
    if isinstance(value, type):
        return qualified_name(value)
    if callable(own := getattr(value, "fingerprint", None)):
        return own()
    if isinstance(value, nn.Module):
        attributes = {name: _attributes(part) for name, part in value.named_modules()}
        return [qualified_name(value), weights_hash(value), attributes]
    if is_dataclass(value):
        return [qualified_name(value), {each.name: fingerprint(getattr(value, each.name)) for each in fields(value)}]
    return qualified_name(value)


def qualified_name(value: Any) -> str:
    """Full name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _attributes(module: nn.Module) -> list[Any]:
    """The class of a network and what it was made with, as far as that is plain."""
    plain = (bool, int, float, str, Path, list, tuple, dict)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return [
        qualified_name(module),
        {name: fingerprint(v) for name, v in own.items() if is_dataclass(v) or isinstance(v, plain)},
    ]


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, also of those that a checkpoint does not have."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _stamped(value: str) -> Any:
    """A text; where it names a file or a folder, with times and sizes."""
    path = Path(value.removeprefix("local-dir:")).expanduser()
    try:
        exported = path / "export"
        inside = sorted((exported if exported.is_dir() else path).rglob("*")) if value and path.is_dir() else [path]
        files = [(str(file.relative_to(path)), file.stat()) for file in inside if file.is_file()]
        return [value, [(name, status.st_mtime_ns, status.st_size) for name, status in files]]
    except (OSError, ValueError):  # path too long, or a null byte
        return value
