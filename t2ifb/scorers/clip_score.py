"""CLIP Score: the cosine of the image's and the prompt's embedding."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from t2ifb.data.encoder import Encoder, EncoderSource
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.preprocess import check_counts


class CLIPScore(nn.Module):
    """The cosine similarity in CLIP's space (arXiv 2103.00020), from -1 to 1, not scaled.

    Attributes:
        name: How tables call it.
        source: Where its encoder comes from, if that is known; cached embeddings of the same encoder can be scored
            with `score_embeddings` without building it.
    """

    name = "CLIP Score"

    def __init__(self, encoder: Encoder | EncoderSource) -> None:
        """Score with an encoder.

        Args:
            encoder: An encoder, or a source of one, which is then built when the first image is scored.
        """
        super().__init__()
        # A buffer moves with the module, and so tells where an encoder that is built later belongs.
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
        """Score with a published or local CLIP.

        Args:
            source: A `CLIPSource`, a folder in `open_clip`'s form, or an `open_clip` model name.
            pretrained: With a model name: a tag of `open_clip`, or a file.
        """
        if isinstance(source, CLIPSource):
            return cls(source)
        model = f"local-dir:{source}" if Path(source).is_dir() else str(source)
        return cls(CLIPSource(model, pretrained))

    @classmethod
    def outline(cls, source: CLIPSource | str | Path, pretrained: str | None = None) -> "CLIPScore":
        """The same without weights, see `scorers.outline`."""
        from t2ifb.scorers.outline import CLIPOutline

        named = cls.from_pretrained(source, pretrained).source
        assert isinstance(named, CLIPSource)
        return cls(CLIPOutline.of(named).load())

    @property
    def encoder(self) -> Encoder:
        """The encoder, built now if it was not before."""
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
        """The score from L2-normalised embeddings (B, D) each; (B,)."""
        return (image_embeddings * prompt_embeddings).sum(-1)
