"""What code does, as hashes and versions: what other code scored or drew is not the same score or image."""

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def library_versions() -> dict[str, str]:
    """Of what draws images: another release may draw others from the same weights and noise."""
    return {name: version(name) for name in LIBRARIES}


@lru_cache(maxsize=256)
def code_hash(module: str) -> str:
    """The SHA-256 of a module's source and of all that it imports, directly or not, from its own package.

    The ground truth of the embedded world, for one, is nothing but code. What other packages do is left to them: a
    scorer's own version would be wanted for every release of torch otherwise. Modules are read, not run; only the
    packages that they lie in are imported.

    Args:
        module: Its full name; of one without source, such as a built-in one, only the name counts.
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
    except (ImportError, ValueError, OSError):  # no module but a name in one; a script; a file that is gone
        return None


def _imported(source: bytes) -> Iterator[str]:
    """Full names of what may be modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
