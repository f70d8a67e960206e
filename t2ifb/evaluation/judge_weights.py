"""How much each judge counts in the choice of checkpoints: by how well it orders images that people ranked."""

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
    """Weights of judges by their preference accuracy on a data set's validation rankings; nothing is downloaded.

    Args:
        dataset: Rankings.
        judges: By name, unbuilt.
        cache_folder: Where scores are kept.
        device: What the judges run on; `auto` is the GPU if there is one.

    Returns:
        `weights` by judge, and the `accuracies` that they come from, or `equal_because`, why all weights are 1.
    """
    try:
        if rankings := dataset.rankings("validation") if dataset.available("validation") else []:
            found = accuracies(judges, rankings, ScoreCache(cache_folder, device))
            return {"weights": weights_of(found), "accuracies": found}
        why = "there are no validation rankings on this machine (`python -m t2ifb.prepare` makes or fetches them)"
    except ValueError as error:
        why = f"the validation rankings cannot be scored: {error}"
    return {"weights": dict.fromkeys(judges, 1.0), "equal_because": why}


def accuracies(judges: Mapping[str, Unbuilt], rankings: Sequence[RankedPrompt], cache: ScoreCache) -> dict[str, float]:
    """Preference accuracy of each judge, in [0, 1]; a tie counts as wrong, as in table 1.

    Args:
        judges: By name, unbuilt.
        rankings: At least one.
        cache: Where scores are kept.

    Raises:
        ValueError: A judge cannot be built, or an image cannot be read.
    """
    images = [image for ranking in rankings for image in ranking.images]
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
    scores, index = cache.fill(judges, images, prompts), ComparisonIndex.build(rankings)
    pairs = index.better, index.worse, index.prompt_of_comparison
    return {name: evaluate_preference(scores.of(name), *pairs).accuracy.mean for name in judges}


def weights_of(accuracy: Mapping[str, float]) -> dict[str, float]:
    """max(0, 2 accuracy - 1): 0 for a judge that orders images by chance, 1 for one that is always right.

    All are 1 where no judge is better than chance.

    Args:
        accuracy: Of each judge, in [0, 1].
    """
    weights = {name: max(0.0, 2 * share - 1) for name, share in accuracy.items()}
    return weights if any(weights.values()) else dict.fromkeys(weights, 1.0)
