"""CLIP Score: cosine similarity of the image and prompt embeddings."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from t2ifb.data.embeddings import Encoder, EncoderSource
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.preprocess import check_counts


class CLIPScore(nn.Module):
    """Cosine similarity in CLIP's space (arXiv 2103.00020), from -1 to 1, not scaled.

    Attributes:
        name: Name in tables.
        source: Source of the encoder, if known. `score_embeddings` scores cached embeddings of this encoder without
            building it.
    """

    name = "CLIP Score"

    def __init__(self, encoder: Encoder | EncoderSource) -> None:
        """Store the encoder.

        Args:
            encoder: An encoder, or a source that builds it on first use.
        """
        super().__init__()
        # A buffer moves with the module and so records the device for an encoder that is built later.
        self._place: Tensor
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.source: EncoderSource | None = None
        self._encoder: Encoder | None = None
        if isinstance(encoder, Encoder):
            self._encoder = encoder
            self.source = getattr(encoder, "source", None)
        else:
            self.source = encoder

    @classmethod
    def from_pretrained(cls, source: CLIPSource | str | Path, pretrained: str | None = None) -> "CLIPScore":
        """Load a published or local CLIP.

        Args:
            source: A `CLIPSource`, a folder in `open_clip`'s format, or an `open_clip` model name.
            pretrained: With a model name: a tag of `open_clip`, or a file.
        """
        if isinstance(source, CLIPSource):
            return cls(source)
        model = f"local-dir:{source}" if Path(source).is_dir() else str(source)
        return cls(CLIPSource(model, pretrained))

    @classmethod
    def on_meta(cls, source: CLIPSource | str | Path, pretrained: str | None = None) -> "CLIPScore":
        """Build the scorer without weights; see `scorers.meta`."""
        from t2ifb.scorers.meta import MetaCLIP

        named = cls.from_pretrained(source, pretrained).source
        assert isinstance(named, CLIPSource)
        return cls(MetaCLIP.of(named).load())

    @property
    def encoder(self) -> Encoder:
        """The encoder, built on first access."""
        if self._encoder is None:
            assert self.source is not None
            source, place = self.source, self._place.device
            encoder = (replace(source, device=str(place)) if isinstance(source, CLIPSource) else source).load()
            self._encoder = encoder.to(place) if isinstance(encoder, nn.Module) else encoder
        return self._encoder

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32 in [-1, 1], differentiable with respect to the images.
        """
        check_counts(images, prompts)
        return self.score_embeddings(self.encoder.encode_images(images), self.encoder.encode_prompts(prompts))

    @staticmethod
    def score_embeddings(image_embeddings: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Scores (B,) from L2-normalised embeddings, (B, D) each."""
        return (image_embeddings * prompt_embeddings).sum(-1)
