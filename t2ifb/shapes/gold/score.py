"""The gold judge with the interface of a scorer."""

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from t2ifb.shapes.gold.verdict import PARTS, Verdict, judge
from t2ifb.shapes.grammar import Scene


class GoldScore(nn.Module):
    """Ground truth of the embedded world: evaluates, and guides the simulated annotators.

    Unlike the other scorers it is not differentiable: no gradient reaches the images. It must never be trained on,
    neither as a reward nor for choosing a checkpoint; a model that has seen it can no longer be judged by it.
    """

    def __init__(self, part: str = "gold") -> None:
        """Give gold, or a part of it: `alignment`, `fidelity`, `strict` or another of `PARTS`.

        Raises:
            ValueError: There is no such part.
        """
        super().__init__()
        if part not in PARTS:
            raise ValueError(f"gold has no part {part!r}; expected one of {', '.join(PARTS)}")
        self.part = part

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Gold of each image for its prompt.

        Args:
            images: (B, 3, 64, 64) in [0, 1].
            prompts: B sentences of the grammar.

        Returns:
            (B,) float32 in [0, 1], on the images' device, without gradient; NaN for a `relation` that is not asked.

        Raises:
            ValueError: If the numbers of images and prompts differ, or one of them is not of this world.
        """
        return self.parts(images, prompts)[self.part]

    @staticmethod
    def unknown(prompts: Iterable[str]) -> list[str]:
        """Those of some prompts that are not of this world, each once."""
        found = []
        for prompt in dict.fromkeys(prompts):
            try:
                Scene.parse(prompt)
            except ValueError:
                found.append(prompt)
        return found

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """All parts of the verdicts, each (B,) float32; `relation` is NaN where none is asked, `strict` 0 or 1."""
        verdicts = [asdict(verdict) for verdict in self.verdicts(images, prompts)]
        values = {name: [float("nan") if v[name] is None else float(v[name]) for v in verdicts] for name in PARTS}
        return {name: torch.tensor(value, dtype=torch.float32, device=images.device) for name, value in values.items()}

    def verdicts(self, images: Tensor, prompts: list[str]) -> list[Verdict]:
        """The verdict on each image for its prompt; arguments and errors as `forward`."""
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
            raise ValueError(
                f"Expected images (B, 3, 64, 64) and B prompts, got {tuple(images.shape)} and {len(prompts)} prompts. "
                "Give one prompt per image."
            )
        pixels = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
        return [judge(image, prompt) for image, prompt in zip(pixels, prompts, strict=True)]
