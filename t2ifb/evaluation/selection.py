"""Choices by scorers: the checkpoint that is kept, the weights of its judges, and the best of several images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.data.batches import ComparisonIndex
from t2ifb.data.rankings import PreferenceDataset, RankedPrompt
from t2ifb.evaluation.metrics import evaluate_preference
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.evaluation.statistics import Interval, bootstrap_function

MARGIN = 0.5
"""Maximum distance of the selection score above the worst judge, in standard deviations."""


def normalized_gain(before: ArrayLike, after: ArrayLike) -> float:
    """Gain of a scorer's mean over the base model, in standard deviations of its base scores.

    Args:
        before: (N,), scores of the base model's images; NaN if missing.
        after: (N,), scores of the policy's images for the same prompts and noise.
    """
    one, other = np.asarray(before, np.float64), np.asarray(after, np.float64)
    known = (other - one)[np.isfinite(other - one)]
    return float(known.mean() / deviation(one)) if len(known) else float("nan")


def selection_score(
    rises: ArrayLike, margin: float = MARGIN, weights: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Weighted mean of the judges' gains, capped at the worst gain plus a margin.

    A judge with weight 0 is ignored in both.

    A reward may exploit a judge, most easily one that shares its encoder. The mean alone then rises with that judge
    while the others fall. `experiments/overoptimisation/` compares this rule with others.

    Args:
        rises: (..., J), gains of the judges, in standard deviations.
        margin: Margin of the cap; infinity gives the mean, zero the worst judge.
        weights: (J,), at least one above 0; equal by default.

    Returns:
        (...), NaN where a gain with positive weight is NaN.
    """
    values = np.asarray(rises, np.float64)
    weight = np.ones(values.shape[-1]) if weights is None else np.asarray(weights, np.float64)
    values, weight = values[..., weight > 0], weight[weight > 0]
    return np.minimum(np.average(values, -1, weight), values.min(-1) + margin)


def best_of(scores: ArrayLike) -> NDArray[np.int64]:
    """Indices (P,) of the highest of n scores (P, n); the first of equal ones. NaN is below all numbers."""
    values = np.asarray(scores, np.float64)
    return np.asarray(np.where(np.isnan(values), -np.inf, values).argmax(1), np.int64)


def change(
    base: ScoreSheet,
    earlier: ScoreSheet,
    later: ScoreSheet,
    judges: Mapping[str, float],
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Change of the selection score between two validations, with its interval over the same prompts.

    Args:
        base: Scores of the base model.
        earlier: Scores of a validation with the same prompts and noise.
        later: Scores of another validation.
        judges: Weights of the judges by name.
        seed: Seed of the resampling.
        level: Confidence level, in (0, 1).
    """
    before, units = base.by_prompt, {name: deviation(base.columns[name]) for name in judges}
    weights = list(judges.values())
    gains = [
        (sheet.by_prompt[name] - before[name]) / unit for sheet in (earlier, later) for name, unit in units.items()
    ]

    def changed(means: NDArray[np.float64]) -> NDArray[np.float64]:
        old, new = np.split(means, 2, axis=1)
        return selection_score(new, weights=weights) - selection_score(old, weights=weights)

    return bootstrap_function(np.stack(gains, 1), changed, seed, level)


def deviation(scores: NDArray[np.float64]) -> float:
    """Standard deviation, the unit of gains; 1 if there is none, with too few scores or equal ones."""
    known = scores[np.isfinite(scores)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return spread if spread > 1e-6 else 1.0


def weights_on_rankings(
    dataset: PreferenceDataset, judges: Mapping[str, Any], cache_folder: Path, device: str = "auto"
) -> dict[str, Any]:
    """Weights of judges from their preference accuracy on validation rankings. Nothing is downloaded.

    Args:
        dataset: Source of the rankings.
        judges: Judges by name, unbuilt or built.
        cache_folder: Folder of the score cache.
        device: Device; `auto` is the GPU if one exists.

    Returns:
        `weights` by judge, and either their `accuracies` or `equal_because`, the reason for equal weights.
    """
    try:
        if rankings := dataset.rankings("validation") if dataset.available("validation") else []:
            found = accuracies(judges, rankings, ScoreCache(cache_folder, device))
            return {"weights": weights_of(found), "accuracies": found}
        why = "this machine has no validation rankings (`python -m t2ifb.prepare` builds or downloads them)"
    except ValueError as error:
        why = f"the validation rankings cannot be scored: {error}"
    return {"weights": dict.fromkeys(judges, 1.0), "equal_because": why}


def accuracies(judges: Mapping[str, Any], rankings: Sequence[RankedPrompt], cache: ScoreCache) -> dict[str, float]:
    """Preference accuracy of each judge, in [0, 1]; a tie counts as wrong, as in table 1.

    Args:
        judges: Judges by name, unbuilt or built.
        rankings: At least one ranking.
        cache: Score cache.

    Raises:
        ValueError: A judge cannot be built, or an image cannot be read.
    """
    images = [image for ranking in rankings for image in ranking.images]
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
    scores, index = cache.fill(judges, images, prompts), ComparisonIndex.build(rankings)
    pairs = index.better, index.worse, index.prompt_of_comparison
    return {name: evaluate_preference(scores.of(name), *pairs).accuracy.mean for name in judges}


def weights_of(accuracy: Mapping[str, float]) -> dict[str, float]:
    """max(0, 2 accuracy - 1): 0 for a judge at chance level, 1 for a perfect one.

    If no judge is better than chance, all weights are 1.

    Args:
        accuracy: Accuracy of each judge, in [0, 1].
    """
    weights = {name: max(0.0, 2 * share - 1) for name, share in accuracy.items()}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1.0)
