"""Gold score with the interface of a scorer."""

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from t2ifb.shapes.gold.verdict import PARTS, Verdict, judge
from t2ifb.shapes.grammar import Scene


class GoldScore(nn.Module):
    """Ground truth of the `shapes` domain, for evaluation and for the simulated annotators.

    Unlike other scorers it is not differentiable. It must never be used for training, neither as a reward nor to select
    a checkpoint, because it could then no longer evaluate the model.
    """

    def __init__(self, part: str = "gold") -> None:
        """Select gold or a component: `alignment`, `fidelity`, `strict` or another of `PARTS`.

        Raises:
            ValueError: The component does not exist.
        """
        super().__init__()
        if part not in PARTS:
            raise ValueError(f"gold has no component {part!r}; expected one of {', '.join(PARTS)}")
        self.part = part

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Gold of each image for its prompt.

        Args:
            images: (B, 3, 64, 64) in [0, 1].
            prompts: B sentences of the grammar.

        Returns:
            (B,) float32 in [0, 1], on the images' device, without gradient; NaN for `relation` if the prompt has none.

        Raises:
            ValueError: The numbers of images and prompts differ, or one of them is not valid in this domain.
        """
        return self.parts(images, prompts)[self.part]

    @staticmethod
    def unknown(prompts: Iterable[str]) -> list[str]:
        """Distinct prompts that are not in the grammar."""
        found = []
        for prompt in dict.fromkeys(prompts):
            try:
                Scene.parse(prompt)
            except ValueError:
                found.append(prompt)
        return found

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """All components, each (B,) float32. `relation` is NaN if the prompt has none; `strict` is 0 or 1."""
        verdicts = [asdict(verdict) for verdict in self.verdicts(images, prompts)]
        values = {name: [float("nan") if v[name] is None else float(v[name]) for v in verdicts] for name in PARTS}
        return {name: torch.tensor(value, dtype=torch.float32, device=images.device) for name, value in values.items()}

    def verdicts(self, images: Tensor, prompts: list[str]) -> list[Verdict]:
        """Verdict of each image for its prompt. Arguments and errors as in `forward`."""
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
            raise ValueError(
                f"Expected images (B, 3, 64, 64) and B prompts, got {tuple(images.shape)} and {len(prompts)} prompts. "
                "Give one prompt per image."
            )
        pixels = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
        return [judge(image, prompt) for image, prompt in zip(pixels, prompts, strict=True)]
