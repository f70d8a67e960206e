"""Prompts of the `shapes` domain for fine-tuning and evaluation."""

from t2ifb.shapes.annotators import PROMPTS
from t2ifb.shapes.grammar import scenes

RANKED_SEED = 0
"""Seed of the prompts in the preference data."""


class ScenePrompts:
    """Prompts drawn from a split of the grammar, as a function of the seed.

    Validation and test exclude prompts of the preference data, because scorers were fitted or reported on those.
    """

    def __init__(self, split: str, count: int, seed: int = 0) -> None:
        """Store the settings.

        Args:
            split: `train`, `validation`, `test` or `compositional`.
            count: Number of distinct prompts.
            seed: Seed of the draw.
        """
        self.split, self.count, self.seed = split, count, seed

    def prompts(self) -> list[str]:
        """The prompts.

        Raises:
            ValueError: The split does not exist, or has too few prompts.
        """
        ranked = scenes(self.split, PROMPTS[self.split], RANKED_SEED) if self.split in PROMPTS else []
        seen = frozenset(scene.prompt for scene in ranked) if self.split != "train" else frozenset()
        return [scene.prompt for scene in scenes(self.split, self.count, self.seed, seen)]
