"""Find published weights: a file, a folder, a URL or a hub id."""

import hashlib
import pickle
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from t2ifb.data.storage.hub import hub_errors, is_hub_id


def find_weights(source: str | Path, filename: str, *others: str) -> Path:
    """Path of a file of published weights, downloaded if missing.

    Args:
        source: The file itself, a folder that contains it, a URL (`https://…/filename`), or a hub id (`owner/name`).
        filename: Published name of the file.
        others: Alternative names in a folder.

    Raises:
        ValueError: The file is missing and cannot be downloaded; the message says how to get it.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if found := [path / name for name in (filename, *others) if (path / name).is_file()]:
            return found[0]
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise ValueError(f"the folder {path} has no {filename}; it contains {there}")
    text = str(source)
    if text.startswith("https://"):
        return _from_address(text, filename)
    if not is_hub_id(source):
        raise ValueError(f"{source} does not exist; expected {filename}, a folder that contains it, or a hub id")
    return _from_hub(text, filename)


def beside(path: Path, name: str) -> Path | None:
    """The file `name` in the same folder, if it exists."""
    other = path.with_name(name)
    return other if other.is_file() else None


def read_state(path: Path, within: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name from a checkpoint, without executing code in it.

    Args:
        path: `.safetensors`, or a file written by `torch.save`.
        within: Entry of the checkpoint that contains them, if present.

    Raises:
        ValueError: The file is not such a checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot read {path} as a checkpoint: {first[:200]}") from error
    if isinstance(content, dict) and within in content:
        content = content[within]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} contains no tensors by name" + (f" and no entry {within!r}" if within else ""))
    return content


def check_names(found: set[str], expected: set[str], path: Path, what: str) -> None:
    """Check that a checkpoint has exactly the expected tensors.

    Raises:
        ValueError: Tensors are missing or unknown; the message names some.
    """
    errors = [
        f"{word} {', '.join(sorted(names)[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        for word, names in (("it lacks", expected - found), ("it has unknown", found - expected))
        if names
    ]
    if errors:
        raise ValueError(f"{path} is not a checkpoint of {what}: {'; '.join(errors)}")


def _from_hub(hub_id: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    refusals: tuple[type[Exception], ...] = (ValueError, *hub_errors())
    try:
        return Path(hf_hub_download(hub_id, filename))
    except refusals as error:
        raise ValueError(
            f"{filename} is not on this machine and cannot be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}). Download it where a network is available: "
            f"hf download {hub_id} {filename}; then pass the file or its folder as `source`."
        ) from error


def _check_length(file: Path, address: str) -> None:
    """Remove a download that ended early.

    Raises:
        OSError: It is shorter or longer than the server said.
    """
    try:
        with urlopen(Request(address, method="HEAD"), timeout=60) as answer:
            announced = answer.headers.get("Content-Length")
    except (OSError, HTTPException):  # such as a server that does not know HEAD
        return
    if announced is not None and int(announced) != (size := file.stat().st_size):
        file.unlink()
        raise OSError(f"the connection ended after {size} of {announced} bytes")


def _from_address(address: str, filename: str) -> Path:
    named = f"{hashlib.sha256(address.encode()).hexdigest()[:8]}-{filename}"  # two URLs may end with the same name
    target = Path(torch.hub.get_dir()) / "checkpoints" / named
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(target))
            _check_length(target, address)
        except (OSError, HTTPException) as error:
            raise ValueError(
                f"{filename} is not on this machine and cannot be downloaded ({error}). Download it where a network is "
                f"available: curl -LO {address}; then pass the file as `source`."
            ) from error
    return target
