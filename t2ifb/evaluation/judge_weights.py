"""Weights of the judges in checkpoint selection, from their preference accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ifb.data.comparison_index import ComparisonIndex
from t2ifb.data.rankings import PreferenceDataset, RankedPrompt
from t2ifb.evaluation.preference import evaluate_preference
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.evaluation.unbuilt import Unbuilt


def weights_on_rankings(
    dataset: PreferenceDataset, judges: Mapping[str, Unbuilt], cache_folder: Path, device: str = "auto"
) -> dict[str, Any]:
    """Weights of judges from their preference accuracy on validation rankings. Nothing is downloaded.

    Args:
        dataset: Source of the rankings.
        judges: Unbuilt judges by name.
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


def accuracies(judges: Mapping[str, Unbuilt], rankings: Sequence[RankedPrompt], cache: ScoreCache) -> dict[str, float]:
    """Preference accuracy of each judge, in [0, 1]; a tie counts as wrong, as in table 1.

    Args:
        judges: Unbuilt judges by name.
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
