"""Reading pipelines of `diffusers` from a hub id, a folder or a single file, for all families of models."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from t2ifb.data.storage.hub import is_hub_id
from t2ifb.utils.files import package_path, read_text

INDEX = "model_index.json"
ENCODERS = ("text_encoder", "tokenizer")


def read_pipeline(
    kind: Any,
    source: str,
    dtypes: Mapping[str, torch.dtype],
    variant: str | None = None,
    config: str | None = None,
    **options: Any,
) -> Any:
    """A pipeline without progress bars.

    Args:
        kind: Class of the pipeline.
        source: Hub id, folder in diffusers' format, or single `.safetensors` file.
        dtypes: Types of the networks by part, with `default` for all others.
        variant: Variant of the files, such as `fp16`.
        config: For a single file: folder or hub id of a pipeline of the same kind, for its configuration.
        options: Further arguments of `from_pretrained` and `from_single_file`.

    Raises:
        ValueError: The weights are missing, cannot be downloaded, or are not such a pipeline.
    """
    _check_files(source, kind.__name__)
    path = Path(source).expanduser()
    found = kind.__name__ if path.exists() else _hub_class(source)
    if found not in (None, kind.__name__):
        raise ValueError(_of_another_class(source, found, kind.__name__))
    try:
        with quiet():  # the model card mentions the disabled safety checker
            if path.is_file():
                loaded = _single_file(
                    kind, path, dtypes, {**({"config": located(config)} if config else {}), **options}
                )
            else:
                where = str(path) if path.is_dir() else source
                extra = {"requires_safety_checker": False} if "safety_checker" in options else {}
                loaded = kind.from_pretrained(
                    where, dtype=dict(dtypes), variant=variant, use_safetensors=True, **options, **extra
                )
    except Exception as error:  # the hub, diffusers, transformers and safetensors raise various types
        raise ValueError(_failure(source, config, kind.__name__, error)) from error
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _single_file(kind: Any, path: Path, dtypes: Mapping[str, torch.dtype], options: Mapping[str, Any]) -> Any:
    """A pipeline in a single file. Its parts are read in float32 and then rounded once if their types differ."""
    if "quantization_config" in options:
        raise ValueError("quantisation needs a folder in diffusers' format or a hub id, not a single file")
    same = len(set(dtypes.values())) == 1
    loaded = kind.from_single_file(str(path), dtype=dtypes["default"] if same else torch.float32, **options)
    for name, network in loaded.components.items() if not same else ():
        if isinstance(network, torch.nn.Module):
            _round(network, dtypes.get(name, dtypes["default"]))
    return loaded


def _round(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Change the type of a network's weights, except for those that overflow in fp16, such as T5's `wo`."""
    kept = (getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    for name, weight in [*network.named_parameters(), *network.named_buffers()]:
        if weight.is_floating_point() and not set(kept) & set(name.split(".")):
            weight.data = weight.data.to(dtype)


def located(source: str) -> str:
    """A folder or file with `~` expanded; a hub id as it is."""
    path = Path(source).expanduser()
    return str(path) if path.exists() else source


def read_tiny_decoder(source: str) -> Any:
    """An `AutoencoderTiny`, by folder or hub id.

    Raises:
        ValueError: It cannot be loaded.
    """
    from diffusers import AutoencoderTiny

    try:
        with quiet():
            return AutoencoderTiny.from_pretrained(located(source))
    except Exception as error:
        raise ValueError(f"cannot load tiny_decoder={source}: {first_line(error)}") from error


def read_vae(source: str, dtype: torch.dtype) -> Any:
    """An `AutoencoderKL`, by folder or hub id.

    Raises:
        ValueError: It cannot be loaded.
    """
    from diffusers import AutoencoderKL

    try:
        with quiet():
            return AutoencoderKL.from_pretrained(located(source), dtype=dtype)
    except Exception as error:
        raise ValueError(f"cannot load vae={source}: {first_line(error)}") from error


def pipeline_class(source: str, config: str | None = None) -> str:
    """Name of a pipeline's class, from `model_index.json`; of a single file, from that of its configuration.

    Raises:
        ValueError: There is no such file, or it cannot be downloaded.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if config is None:
            raise ValueError(
                f"{source} is a single file; also give config=<folder or hub id of a pipeline of its kind>"
            )
        return pipeline_class(config)
    if path.is_dir():
        _check_files(source)
        return _named_class(path / INDEX)
    from huggingface_hub import hf_hub_download

    try:
        return _named_class(Path(hf_hub_download(source, INDEX)))
    except Exception as error:
        raise ValueError(_failure(source, config, "", error)) from error


def _hub_class(source: str) -> str | None:
    """Class of a pipeline on the hub; None if that is not known, which loading reports."""
    try:
        return pipeline_class(source)
    except ValueError:
        return None


def absent_encoders(folder: Path) -> list[str]:
    """Text encoders and tokenizers that a folder's index says are missing; `from_pretrained` needs `<name>=None`."""
    try:
        index = dict(json.loads(read_text(folder / INDEX)))
    except (OSError, ValueError, TypeError):  # no folder, or a broken index, which loading reports
        return []
    return [name for name, part in index.items() if name.startswith(ENCODERS) and part == [None, None]]


def _named_class(index: Path) -> str:
    try:
        return str(json.loads(read_text(index))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {index}: {error!r}; expected a pipeline in diffusers' format") from error


def _check_files(source: str, expected: str | None = None) -> None:
    """Check that a file or folder can be a model. Weights are not read.

    Raises:
        ValueError: The file or folder is not a model, or a pipeline of another class than `expected`.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"{path}: only .safetensors files are read, because other formats can run code when they are loaded. "
            "Get the model as .safetensors, or convert it to a folder in diffusers' format"
        )
    if path.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete .safetensors file ({error}): download it again") from error
    elif path.is_dir() and not (path / INDEX).is_file():
        hint = "expected a folder in diffusers' format"
        if files := sorted(path.glob("*.safetensors")):
            hint = f"for a single file give model.source='{files[0]}' and model.config=… (a pipeline of its kind)"
        raise ValueError(f"{path} has no {INDEX}; {hint}")
    elif path.is_dir() and expected and (found := _named_class(path / INDEX)) != expected:
        raise ValueError(_of_another_class(str(path), found, expected))


def _of_another_class(source: str, found: str | None, expected: str) -> str:
    return f"{source} is a {found}, and this family of models reads a {expected}"


def _failure(source: str, config: str | None, kind: str, error: Exception) -> str:
    path = Path(source).expanduser()
    if not path.exists() and _refused(error):
        page = f"https://huggingface.co/{source}"
        return (
            f"the hub refuses the diffusion model {source}: its weights are gated, or it does not exist. Accept the "
            f"licence on {page}, then set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
        )
    if path.exists():
        hint = "" if path.is_dir() or config else " A single file also needs config=<folder of a pipeline of its kind>."
        return f"cannot load {source} as a {kind or 'pipeline'}: {first_line(error)}.{hint}"
    if package_path(path):
        command = f"python -m t2ifb.shapes.training --part {path.name}"
        return f"{path} is missing in this installation; train it with `{command}`"
    if not is_hub_id(source):
        return f"{source} does not exist; expected a hub id, a folder in diffusers' format or a .safetensors file"
    if not any(isinstance(each, _unreachable()) for each in _causes(error)):
        return f"cannot load {source} as a {kind or 'pipeline'}: {first_line(error)}"
    return (
        f"the diffusion model {source} is not on this machine and cannot be downloaded "
        f"({type(error).__name__}). Download it where a network is available: hf download {source}; then "
        "give model.source=…, its folder, also for a copied folder"
    )


def _refused(error: BaseException) -> bool:
    """Whether the hub answered 401 or 403, anywhere in the causes of an error."""
    return any(getattr(getattr(e, "response", None), "status_code", None) in (401, 403) for e in _causes(error))


def _unreachable() -> tuple[type[Exception], ...]:
    """Errors that mean that a file is neither here nor within reach."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, ConnectionError


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and messages of the libraries that load weights."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
