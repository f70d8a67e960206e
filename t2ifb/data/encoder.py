"""Interface of encoders for the embedding cache, and the report of truncated prompts."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from t2ifb.data.faults import brief

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """Image and text encoder with a shared embedding space, such as CLIP."""

    image_size: int
    embedding_dim: int

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to L2-normalised float32 (B, D), preprocessing included."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Encode B texts to L2-normalised float32 (B, D)."""
        ...


class EncoderSource(Protocol):
    """Description of an encoder that builds it on demand."""

    def fingerprint(self) -> str:
        """Identifier that differs between encoders with different embeddings. Does not build the encoder."""
        ...

    def load(self) -> Encoder:
        """Build the encoder."""
        ...


def cut_prompts(reader: Any, prompts: Iterable[str]) -> list[str]:
    """The distinct prompts that an encoder or scorer truncates.

    Args:
        reader: Encoder or scorer. Its parts that truncate long prompts have a method `cut_prompts(prompts)`, which
            returns the prompts that exceed their context.
        prompts: Texts.
    """
    distinct = list(dict.fromkeys(prompts))
    parts: Iterable[Any] = reader.modules() if isinstance(reader, nn.Module) else [reader]
    found = {prompt for part in parts if hasattr(part, "cut_prompts") for prompt in part.cut_prompts(distinct)}
    return [prompt for prompt in distinct if prompt in found]


def report_cut(cut: Sequence[str], prompts: Iterable[str], name: str) -> None:
    """Log how many prompts exceed the context of `name`. No log entry if none does."""
    if cut:
        logger.warning(
            "%d of %d prompts are longer than the context of %s and are cut off, the first: %s",
            *(len(cut), len(set(prompts)), name, brief(cut[0])),
        )
