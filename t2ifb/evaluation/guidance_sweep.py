"""Comparison of a tuned model with the base model over guidance scales, each at its own best scale.

At one scale alone the base model may be far below its best. Here both models are sampled at several scales from the
same noise. The scale of each is chosen on validation prompts by the held-out scorers, never by gold, and the
comparisons are on test prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.comparison import Gain, gains
from t2ifb.evaluation.selection import best_of, deviation
from t2ifb.evaluation.statistics import Interval, paired_difference

JUDGES = "judges"
"""Name of the judges' mean gain among the scorers: over the base model at the run's own scale, in its deviations."""
OWN, BEST, EQUAL, BEST_OF = "own scale", "best against best", "equal evaluations", "best of n"
"""Names of the comparisons."""

Model = Literal["base", "tuned"]
Split = Literal["validation", "test"]
MODELS: tuple[Model, ...] = ("base", "tuned")
SPLITS: tuple[Split, ...] = ("validation", "test")

Scores = Mapping[str, NDArray[np.float64]]
"""Scores by scorer, (P, n) for n images of each of P prompts."""


@dataclass(frozen=True)
class Images:
    """Images whose scores a comparison needs.

    Attributes:
        model: `base` or `tuned`.
        split: Split of the prompts.
        sampler: Sampler of the images. The noise of an image does not depend on it, nor on the model.
        copies: Images per prompt. The first is the one that is drawn when `copies` is 1.
    """

    model: Model
    split: Split
    sampler: Sampler
    copies: int = 1


Draw = Callable[[Sequence[Images]], Sequence[Scores]]
"""Samples and scores images. Requests are bundled, so that models and scorers are loaded rarely."""


@dataclass(frozen=True)
class ScaleGain:
    """Scores of one scorer at one guidance scale, on test prompts.

    Attributes:
        name: Name of the scorer.
        scale: The guidance scale.
        base: Base model's mean.
        tuned: Tuned model's mean.
        difference: Tuned minus base model, both at this scale.
        base_gain: Base model at this scale minus base model at the run's own scale.
        tuned_gain: Tuned model at this scale minus base model at the run's own scale.
        trained_on: Whether the run was trained on this scorer.
    """

    name: str
    scale: float
    base: float
    tuned: float
    difference: Interval
    base_gain: Interval
    tuned_gain: Interval
    trained_on: bool = False


@dataclass(frozen=True)
class Match:
    """Two models, each with its own settings, on the same test prompts.

    Attributes:
        name: `OWN`, `BEST`, `EQUAL` or `BEST_OF`.
        base: Settings of the base model, in words.
        other: Settings of the model that is compared with it, in words.
        base_evaluations: Network evaluations per image of the base model.
        other_evaluations: Network evaluations per image of the other.
        gains: The other minus the base model by each scorer, and by `JUDGES`.
    """

    name: str
    base: str
    other: str
    base_evaluations: int
    other_evaluations: int
    gains: list[Gain]

    def difference(self, name: str) -> Interval:
        """Difference by one scorer."""
        return next(gain.difference for gain in self.gains if gain.name == name)


@dataclass(frozen=True)
class GuidanceSweep:
    """A base model and a tuned one over guidance scales.

    Attributes:
        own: The run's own sampler.
        scales: Scales that were tried, ascending; the run's own is among them.
        base: Sampler that is best for the base model.
        tuned: Sampler that is best for the tuned model.
        rows: Scores by scorer and scale on test prompts.
        matches: The comparisons by name. `BEST_OF` is missing without a reward or with one image.
        judges: Weights of the scorers that chose the scales.
        trained_on: Names of the scorers that the run was trained on.
        validation_prompts: Number of prompts that the scales were chosen on.
        test_prompts: Number of prompts that the models are compared on.
    """

    own: Sampler
    scales: list[float]
    base: Sampler
    tuned: Sampler
    rows: list[ScaleGain]
    matches: dict[str, Match]
    judges: dict[str, float]
    trained_on: list[str]
    validation_prompts: int
    test_prompts: int


def check_scales(scales: Sequence[float]) -> list[float]:
    """Guidance scales as numbers.

    Raises:
        ValueError: A scale is below 1.
    """
    if wrong := [scale for scale in scales if not scale >= 1]:
        raise ValueError(f"guidance_scales: {wrong[0]} is below 1, which is no guidance")
    return [float(scale) for scale in scales]


def sweep_guidance(
    draw: Draw,
    own: Sampler,
    scales: Sequence[float],
    judges: Mapping[str, float],
    trained_on: Sequence[str] = (),
    images: int = 4,
    seed: int = 0,
) -> GuidanceSweep:
    """Sample both models at several guidance scales, choose the best scale of each, and compare them.

    Args:
        draw: Samples and scores images.
        own: The run's own sampler.
        scales: Guidance scales; the run's own is added.
        judges: Weights of the scorers that choose, with at least one above 0.
        trained_on: Names of the scorers that the run was trained on. They choose the best of n images.
        images: n of best-of-n; 1 leaves it out.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: A scale is below 1.
    """
    known: dict[Images, Scores] = {}

    def ask(*wanted: Images) -> None:
        missing = [each for each in dict.fromkeys(wanted) if each not in known]
        known.update(zip(missing, draw(missing), strict=True))

    tried = sorted({*check_scales(scales), own.guidance_scale})
    samplers = [replace(own, guidance_scale=scale) for scale in tried]
    unguided = replace(own, guidance_scale=1.0)
    ask(*(Images(m, s, each) for m in MODELS for s in SPLITS for each in samplers), Images("tuned", "test", unguided))
    before = known[Images("base", "validation", own)]

    def chosen(model: Model, some: Sequence[Sampler]) -> Sampler:
        found = [judge_gain(before, known[Images(model, "validation", sampler)], judges) for sampler in some]
        return some[choose(found, otherwise=some.index(own) if own in some else 0)]

    base, tuned = chosen("base", samplers), chosen("tuned", samplers)
    cheap = at_equal_cost(base, unguided.network_evaluations)
    several = Images("base", "test", base, images)
    ask(*(Images("base", s, sampler) for s in SPLITS for sampler in cheap), several)
    equal = chosen("base", cheap)

    reference = known[Images("base", "test", own)]

    def scores(wanted: Images) -> dict[str, NDArray[np.float64]]:
        return with_judges(reference, known[wanted], judges)

    def match(name: str, one: Sampler, other: Sampler) -> Match:
        found = gains(scores(Images("base", "test", one)), scores(Images("tuned", "test", other)), 1, trained_on, seed)
        cost = one.network_evaluations, other.network_evaluations
        return Match(name, in_words(one, own), in_words(other, own), *cost, found)

    matches = [match(OWN, own, own), match(BEST, base, tuned), match(EQUAL, equal, unguided)]
    first = known[Images("base", "test", base)]
    if images > 1 and (rewards := [name for name in trained_on if name in first]):
        kept = best_by(first, known[several], rewards)
        found = gains(scores(Images("base", "test", base)), with_judges(reference, kept, judges), 1, trained_on, seed)
        words, cost = in_words(base, own), base.network_evaluations
        matches.append(Match(BEST_OF, words, f"base model, {words}, best of {images}", cost, images * cost, found))
    rows = []
    for sampler in samplers:
        one, other = scores(Images("base", "test", sampler)), scores(Images("tuned", "test", sampler))
        at_own = scores(Images("base", "test", own))
        rows += _rows(sampler.guidance_scale, at_own, one, other, trained_on, seed)
    return GuidanceSweep(
        own,
        tried,
        base,
        tuned,
        rows,
        {each.name: each for each in matches},
        dict(judges),
        list(trained_on),
        len(next(iter(before.values()))),
        len(next(iter(reference.values()))),
    )


def judge_gain(before: Scores, after: Scores, judges: Mapping[str, float]) -> NDArray[np.float64]:
    """Weighted mean of the judges' gains, in standard deviations of their scores before.

    Args:
        before: Scores (P, 1) of the base model.
        after: Scores (P, n).
        judges: Weights by name. A judge with weight 0 is ignored.

    Returns:
        (P, n), NaN where a score is NaN.
    """
    counted = {name: weight for name, weight in judges.items() if weight > 0}
    risen = [(after[name] - before[name]) / deviation(np.asarray(before[name])) for name in counted]
    return np.asarray(np.average(risen, axis=0, weights=list(counted.values())))


def with_judges(
    before: Scores, after: Mapping[str, ArrayLike], judges: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Scores (P, 1), and `JUDGES` among them, as (P,)."""
    values = {name: np.asarray(each, np.float64) for name, each in after.items()}
    return {name: each[:, 0] for name, each in {**values, JUDGES: judge_gain(before, values, judges)}.items()}


def choose(gains: Sequence[ArrayLike], otherwise: int = 0) -> int:
    """Index of the highest mean gain (P, 1); the first of equal ones.

    NaN values are left out of a mean. If all gains are NaN, the result is `otherwise`.
    """
    known = [np.asarray(each, np.float64)[np.isfinite(each)] for each in gains]
    means = np.array([each.mean() if len(each) else -np.inf for each in known])
    return int(means.argmax()) if np.isfinite(means).any() else otherwise


def at_equal_cost(best: Sampler, evaluations: int) -> list[Sampler]:
    """Samplers of the base model with a number of network evaluations per image.

    Candidates are sampling without guidance, and the best scale with fewer steps, where two or more are left.

    Args:
        best: Sampler that is best for the base model.
        evaluations: Network evaluations per image, those of the tuned model without guidance.
    """
    unguided = replace(best, guidance_scale=1.0, num_inference_steps=evaluations)
    steps = evaluations * best.num_inference_steps // best.network_evaluations
    return list(dict.fromkeys([unguided, *([replace(best, num_inference_steps=steps)] if steps > 1 else [])]))


def best_by(first: Scores, scores: Scores, rewards: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Scores (P, 1) of the best of n images of each prompt.

    Args:
        first: Scores (P, 1) of the first images, which give the unit of each reward.
        scores: Scores (P, n).
        rewards: Names of the scorers that choose, with equal weights.
    """
    best = best_of(np.mean([np.asarray(scores[name]) / deviation(np.asarray(first[name])) for name in rewards], axis=0))
    return {name: np.take_along_axis(np.asarray(each), best[:, None], 1) for name, each in scores.items()}


def in_words(sampler: Sampler, own: Sampler) -> str:
    """A sampler's guidance scale, and its steps if they differ from those of the run's own."""
    scale = "no guidance" if sampler.guidance_scale == 1 else f"guidance {sampler.guidance_scale:g}"
    steps = sampler.num_inference_steps
    return scale if steps == own.num_inference_steps else f"{scale}, {steps} steps"


def _rows(
    scale: float,
    reference: Scores,
    base: Scores,
    tuned: Scores,
    trained_on: Sequence[str],
    seed: int,
) -> list[ScaleGain]:
    """One row per scorer, from scores (P,). Prompts with NaN in any of the three are skipped."""
    rows = []
    for name in base:
        values = np.stack([reference[name], base[name], tuned[name]])
        first, one, other = values[:, np.isfinite(values).all(0)]
        rows.append(
            ScaleGain(
                name,
                scale,
                float(one.mean()) if len(one) else np.nan,
                float(other.mean()) if len(other) else np.nan,
                paired_difference(other, one, seed=seed),
                paired_difference(one, first, seed=seed),
                paired_difference(other, first, seed=seed),
                name in trained_on,
            )
        )
    return rows
