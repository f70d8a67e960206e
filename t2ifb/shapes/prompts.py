"""Prompts of the embedded world for fine-tuning and for judging it."""

from t2ifb.shapes.annotators import PROMPTS
from t2ifb.shapes.grammar import scenes

RANKED_SEED = 0
"""The seed that the prompts of the preference data are drawn with."""


class ScenePrompts:
    """Prompts drawn from a split of the grammar; the same seed gives the same ones.

    Those of the preference data are left out of validation and test: scorers were trained, chosen or reported on them.
    """

    def __init__(self, split: str, count: int, seed: int = 0) -> None:
        """Say which.

        Args:
            split: `train`, `validation`, `test` or `compositional`.
            count: How many, all different.
            seed: Of the draw.
        """
        self.split, self.count, self.seed = split, count, seed

    def prompts(self) -> list[str]:
        """The prompts.

        Raises:
            ValueError: There is no such split, or it has not so many.
        """
        ranked = scenes(self.split, PROMPTS[self.split], RANKED_SEED) if self.split in PROMPTS else []
        seen = frozenset(scene.prompt for scene in ranked) if self.split != "train" else frozenset()
        return [scene.prompt for scene in scenes(self.split, self.count, self.seed, seen)]
