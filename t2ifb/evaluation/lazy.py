"""Components that are not built yet: identity, name and construction.

An unbuilt component is a `functools.partial` whose call builds it, such as
`partial(CLIPScore.from_pretrained, source=CLIPSource("ViT-L-14-quickgelu", "openai"))`. Partials among the arguments
are components that are built first.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import isroutine, signature
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from t2ifb.data.content_keys import ImageKeys
from t2ifb.scorers.reward_model import export_hash, read_export
from t2ifb.scorers.weights import BESIDE
from t2ifb.utils.files import sha256_file
from t2ifb.utils.fingerprints import code_hash, fingerprint, qualified_name, weights_hash

Unbuilt: TypeAlias = partial[Any]


class UnusableScorers(ValueError):
    """Scorers that cannot be built or fail.

    Attributes:
        errors: Error message of each scorer, by name.
    """

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors = dict(errors)
        super().__init__("\n".join(f"{name}: {error}" for name, error in errors.items()))

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        """Make the exception picklable."""
        return type(self), (self.errors,)


def build(part: Any) -> Any:
    """Build a component and those among its arguments. Other values are returned unchanged."""
    if isinstance(part, partial):
        return part.func(*map(build, part.args), **{name: build(value) for name, value in part.keywords.items()})
    if isinstance(part, dict):
        return {name: build(value) for name, value in part.items()}
    return [build(value) for value in part] if isinstance(part, list) else part


def as_node(part: Any) -> Any:
    """A component as plain containers with `_target_`, from which Hydra can build it.

    Raises:
        ValueError: An argument is an object, which cannot be written down.
    """
    if isinstance(part, partial):
        made_by, arguments = part.func, list(part.args)
        options: dict[str, Any] = {}
        if made_by is partial and arguments:
            made_by, options["_partial_"] = arguments.pop(0), True
        if arguments:
            options["_args_"] = as_node(arguments)
        return {"_target_": qualified_name(made_by), **options, **as_node(part.keywords)}
    if isinstance(part, Mapping):
        return {str(name): as_node(value) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [as_node(value) for value in part]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Path):
        return str(part)
    raise ValueError(f"{type(part).__name__} cannot be written down")


def owner(part: Unbuilt) -> Any:
    """The component's class as far as its factory reveals it; the class has the name used in tables."""
    return getattr(part.func, "__self__", part.func)


class Identities:
    """Identities of scorers without building them.

    A scorer is identified by its class, its code, and its arguments including defaults. Files and folders count by
    their content, not their path; an exported reward model by the hash of its weights and by its encoder; objects with
    a `fingerprint()`, such as a `CLIPSource`, by that. Hub ids and URLs count as written.
    """

    def __init__(self, memory: Path) -> None:
        """Store hashes of files, keyed by path, time and size, in the file `memory`."""
        self._hashes = ImageKeys(memory)

    def __call__(self, part: Callable[..., Any]) -> str:
        """Identity as JSON of an unbuilt component, of a network, or of a class or function (its code).

        Raises:
            ValueError: A component rejects its arguments, or an argument has no identity.
        """
        return json.dumps(self._of(part, "scorer"), sort_keys=True)

    def _of(self, part: Any, where: str) -> Any:
        if isinstance(part, partial):
            made_by = part.func
            if hasattr(made_by, "fingerprint"):  # cheap to build, and defines its own identity
                return {"fingerprint": build(part).fingerprint()}
            return {**_code(made_by), "arguments": self._of(_arguments(part), where)}
        if callable(own := getattr(part, "fingerprint", None)):
            return {"fingerprint": own()}
        if isinstance(part, nn.Module):
            return {**_code(type(part)), "weights": weights_hash(part), "attributes": fingerprint(part)[-1]}
        if isinstance(part, Mapping):
            return {str(name): self._of(value, f"{where}.{name}") for name, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [self._of(value, f"{where}.{number}") for number, value in enumerate(part)]
        if isinstance(part, (str, Path)):
            return self._content(part)
        if part is None or isinstance(part, (bool, int, float)):
            return part
        if isroutine(part) or isinstance(part, type):
            return _code(part)
        raise ValueError(
            f"{where} is a {type(part).__name__}, which has no fingerprint(); pass a plain value, a path, or the "
            "component unbuilt, as a functools.partial"
        )

    def _content(self, value: str | Path) -> Any:
        """Hash of a file or folder; the text itself if no such file exists."""
        try:
            path = Path(value).expanduser()
            kind = "file" if path.is_file() else "folder" if str(value).strip() and path.is_dir() else ""
        except (OSError, ValueError, RuntimeError):  # path too long, null byte, or no home folder
            kind = ""
        if not kind:
            return str(value)
        if kind == "file":  # include the files read beside it
            files = [path, *(other for name in BESIDE if (other := path.with_name(name)).is_file())]
            return {"files": self._hash(files)}
        try:
            export = read_export(path)
        except ValueError:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            names = [file.relative_to(path).as_posix() for file in files]
            return {"files": dict(zip(names, self._hash(files), strict=True))}
        return {"export": export_hash(export.folder), "head": export.head, "encoder": export.fingerprint}

    def _hash(self, files: Sequence[Path]) -> list[str]:
        return [key.hex() for key in self._hashes([_HashedFile(file) for file in files])]


class _HashedFile:
    """Adapter that lets `ImageKeys` store the hash of any file, also one larger than memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> str:
        status = self.path.stat()
        return f"hashed|{self.path.absolute()}|{status.st_mtime_ns}|{status.st_size}"

    def read(self) -> bytes:
        return sha256_file(self.path).encode()

    def open(self) -> Any:
        raise ValueError(f"{self.path} is a file of weights, not an image")


def _arguments(part: Unbuilt) -> dict[str, Any]:
    """Arguments of a component by name, including defaults.

    Raises:
        ValueError: The component does not accept the arguments.
    """
    try:
        takes = signature(part.func)
    except ValueError:  # C functions, such as `partial` itself, have no signature
        return {"": list(part.args), **part.keywords}
    try:
        bound = takes.bind(*part.args, **part.keywords)
    except TypeError as error:
        raise ValueError(f"{part.func.__qualname__}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _code(made_by: Callable[..., Any]) -> dict[str, str]:
    """Identity of a class or function: its name and code hash."""
    module = str(getattr(made_by, "__module__", ""))
    name = getattr(made_by, "__qualname__", type(made_by).__qualname__)
    return {"class": f"{module}.{name}", "code": code_hash(module)}
