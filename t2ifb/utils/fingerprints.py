"""Fingerprints: what the results in a cache depend on. The keys of all caches come from here.

A value is described by plain containers, in which code counts by its syntax, files by their content and networks by
their weights. Results of another description are computed again.
"""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from inspect import isroutine, signature
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from t2ifb.utils.files import atomic_write, sha256_file

LIBRARIES = ("torch", "diffusers", "transformers", "peft")
KEY_BYTES = 32
BESIDE = ("med_config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
"""Files that belong to a file of weights in the same folder."""
NOT_WEIGHTS = (".md", ".png")
"""Endings of files in a model's folder that do not change the model."""

HashFile: TypeAlias = Callable[[Path], str]


def fingerprint(*values: Any, hash_file: HashFile = sha256_file) -> str:
    """64 hexadecimal digits that differ where the `identity` of a value differs."""
    text = json.dumps([identity(value, hash_file) for value in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(value: Any, hash_file: HashFile = sha256_file, where: str = "value", built: bool = False) -> Any:
    """Describe a value by plain containers that are equal in two processes where the value is.

    A component that is not built yet (a `functools.partial`) counts by its class, its code and its arguments including
    defaults, a built dataclass by its fields, a network by its class, its weights and its plain attributes. Files and
    folders count by their content, not their path, and a run folder by its export. Objects with a `fingerprint()`, such
    as a `CLIPSource`, count by that. Other texts, such as hub ids, count as written.

    Args:
        value: The value.
        hash_file: SHA-256 of a file; a `FileHashes` does not read a file twice.
        where: Name of the value in messages.
        built: Whether the value is part of a built component. Partials among these may lack arguments, and objects of
            other types count by their class.

    Raises:
        ValueError: A component rejects its arguments, or a value has no identity.
    """

    def of(part: Any, name: Any, inside: bool = built) -> Any:
        return identity(part, hash_file, f"{where}.{name}", inside)

    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, Path)):
        return _content(value, hash_file)
    if isinstance(value, Mapping):
        return {str(name): of(part, name) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [of(part, number) for number, part in enumerate(value)]
    if isinstance(value, partial) and hasattr(value.func, "fingerprint"):  # cheap to build
        return value().fingerprint()
    if isroutine(value) or isinstance(value, type):
        return _code(value)
    if callable(own := getattr(value, "fingerprint", None)):
        return own()
    if isinstance(value, partial):
        arguments = _arguments(value, built)
        return {**_code(value.func), "arguments": identity(arguments, hash_file, where, built)}
    if isinstance(value, nn.Module):
        parts = {name: [_code(type(part)), of(_plain(part), name, True)] for name, part in value.named_modules()}
        return {"weights": weights_hash(value), "parts": parts}
    if is_dataclass(value):
        return {**_code(type(value)), **{f.name: of(getattr(value, f.name), f.name, True) for f in fields(value)}}
    if built:
        return _code(type(value))
    raise ValueError(
        f"{where} is a {type(value).__name__}, which has no fingerprint(); pass a plain value, a path, or the "
        "component unbuilt, as a functools.partial"
    )


class HashTable(dict[bytes, bytes]):
    """Pairs of 32 bytes in a file, shared by jobs. The file need not exist."""

    def __init__(self, path: Path) -> None:
        """Read the file."""
        super().__init__()
        self.path = path
        self._load()

    def add(self, new: Mapping[bytes, bytes]) -> None:
        """Add pairs, also those of other jobs, and write the file. In a read-only folder nothing is written."""
        self.update(new)
        self._load()
        raw = b"".join(key + value for key, value in self.items())
        with suppress(OSError), atomic_write(self.path) as file:
            np.save(file, np.frombuffer(raw, np.uint8).reshape(-1, 2, KEY_BYTES))

    def _load(self) -> None:
        with suppress(OSError, ValueError, EOFError):
            table = np.load(self.path, allow_pickle=False)
            if table.dtype == np.uint8 and table.shape[1:] == (2, KEY_BYTES):
                self.update((key.tobytes(), value.tobytes()) for key, value in table)


class FileHashes:
    """SHA-256 of files, stored on disk by path, time and size, so that the next process need not read the files."""

    def __init__(self, memory: Path) -> None:
        """Store the hashes in the file `memory`."""
        self.table = HashTable(memory)

    def __call__(self, path: Path) -> str:
        """The SHA-256 of a file as 64 hexadecimal digits."""
        key = hashlib.sha256(repr(stamp(path)).encode()).digest()
        if key not in self.table:
            self.table.add({key: bytes.fromhex(sha256_file(path))})
        return self.table[key].hex()


def stamp(path: Path) -> list[str | int]:
    """Path, time and size of a file, which change with its content.

    Raises:
        OSError: The file is missing.
    """
    status = path.stat()
    return [str(path.absolute()), status.st_mtime_ns, status.st_size]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that sample images. Other releases may sample other images from the same noise."""
    return {name: version(name) for name in LIBRARIES}


@lru_cache(maxsize=256)
def code_hash(module: str) -> str:
    """SHA-256 of the code of a module and of all modules of its package that it imports, directly or not.

    The ground truth of `shapes`, for example, is defined by code alone. Comments do not count. Other packages are not
    included, because every release of torch would then invalidate a scorer's results. Modules are read, not executed;
    only their parent packages are imported.

    Args:
        module: Full module name. For modules without source, such as built-in ones, and for those of `LIBRARIES`, only
            the name is hashed.
    """
    package = module.rpartition(".")[0]
    trees: dict[str, ast.Module] = {}
    waiting = [] if package.partition(".")[0] in LIBRARIES else [module]
    while waiting:
        name = waiting.pop()
        if name in trees or (tree := _source(name)) is None:
            continue
        trees[name] = tree
        waiting += [found for found in _imported(tree) if package and found.startswith(f"{package}.")]
    digest = hashlib.sha256(module.encode())
    for name in sorted(trees):
        digest.update(ast.dump(trees[name]).encode())
    return digest.hexdigest()[:16]


def _source(module: str) -> ast.Module | None:
    try:
        origin = getattr(find_spec(module), "origin", None) or ""
        return ast.parse(Path(origin).read_bytes()) if origin.endswith(".py") else None
    except (ImportError, ValueError, OSError):  # a name inside a module, a script, or a missing file
        return None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Full names of possible modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def qualified_name(value: Any) -> str:
    """Full name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def _code(made_by: Callable[..., Any]) -> dict[str, str]:
    """Name and code of a class or function."""
    return {"class": qualified_name(made_by), "code": code_hash(str(getattr(made_by, "__module__", "")))}


def _arguments(part: partial[Any], some: bool) -> dict[str, Any]:
    """Arguments of a component by name, including defaults; with `some`, required ones may be missing.

    Raises:
        ValueError: The component does not accept the arguments.
    """
    try:
        takes = signature(part.func)
    except ValueError:  # C functions, such as `partial` itself, have no signature
        return {"": list(part.args), **part.keywords}
    try:
        bound = (takes.bind_partial if some else takes.bind)(*part.args, **part.keywords)
    except TypeError as error:
        raise ValueError(f"{part.func.__qualname__}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _content(value: str | Path, hash_file: HashFile) -> Any:
    """Hash of a file or folder; the text itself if no such file exists."""
    try:
        path = Path(value).expanduser()
        is_file, is_folder = path.is_file(), bool(str(value).strip()) and path.is_dir()
    except (OSError, ValueError, RuntimeError):  # path too long, null byte, or no home folder
        return str(value)
    if is_file:
        files = [path, *(other for name in BESIDE if (other := path.with_name(name)).is_file())]
        return {"files": [hash_file(file) for file in files]}
    if is_folder:
        path = path / "export" if (path / "export").is_dir() else path
        inside = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix not in NOT_WEIGHTS)
        return {"files": {file.relative_to(path).as_posix(): hash_file(file) for file in inside}}
    return str(value)


def _plain(module: nn.Module) -> dict[str, Any]:
    """What a network was made with, as far as that is plain."""
    plain = (bool, int, float, str, Path, list, tuple, dict)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: value for name, value in own.items() if is_dataclass(value) or isinstance(value, plain)}


def weights_hash(module: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, also of those that a checkpoint does not have."""
    digest = hashlib.sha256()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
