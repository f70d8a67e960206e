"""What the embedding cache asks of an encoder, and what is said of prompts that an encoder cuts off."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from t2ifb.data.faults import brief

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """A pair of encoders into one space, such as CLIP."""

    image_size: int
    embedding_dim: int

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to L2-normalised float32 (B, D); all preprocessing is done inside."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """B texts to L2-normalised float32 (B, D)."""
        ...


class EncoderSource(Protocol):
    """What is known of an encoder before its weights are built."""

    def fingerprint(self) -> str:
        """What differs between encoders that give different embeddings; cheap."""
        ...

    def load(self) -> Encoder:
        """Build the encoder."""
        ...


def cut_prompts(reader: Any, prompts: Iterable[str]) -> list[str]:
    """The distinct prompts that an encoder or scorer cuts off.

    Args:
        reader: What reads the prompts. Those of its parts that cut off long prompts have a method
            `cut_prompts(prompts)`, which gives the ones that are longer than their context.
        prompts: Texts.
    """
    distinct = list(dict.fromkeys(prompts))
    parts: Iterable[Any] = reader.modules() if isinstance(reader, nn.Module) else [reader]
    found = {prompt for part in parts if hasattr(part, "cut_prompts") for prompt in part.cut_prompts(distinct)}
    return [prompt for prompt in distinct if prompt in found]


def report_cut(cut: Sequence[str], prompts: Iterable[str], name: str) -> None:
    """Log how many prompts are longer than what reads them, called `name`; nothing if none is."""
    if cut:
        logger.warning(
            "%d of %d prompts are longer than the context of %s and are cut off, the first: %s",
            *(len(cut), len(set(prompts)), name, brief(cut[0])),
        )
