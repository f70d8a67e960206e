"""Scorers without weights: their networks on the `meta` device, from configuration or from the shapes in a file.

A scorer's class defines how it is built without weights: `on_meta` takes the arguments of its `from_pretrained`. The
result has the scorer's own class and can be called on `meta` tensors within a `MetaMode`, with the same costs as the
real scorer. Nothing is downloaded, and only names and shapes are read from large local files.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from t2ifb.scorers.clip import CLIPSource, check_folder


class NoMetaModel(ValueError):
    """A scorer's class does not define how to build it without weights."""


def on_meta(part: Any, untrained: Callable[[CLIPSource | None], nn.Module]) -> Any:
    """Build a scorer's frozen network without weights.

    Args:
        part: A `partial` that would build the scorer. Partials among its arguments are built first, scorers as
            meta models. Any other value is returned unchanged.
        untrained: Builds a stand-in for a reward model that is missing on this machine, on a given or the default
            encoder. It is passed to every `on_meta` that accepts it beside the arguments of `from_pretrained`.

    Raises:
        NoMetaModel: The scorer, or one inside it, has no `on_meta`.
        ValueError: The encoder does not exist.
    """
    if isinstance(part, dict):
        return {name: on_meta(value, untrained) for name, value in part.items()}
    if isinstance(part, list):
        return [on_meta(value, untrained) for value in part]
    if not isinstance(part, partial):
        return part
    arguments = {name: on_meta(value, untrained) for name, value in part.keywords.items()}
    if hasattr(part.func, "fingerprint"):  # an encoder source, which is cheap to build
        return part.func(*part.args, **arguments)
    kind = getattr(part.func, "__self__", part.func)
    if not hasattr(kind, "on_meta"):
        raise NoMetaModel(f"{kind.__qualname__} has no `on_meta`")
    if "untrained" in signature(kind.on_meta).parameters:
        arguments["untrained"] = untrained
    network: nn.Module = kind.on_meta(*part.args, **arguments)
    return network.to("meta").requires_grad_(False).eval()


@dataclass(frozen=True)
class MetaCLIP(CLIPSource):
    """A source that loads the network on the `meta` device, without weights."""

    @classmethod
    def of(cls, source: CLIPSource) -> Self:
        """The meta model of a source."""
        return cls(**vars(source) | {"device": "meta"})

    def create(self) -> tuple[nn.Module, Any]:
        """Build the `open_clip` model without weights, and its tokenizer.

        Raises:
            ValueError: The model does not exist.
        """
        if self.folder is not None:
            check_folder(self.folder)
        with torch.device("meta"), _quiet():
            return self._create(None, load_weights=False, device="meta")

    def _shared_as(self) -> str:
        """Sharing key: equal for meta models of equal sources. No file is read or needed."""
        model = self.model if self.folder is None else str(self.folder.resolve())
        file = Path(self.pretrained or "").expanduser()
        weights = str(file.resolve()) if file.is_file() else self.pretrained
        return f"meta model of {(model, weights, self.precision, self.quick_gelu)}"


def blank_tokens(prompts: list[str], max_length: int, **options: Any) -> dict[str, Tensor]:
    """Stand-in for a tokenizer: as many ids as the longest prompt needs, with arbitrary values."""
    ids = torch.zeros(len(prompts), max_length, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def shapes_in(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the `meta` device."""
    if file.suffix == ".safetensors":
        with safe_open(str(file), "pt") as opened:
            names = opened.keys()
            return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    content = torch.load(file, map_location="meta", weights_only=True)
    return dict(content.get("model", content))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress `open_clip`'s warning about missing weights."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
