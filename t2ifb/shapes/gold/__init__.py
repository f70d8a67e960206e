"""Ground truth of the `shapes` domain: how well a 64x64 image matches a prompt.

Scores are graded: they change when a shape becomes a little rounder, a colour a little purer or an object a little
better placed, so that small progress is visible. `Verdict.strict` says whether the image is exactly right. Gold is the
mean of alignment and fidelity with equal weights. It is used for evaluation and by the simulated annotators; no model
is ever trained on it.
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
