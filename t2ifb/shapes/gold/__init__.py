"""The ground truth of the embedded world: how well any 64x64 image shows what a prompt asks for.

The judge is graded. It moves when a shape becomes a little rounder, a colour a little purer, an object a little
better placed, so that small progress shows; whether the image is exactly right (`Verdict.strict`) stands beside it.
Gold is the mean of alignment and fidelity with equal weights. It is for evaluation and for the simulated annotators;
no model is ever trained on it.
"""

from typing import TYPE_CHECKING, Any

from t2ifb.shapes.gold.analysis import Analysis, Found, analyse
from t2ifb.shapes.gold.verdict import PARTS, Verdict, judge

if TYPE_CHECKING:
    from t2ifb.shapes.gold.score import GoldScore

__all__ = ["PARTS", "Analysis", "Found", "GoldScore", "Verdict", "analyse", "judge"]


def __getattr__(name: str) -> Any:
    if name == "GoldScore":  # the only name that needs torch
        from t2ifb.shapes.gold.score import GoldScore

        return GoldScore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
