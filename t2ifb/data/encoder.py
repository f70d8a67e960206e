"""What the embedding cache asks of an encoder."""

from typing import Protocol, runtime_checkable

from torch import Tensor


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
