"""HPSv2: CLIP ViT-H/14 tuned on the preferences of HPDv2 (arXiv 2306.09341)."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from torch import Tensor, nn
from torch.nn.functional import pad

from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.preprocess import resize
from t2ifb.scorers.weights import find_weights

if TYPE_CHECKING:
    from t2ifb.scorers.clip import CLIPEncoder

HUB_ID, FILE, MODEL = "xswu/HPSv2", "HPS_v2.1_compressed.pt", "ViT-H-14"


class HPSv2(nn.Module):
    """Cosine of a fine-tuned CLIP's embeddings, from -1 to 1, not scaled; version 2.1.

    As in the authors' code (github.com/tgxs002/HPSv2), the long side of an image is resized to the network's size and
    the rest is padded with black, whereas CLIP crops.

    Attributes:
        name: Name in tables.
    """

    name = "HPSv2.1"

    def __init__(self, score: CLIPScore) -> None:
        """Store the cosine score on the fine-tuned encoder."""
        super().__init__()
        self.score = score

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = HUB_ID,
        model: str = MODEL,
        precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    ) -> Self:
        """Find the weights. The network is built when the first image is scored.

        Args:
            source: `HPS_v2.1_compressed.pt`, a folder that contains it, or its hub id.
            model: Name of the network in `open_clip`, with plain GELU as activation.
            precision: Precision of the weights. The score is always float32.

        Raises:
            ValueError: The weights are missing.
        """
        path = find_weights(source, FILE)
        return cls(CLIPScore(CLIPSource(model, str(path), precision, quick_gelu=False)))

    @classmethod
    def on_meta(
        cls,
        source: str | Path = HUB_ID,
        model: str = MODEL,
        precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    ) -> Self:
        """Build the scorer without weights; see `scorers.meta`."""
        return cls(CLIPScore.on_meta(CLIPSource(model, str(source), precision, quick_gelu=False)))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings; truncated to the model's context.

        Returns:
            (B,) float32 in [-1, 1], differentiable with respect to the images.
        """
        size = cast("CLIPEncoder", self.score.encoder).image_size
        scores: Tensor = self.score(square(images, size), prompts)
        return scores


def square(images: Tensor, size: int) -> Tensor:
    """Resize the long side of images (B, 3, H, W) to `size` and pad with black to (B, 3, size, size), centred.

    The authors' `ResizeMaxSize`: the short side is rounded to whole pixels. Unlike theirs, an image whose long side is
    already `size` is padded too.
    """
    scale = size / max(images.shape[2:])
    height, width = (max(round(side * scale), 1) for side in images.shape[2:])
    more = [size - side for side in (width, height)]
    black = [more[0] // 2, more[0] - more[0] // 2, more[1] // 2, more[1] - more[1] // 2]
    return pad(resize(images, (height, width)), black)
