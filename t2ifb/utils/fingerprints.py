"""Hashes and versions of code, so that results of other code are not reused."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

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
