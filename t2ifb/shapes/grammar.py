"""Grammar of the `shapes` domain: scenes and the prompts that describe them."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations, product
from typing import Self

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.12, 0.12),
    "green": (0.10, 0.66, 0.20),
    "blue": (0.12, 0.22, 0.86),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.15, 0.75),
    "cyan": (0.10, 0.80, 0.88),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (0.94, 0.94, 0.94),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.06, 0.06, 0.06),
}
RELATIONS = ("above", "below", "left of", "right of")
INVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
NUMBERS = {1: "a", 2: "two", 3: "three"}

HELD_OUT = frozenset({("red", "star"), ("blue", "circle"), ("green", "triangle"), ("yellow", "square")})
"""Colour-shape combinations reserved for the `compositional` split."""

SPLITS = ("train", "validation", "test", "compositional")


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape."""

    color: str
    shape: str

    def phrase(self, count: int = 1) -> str:
        """Describe `count` objects of this kind: "a red circle", "two red circles"."""
        return f"{NUMBERS[count]} {self.color} {self.shape}{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Scene:
    """Content of a prompt: one to three objects, a background, at most one relation.

    Attributes:
        things: The objects in the order of the prompt, repeated when counted.
        background: A key of `BACKGROUNDS`.
        relation: Position of the first of two objects relative to the second; a member of `RELATIONS`.
    """

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def prompt(self) -> str:
        """The sentence that describes this scene."""
        counts = {thing: self.things.count(thing) for thing in self.things}  # keeps the order
        phrases = [thing.phrase(count) for thing, count in counts.items()]
        if self.relation:
            listing = f"{phrases[0]} {self._relation_words()} {phrases[1]}"
        elif len(phrases) == 1:
            listing = phrases[0]
        else:
            listing = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return f"{listing} on a {self.background} background"

    def _relation_words(self) -> str:
        return f"to the {self.relation}" if str(self.relation).endswith("of") else str(self.relation)

    @classmethod
    def parse(cls, prompt: str) -> Self:
        """Parse a prompt; the inverse of `prompt`.

        Raises:
            ValueError: The sentence is not in the grammar.
        """
        problem = ValueError(
            f"{prompt!r} is not a prompt of the shapes domain. Expected a sentence like "
            "'a red circle above a blue square on a gray background'."
        )
        match = re.fullmatch(r"(.+) on a (\w+) background", prompt.strip())
        if not match or match[2] not in BACKGROUNDS:
            raise problem
        listing, background = match[1], match[2]
        relation = None
        for candidate in RELATIONS:
            words = f" to the {candidate} " if candidate.endswith("of") else f" {candidate} "
            if words in listing:
                relation = candidate
                listing = listing.replace(words, " and ")
        things: list[Thing] = []
        for phrase in re.split(r", | and ", listing):
            found = re.fullmatch(r"(a|two|three) (\w+) (\w+?)(s?)", phrase)
            if not found or found[2] not in COLORS or found[3] not in SHAPES or (found[1] == "a") == bool(found[4]):
                raise problem
            count = {word: number for number, word in NUMBERS.items()}[found[1]]
            things += [Thing(found[2], found[3])] * count
        if len(things) > 3 or (relation and (len(things) != 2 or things[0] == things[1])):
            raise problem
        return cls(tuple(things), background, relation)

    @property
    def split(self) -> str:
        """Split of this scene; equal for all sentences with the same meaning.

        Scenes with a held-out combination are `compositional`. A hash of the meaning puts about 70 % of the others into
        `train`, 10 % into `validation` and 20 % into `test`.
        """
        if any((thing.color, thing.shape) in HELD_OUT for thing in self.things):
            return "compositional"
        bucket = int(hashlib.sha256(repr(self.meaning()).encode()).hexdigest(), 16) % 10
        return "train" if bucket < 7 else "validation" if bucket < 8 else "test"

    @property
    def family(self) -> str:
        """Kind of prompt; a key of `FAMILY_WEIGHTS`."""
        if self.relation:
            return "relation"
        by_distinct = {1: ("one", "count", "count"), 2: ("", "pair", "count_and_one"), 3: ("", "", "trio")}
        return by_distinct[len(set(self.things))][len(self.things) - 1]

    def meaning(self) -> tuple[object, ...]:
        """Meaning, independent of the wording: equal for "a above b" and "b below a"."""
        things, relation = self.things, self.relation
        if relation in ("below", "right of"):
            things, relation = things[::-1], INVERSE[relation]
        if relation is None:
            things = tuple(sorted(things))
        return tuple((t.color, t.shape) for t in things), self.background, relation


FAMILY_WEIGHTS = {"one": 0.12, "count": 0.16, "pair": 0.17, "relation": 0.28, "count_and_one": 0.14, "trio": 0.13}
"""Sampling weights of the kinds of prompts, so that the few short prompts are not rare among the many long ones."""


def family_scenes(family: str) -> Iterator[Scene]:
    """All scenes of one kind, in a fixed order."""
    things = [Thing(color, shape) for color, shape in product(COLORS, SHAPES)]
    for background in BACKGROUNDS:
        match family:
            case "one":
                yield from (Scene((thing,), background) for thing in things)
            case "count":
                yield from (Scene((thing,) * count, background) for thing in things for count in (2, 3))
            case "pair":
                yield from (Scene(pair, background) for pair in permutations(things, 2))
            case "relation":
                yield from (
                    Scene(pair, background, relation) for pair in permutations(things, 2) for relation in RELATIONS
                )
            case "count_and_one":
                yield from (Scene((a, a, b), background) for a, b in permutations(things, 2))
            case "trio":
                yield from (Scene(trio, background) for trio in combinations(things, 3))


def scenes(split: str, count: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[Scene]:
    """Draw distinct scenes of one split, families weighted by `FAMILY_WEIGHTS`.

    The share of an exhausted family goes to the others.

    Args:
        split: One of `SPLITS`.
        count: Number of scenes.
        seed: Seed of the draw.
        exclude: Prompts to exclude.

    Raises:
        ValueError: The split is unknown or has fewer than `count` scenes left.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    pools: dict[str, list[Scene]] = {}
    for family in FAMILY_WEIGHTS:
        pool = [s for s in family_scenes(family) if s.split == split and s.prompt not in exclude]
        pools[family] = [pool[i] for i in rng.permutation(len(pool))]
    if count > sum(map(len, pools.values())):
        raise ValueError(f"The split {split!r} has only {sum(map(len, pools.values()))} scenes, not {count}.")
    drawn: list[Scene] = []
    while len(drawn) < count:
        left = [family for family in pools if pools[family]]
        weights = np.array([FAMILY_WEIGHTS[family] for family in left])
        family = left[rng.choice(len(left), p=weights / weights.sum())]
        drawn.append(pools[family].pop())
    return drawn
