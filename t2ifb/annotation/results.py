"""What the answers say: counts, agreement of annotators, agreement with a scorer, and the A/B verdict."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ifb.annotation.answers import FILE, Answer, read_lines
from t2ifb.annotation.items import Item
from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.images import load_image
from t2ifb.data.rankings import open_image
from t2ifb.evaluation.statistics import Interval, bootstrap_ratio, share_interval

Answers = Mapping[tuple[str, str], Answer]
"""Valid answers by annotator and question."""
BASE = "base"
"""Model that others are compared with."""
SAID = {"ranks": "ranked", "skip": "skipped", "all bad": "all bad"}
"""Kinds of answers in texts."""
UNRATED = 0
"""Rating of an image that nobody rated."""


@dataclass(frozen=True)
class Results:
    """Summary of the answers.

    Attributes:
        counts: Number of answers by annotator and kind.
        agreement: Share of the comparisons that two annotators both decide in which they agree; None without any.
        reward_agreement: The same share for annotators and a scorer; None without a scorer.
        verdicts: By other model, share of the comparisons with the base model that it wins; a tie is half a win. The
            mean is over prompts.
    """

    counts: dict[str, dict[str, int]]
    agreement: Interval | None
    reward_agreement: Interval | None
    verdicts: dict[str, Interval]

    def lines(self) -> dict[str, str]:
        """The summary as texts by name."""
        found = {
            f"answers of {name}": ", ".join(f"{number} {SAID[kind]}" for kind, number in kinds.items())
            for name, kinds in self.counts.items()
        }
        if self.agreement is not None:
            found["agreement of annotators"] = _percent(self.agreement)
        if self.reward_agreement is not None:
            found["agreement with the scorer"] = _percent(self.reward_agreement)
        for model, share in self.verdicts.items():
            better = "better" if share.low > 0.5 else "worse" if share.high < 0.5 else "not clearly better or worse"
            found[f"{model} preferred to {BASE}"] = f"{_percent(share)} of the prompts: {better}"
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        shares = {"agreement": self.agreement, "reward_agreement": self.reward_agreement}
        plain = {name: None if share is None else vars(share) for name, share in shares.items()}
        return {"counts": self.counts, **plain, "verdicts": {name: vars(i) for name, i in self.verdicts.items()}}


def summarise(
    answers: Answers, items: Sequence[Item], scores: Mapping[str, Sequence[float]] | None = None, seed: int = 0
) -> Results:
    """Summarise valid answers. Intervals of agreement are bootstrapped over prompts; verdicts use `share_interval`.

    Args:
        answers: By annotator and question.
        items: The questions.
        scores: Scores of each question's images by a scorer.
        seed: Seed of the resampling.
    """
    counts: dict[str, Counter[str]] = {}
    for (name, _), answer in answers.items():
        counts.setdefault(name, Counter())[answer.kind] += 1
    ranked: dict[str, list[Answer]] = {}
    for (_, key), answer in answers.items():
        if answer.kind == "ranks":
            ranked.setdefault(key, []).append(answer)
    between = {key: _sum(_agreed(a.ranks, b.ranks) for a, b in combinations(some, 2)) for key, some in ranked.items()}
    with_scorer = {
        key: _sum(_agreed(answer.ranks, [-score for score in scores[key]]) for answer in some)
        for key, some in ranked.items()
        if scores is not None
    }
    prompts = {item.key: item.prompt for item in items}
    return Results(
        {name: dict(kinds) for name, kinds in sorted(counts.items())},
        _over_prompts(between, prompts, seed),
        _over_prompts(with_scorer, prompts, seed),
        _verdicts(ranked, items),
    )


def _verdicts(ranked: Mapping[str, Sequence[Answer]], items: Sequence[Item]) -> dict[str, Interval]:
    """Share of prompts in which each model is preferred to the base model."""
    by_model: dict[str, dict[str, list[float]]] = {}
    for item in items:
        for answer in ranked.get(item.key, ()):
            pairs = [(i, j) for i, model in enumerate(item.models) for j, other in enumerate(item.models)
                     if model == BASE and other != BASE and other]  # fmt: skip
            for base, other in pairs:
                gap = answer.ranks[base] - answer.ranks[other]
                won = 1.0 if gap > 0 else 0.0 if gap < 0 else 0.5
                by_model.setdefault(item.models[other], {}).setdefault(item.prompt, []).append(won)
    shares = {model: [sum(pairs) / len(pairs) for pairs in prompts.values()] for model, prompts in by_model.items()}
    return {model: share_interval(share) for model, share in sorted(shares.items())}


def _agreed(ranks: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Pairs that both order in the same way, and pairs that both order."""
    same = both = 0
    for i, j in combinations(range(len(ranks)), 2):
        one, two = ranks[i] - ranks[j], others[i] - others[j]
        both += one != 0 and two != 0
        same += one * two > 0
    return same, both


def _sum(pairs: Iterator[tuple[float, float]]) -> tuple[float, float]:
    listed = list(pairs)
    return sum(one for one, _ in listed), sum(two for _, two in listed)


def _over_prompts(shares: Mapping[str, tuple[float, float]], prompts: Mapping[str, str], seed: int) -> Interval | None:
    """Ratio of sums, resampled over prompts; None if nothing was compared."""
    sums: dict[str, tuple[float, float]] = {}
    for key, (same, both) in shares.items():
        before = sums.get(prompts[key], (0.0, 0.0))
        sums[prompts[key]] = before[0] + same, before[1] + both
    if not any(both for _, both in sums.values()):
        return None
    top, bottom = zip(*sums.values(), strict=True)
    return bootstrap_ratio(top, bottom, seed)


def _percent(share: Interval) -> str:
    mean, low, high = (100 * value for value in (share.mean, share.low, share.high))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]"


def score_items(
    scorer: Callable[[Tensor, list[str]], Tensor], items: Sequence[Item], device: torch.device
) -> dict[str, list[float]]:
    """Scores of each question's images, one by one, since they may differ in size."""
    with torch.inference_mode():
        return {
            item.key: [float(scorer(load_image(image)[None].to(device), [item.prompt])) for image in item.images]
            for item in items
        }


def export(answers: Path, target: Path) -> dict[str, int]:
    """Write the rankings in ImageRewardDB's layout, divided into splits as `OwnRankings` divides them.

    Args:
        answers: Folder with the answers.
        target: Folder to write to.

    Returns:
        Number of rankings per split. Ratings are means of all annotators; an image without ratings has 0.

    Raises:
        ValueError: There are too few prompts for three splits.
    """
    dataset = OwnRankings(answers)
    ratings = _ratings(answers / FILE)
    counts: dict[str, int] = {}
    for split in dataset.shares:
        records: list[Record] = []
        rankings = dataset.rankings(split)
        for number, ranking in enumerate(rankings):
            for image, rank in zip(ranking.images, ranking.ranks, strict=True):
                rated = ratings.get(Path(str(image)).resolve(), {})
                overall, alignment, fidelity = (rated.get(n, UNRATED) for n in ("overall", "alignment", "fidelity"))
                picture = open_image(image)
                records.append(
                    Record(f"{split}-{number:06d}", ranking.prompt, "own", picture, rank, overall, alignment, fidelity)
                )
        write_imagereward_db(target, split, records)
        counts[split] = len(rankings)
    return counts


def _ratings(path: Path) -> dict[Path, dict[str, int]]:
    """Mean ratings by image and aspect, of each annotator's last answer to each question."""
    last = {(row.get("annotator"), row.get("prompt_id")): row for row in read_lines(path)}
    given: dict[Path, dict[str, list[int]]] = {}
    for row in last.values():
        for name, rated in zip(row.get("images") or [], row.get("ratings") or [], strict=False):
            for aspect, value in rated.items():
                given.setdefault((path.parent / name).resolve(), {}).setdefault(aspect, []).append(value)
    return {image: {a: round(sum(v) / len(v)) for a, v in aspects.items()} for image, aspects in given.items()}
