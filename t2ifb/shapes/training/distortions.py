"""Image damage like that of imperfect generators, and words for it.

Captions on the web also describe image quality, and so do the training captions of the shapes CLIP.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

QUALITY_WORDS: dict[str, tuple[str, ...]] = {
    "edges": ("sharp", "soft", "blurry"),
    "shapes": ("true", "wobbly", "deformed"),
    "colors": ("vivid", "pale", "faded"),
    "surface": ("clean", "grainy", "noisy"),
    "wholeness": ("whole", "chipped", "broken"),
    "overall": ("perfect", "good", "fair", "poor", "awful"),
}
"""Words for each aspect, from undamaged to badly damaged."""

ASPECTS = tuple(QUALITY_WORDS)[:-1]


@dataclass(frozen=True)
class Damage:
    """Severity of damage per image and aspect.

    Attributes:
        severity: (B, 5) in [0, 1], columns as `ASPECTS`; 0 is none.
    """

    severity: Tensor

    @property
    def overall(self) -> Tensor:
        """One number per image in [0, 1]: 1 - Π (1 - 0.8 severity)."""
        return 1 - (1 - 0.8 * self.severity).prod(1)

    def words(self, index: int, draw: torch.Generator) -> str:
        """A short phrase about one image ("poor, blurry"), or nothing (in about a quarter of cases)."""
        chance = torch.rand(3, generator=draw)
        phrase = []
        if chance[0] < 0.6:
            phrase.append(word("overall", self.overall[index].item()))
        if chance[1] < 0.6:
            severity = self.severity[index]
            aspect = int(torch.multinomial(severity + 0.05, 1, generator=draw))
            phrase.append(word(ASPECTS[aspect], severity[aspect].item()))
        return ", ".join(phrase)


def word(aspect: str, severity: float) -> str:
    """Word of an aspect for a severity in [0, 1]."""
    words = QUALITY_WORDS[aspect]
    if severity < 0.02:
        return words[0]
    return words[min(len(words) - 1, 1 + int(severity * (len(words) - 1)))]


def sample(count: int, draw: torch.Generator) -> Damage:
    """Severities for `count` images: a quarter undamaged, the others in one to three aspects."""
    severity = torch.rand(count, len(ASPECTS), generator=draw)
    active = torch.rand(count, len(ASPECTS), generator=draw) < 0.4
    damaged = torch.rand(count, 1, generator=draw) < 0.75
    return Damage(severity**1.5 * (active & damaged))  # mild damage is more frequent, as in generated images


def apply(images: Tensor, damage: Damage, draw: torch.Generator) -> Tensor:
    """Apply damage to images (B, 3, 64, 64) in [0, 1]; same shape and range."""
    edges, shapes, colors, surface, wholeness = damage.severity.unbind(1)
    images = _warp(images, 4.0 * shapes, draw)
    images = _break(images, wholeness, draw)
    images = _fade(images, 0.7 * colors, draw)
    images = _blur(images, edges)
    noise = torch.randn(images.shape, generator=draw)
    return (images + 0.15 * surface[:, None, None, None] * noise).clamp(0, 1)


def _smooth_field(batch: int, channels: int, cells: int, size: int, draw: torch.Generator) -> Tensor:
    coarse = torch.randn(batch, channels, cells, cells, generator=draw)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def _warp(images: Tensor, amplitude: Tensor, draw: torch.Generator) -> Tensor:
    """Smooth elastic displacement with a standard deviation of about `amplitude` / 2 pixels."""
    batch, _, size, _ = images.shape
    shift = _smooth_field(batch, 2, 10, size, draw) * amplitude[:, None, None, None] / size
    identity = F.affine_grid(torch.eye(2, 3).expand(batch, 2, 3), [batch, 3, size, size], align_corners=False)
    return F.grid_sample(images, identity + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _break(images: Tensor, amount: Tensor, draw: torch.Generator) -> Tensor:
    """Replace patches by those of another image in the batch or by plain background."""
    mask = torch.sigmoid(
        6 * (_smooth_field(len(images), 1, 5, images.shape[-1], draw) - 1.5 + amount[:, None, None, None])
    )
    other = images.roll(1, 0)
    plain = images[:, :, :2, :2].mean((2, 3), keepdim=True).expand_as(images)
    choose = torch.rand(len(images), 1, 1, 1, generator=draw) < 0.5
    mask = mask * (amount > 0)[:, None, None, None]
    return images + mask * (torch.where(choose, plain, 0.5 * other + 0.5 * plain) - images)


def _fade(images: Tensor, amount: Tensor, draw: torch.Generator) -> Tensor:
    """Mix every colour with gray or with a random tint."""
    tint = torch.rand(len(images), 3, 1, 1, generator=draw)
    gray = images.mean(1, keepdim=True).expand_as(images)
    target = torch.where(torch.rand(len(images), 1, 1, 1, generator=draw) < 0.5, gray, 0.5 * gray + 0.5 * tint)
    return images + amount[:, None, None, None] * (target - images)


def _blur(images: Tensor, amount: Tensor) -> Tensor:
    """Blur by interpolating between fixed Gaussians of 0, 1 and 2.5 pixels."""
    blurred = images.clone()
    rows = amount.nonzero().flatten()
    sharp, position = images[rows], (2 * amount[rows])[:, None, None, None]
    soft, blurry = (
        gaussian_blur(gaussian_blur(sharp, [width, 1], [sigma, sigma]), [1, width], [sigma, sigma])
        for width, sigma in ((7, 1.0), (13, 2.5))
    )
    lower, upper = torch.where(position < 1, sharp, soft), torch.where(position < 1, soft, blurry)
    blurred[rows] = lower + (position - (position >= 1).float()) * (upper - lower)
    return blurred
