"""Configurations of a pipeline's parts: sizes of a model without its weights, and its path."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch

from t2ifb.data.storage.hub import is_hub_id
from t2ifb.diffusion.path import GaussianPath
from t2ifb.utils.files import read_text

TAESD_ID = "madebyollin/taesd"
CONTEXT = 77
"""Default number of tokens per prompt, without a tokenizer configuration."""
TINY_DECODER = {"_class_name": "AutoencoderTiny"}
"""Configuration of a tiny decoder with the class defaults, which are those of TAESD."""


@dataclass(frozen=True)
class PipelineConfig:
    """Configurations of a pipeline in `diffusers`' format.

    Attributes:
        parts: Configuration by part, with its class as `_class_name` (diffusers) or in `architectures` (transformers).
        decoder: Configuration of an `AutoencoderTiny`.
        context: Tokens per prompt.
        notes: Assumptions, for reports.
    """

    parts: dict[str, dict[str, Any]]
    decoder: dict[str, Any] = field(default_factory=lambda: dict(TINY_DECODER))
    context: int = CONTEXT
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path, classes: Mapping[str, str], optional: Sequence[str] = ()) -> Self:
        """Read a folder in `diffusers`' format. Weights are not needed.

        Args:
            folder: The folder.
            classes: Expected class of each network, by part. The scheduler may have any class.
            optional: Networks that the pipeline may lack.

        Raises:
            ValueError: A configuration is missing, unreadable or of another network class.
        """
        parts: dict[str, dict[str, Any]] = {}
        for name, kind in classes.items():
            file = folder / name / "config.json"
            if name in optional and not file.is_file():
                continue
            part = _read(file)
            if (found := _class_of(part) or kind) != kind:
                raise ValueError(f"{file} configures a {found}; only pipelines with a {kind} are supported")
            parts[name] = {"_class_name": kind} | part
        parts["scheduler"] = _read(folder / "scheduler" / "scheduler_config.json")
        tokenizer = folder / "tokenizer" / "tokenizer_config.json"
        length = _read(tokenizer).get("model_max_length", CONTEXT) if tokenizer.is_file() else CONTEXT
        rows = [part["max_position_embeddings"] for part in parts.values() if "max_position_embeddings" in part]
        return cls(parts, context=min(int(length), *rows, *([] if rows else [CONTEXT])))

    @classmethod
    def of(
        cls,
        source: str,
        config: str | None,
        classes: Mapping[str, str],
        published: Self,
        name: str,
        ids: Sequence[str],
        optional: Sequence[str] = (),
    ) -> Self:
        """Configurations of a model, without its weights. Nothing is downloaded.

        Those of a local folder or of a cached hub id are read. Any other model is assumed to be as large as a published
        one, with a note unless it is that model.

        Args:
            source: Hub id, folder or single file.
            config: For a single file: folder or hub id of a pipeline of its kind.
            classes: As in `read`.
            published: Configurations of the published model.
            name: Its name.
            ids: Its hub ids.
            optional: As in `read`.

        Raises:
            ValueError: The path does not exist, or the folder has another format.
        """
        path = Path(source).expanduser()
        place = Path(config).expanduser() if path.is_file() and config else path
        folder = place if place.is_dir() else _cached(str(place), f"{next(iter(classes))}/config.json", 2)
        if folder is not None:
            return cls.read(folder, classes, optional)
        if path.is_file():
            note = f"{path.name} is assumed to be as large as {name}; otherwise set diffusion.config=<folder>"
            return replace(published, notes=(note,))
        if not is_hub_id(source):
            raise ValueError(f"{source} does not exist; diffusion.source is a hub id, a folder or a .safetensors file")
        note = f"{source} is not on this machine and is assumed to be as large as {name}"
        return replace(published, notes=() if source in ids else (note,))

    def with_tiny_decoder(self, source: str | None, published: str = TAESD_ID) -> Self:
        """The same with the configuration of a tiny decoder, by folder or hub id; no change without one.

        One that is not here is assumed to be as large as the published one.
        """
        if source is None:
            return self
        folder = Path(source).expanduser()
        found = folder if folder.is_dir() else _cached(source, "config.json", 1)
        if found is not None:
            return replace(self, decoder=_read(found / "config.json"))
        note = () if source == published else (f"tiny_decoder={source} is assumed to be as large as {published}",)
        return replace(self, notes=self.notes + note)

    def network(self, part: str) -> Any:
        """A part's network with random weights, on the default device and in the default type."""
        return network_of(self.parts[part])


def network_of(config: Mapping[str, Any]) -> Any:
    """A network with random weights of a class in diffusers or transformers, by its configuration."""
    import diffusers
    import transformers

    name = _class_of(config) or ""
    if hasattr(diffusers, name):
        return getattr(diffusers, name).from_config(dict(config))
    kind = getattr(transformers, name)
    return kind(kind.config_class.from_dict(dict(config)))


def path_of(scheduler: Mapping[str, Any]) -> GaussianPath:
    """The path that a pipeline with this scheduler was trained on.

    Raises:
        ValueError: It is neither a rectified flow nor a diffusion with betas, such as the path of EDM.
    """
    import diffusers

    if str(scheduler.get("_class_name")).startswith("FlowMatch"):
        flow: Any = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler))
        return GaussianPath.rectified_flow(flow.sigmas, scheduler)
    if not any(name.startswith(("beta_", "trained_betas")) for name in scheduler):
        raise ValueError(
            f"the scheduler {scheduler.get('_class_name')} has no betas; supported are models that are sampled by "
            "DDPM, DDIM and the like, and rectified flows"
        )
    preserving: Any = diffusers.DDPMScheduler.from_config(dict(scheduler))
    return GaussianPath.variance_preserving(preserving.alphas_cumprod, scheduler)


class BlankTokenizer:
    """Returns the same ids for every text, because costs do not depend on the words.

    Attributes:
        model_max_length: Number of tokens L, unless a call gives `max_length`.
    """

    def __init__(self, length: int) -> None:
        """Return ids (B, `length`) for B texts."""
        self.model_max_length = length

    def __call__(self, texts: list[str], **options: Any) -> Any:
        """Token ids as a tensor `input_ids`."""
        length = options.get("max_length", self.model_max_length)
        return SimpleNamespace(input_ids=torch.zeros(len(texts), length, dtype=torch.int64))


def _class_of(config: Mapping[str, Any]) -> str | None:
    return config.get("_class_name") or next(iter(config.get("architectures") or []), None)


def _cached(hub_id: str, file: str, depth: int) -> Path | None:
    """Local folder of a downloaded hub id if its file, `depth` levels deep, exists."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, file)
    except HFValidationError:
        return None
    return Path(found).parents[depth - 1] if isinstance(found, str) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; expected a pipeline in diffusers' format") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a configuration: it contains a {type(content).__name__}")
    return content
