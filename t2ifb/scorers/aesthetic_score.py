"""Aesthetic Score: predicted visual quality of an image, independent of the prompt."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor, nn

from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.heads import linear_stack
from t2ifb.scorers.weights import check_names, find_weights, read_state

FILE = "sac+logos+ava1-l14-linearMSE.pth"
ADDRESS = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{quote(FILE)}"
PUBLISHED = CLIPSource("ViT-L-14-quickgelu", "openai")
"""Encoder of LAION's predictor."""


class AestheticHead(nn.Module):
    """LAION's predictor on an image embedding: D → 1024 → 128 → 64 → 16 → 1, all linear.

    Trained by mean squared error on ratings from 1 to 10 (SAC, LAION-Logos, AVA); source
    github.com/christophschuhmann/improved-aesthetic-predictor.

    Attributes:
        width: D.
    """

    def __init__(self, width: int = 768) -> None:
        """Build the layers for embeddings of `width` entries."""
        super().__init__()
        self.width = width
        self.layers = linear_stack(width)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "AestheticHead":
        """Read `sac+logos+ava1-l14-linearMSE.pth`, or a file of the same layout for another width.

        Returns:
            The head in evaluation mode, in float32, without gradients for its weights.

        Raises:
            ValueError: The file has another format.
        """
        path = Path(path)
        state = read_state(path)
        first = state.get("layers.0.weight")
        head = cls(first.shape[1] if first is not None and first.ndim == 2 else 1)
        check_names(set(state), set(head.state_dict()), path, "the aesthetic predictor")
        try:
            head.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the tensor shapes in {path} do not match the aesthetic predictor: {error}") from error
        return head.float().eval().requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Predict the rating.

        Args:
            embeddings: (B, D), L2-normalised.

        Returns:
            (B,).
        """
        ratings: Tensor = self.layers(embeddings)
        return ratings.squeeze(-1)


class AestheticScore(nn.Module):
    """Predicted rating of an image from its CLIP embedding, about 1 to 10. The prompt is ignored.

    Attributes:
        name: Name in tables.
        encoder: Frozen CLIP.
        head: The predictor.
    """

    name = "Aesthetic Score"

    def __init__(self, encoder: CLIPEncoder, head: AestheticHead) -> None:
        """Combine an encoder with a head trained on its embeddings.

        Raises:
            ValueError: The head expects another embedding width.
        """
        super().__init__()
        if head.width != encoder.embedding_dim:
            raise ValueError(
                f"the aesthetic head expects embeddings of width {head.width}, but {encoder.source.model} returns "
                f"{encoder.embedding_dim}; use the encoder that it was trained on (LAION's: ViT-L-14-quickgelu, openai)"
            )
        self.encoder, self.head = encoder, head

    @classmethod
    def from_pretrained(
        cls, source: str | Path = ADDRESS, encoder: CLIPSource | CLIPEncoder | None = None
    ) -> "AestheticScore":
        """Load the predictor and its encoder.

        Args:
            source: The file, a folder that contains it, or its URL.
            encoder: `PUBLISHED` by default.

        Raises:
            ValueError: The weights are missing or do not match.
        """
        head = AestheticHead.from_checkpoint(find_weights(source, FILE, "aesthetic.safetensors"))
        encoder = encoder or PUBLISHED
        return cls(encoder if isinstance(encoder, CLIPEncoder) else replace(encoder, device="cpu").load(), head)

    @classmethod
    def on_meta(cls, source: str | Path = ADDRESS, encoder: CLIPSource | None = None) -> "AestheticScore":
        """Build the scorer without weights; see `scorers.meta`."""
        from t2ifb.scorers.meta import MetaCLIP

        built = MetaCLIP.of(encoder or PUBLISHED).load()
        with torch.device("meta"):
            return cls(built, AestheticHead(built.embedding_dim))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings; ignored.

        Returns:
            (B,) float32, differentiable with respect to the images.
        """
        scores: Tensor = self.head(self.encoder.encode_images(images))
        return scores
