"""Lists of prompts to fine-tune on or to generate from, their splits and duplicates."""

import hashlib
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from t2ifb.data.errors import BadRecord, OnError, raise_or_skip
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.utils.files import read_json_list, read_text


def spelled_alike(prompt: str) -> str:
    """Normalise a prompt for duplicate detection: case-folded, single spaces, Unicode NFC."""
    return " ".join(unicodedata.normalize("NFC", prompt.replace("\ufeff", "")).split()).casefold()


def hash_fraction(prompt: str, seed: int) -> float:
    """Map a prompt to a uniform hash value in [0, 1). Equal normalised prompts give equal values."""
    digest = hashlib.sha256(f"{seed}\0{spelled_alike(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1
"""Share of the distinct prompts in validation, and in test, if a list is split by hash."""


class PromptSource(Protocol):
    """Source of prompts."""

    def prompts(self) -> list[str]:
        """All prompts, in a fixed order.

        Raises:
            ValueError: The prompts cannot be read.
        """
        ...


@dataclass(frozen=True)
class PromptSplits:
    """Prompts for training, validation and test.

    Attributes:
        train: Prompts for training.
        validation: Evaluated during a run; the checkpoint is selected on them.
        test: Evaluated once, at the end.
        most: Maximum number of distinct validation and of test prompts. If there are more, a random subset is used, in
            the original order. The choice is a function of `seed` and each prompt's position, and subsets are nested.
        seed: Seed of that choice. It does not depend on the run's seed: all runs are evaluated on the same prompts.
    """

    train: PromptSource
    validation: PromptSource
    test: PromptSource
    most: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most={self.most} must be at least 1")

    def of(self, split: str) -> list[str]:
        """Prompts of a split, without those of later splits, ignoring case and spacing.

        Raises:
            ValueError: No prompts are left.
        """
        later = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[split]
        taken = {spelled_alike(prompt) for name in later for prompt in self._source(name).prompts()}
        found = [prompt for prompt in self._source(split).prompts() if spelled_alike(prompt) not in taken]
        if not found:
            raise ValueError(f"no {split} prompts" + (f" that are not also in {' or '.join(later)}" if later else ""))
        return found if split == "train" else self._some(list(dict.fromkeys(found)))

    @property
    def ranked_splits(self) -> list[str]:
        """Splits of a preference data set whose prompts are used (`RankingPrompts`)."""
        sources = (self.train, self.validation, self.test)
        return list(dict.fromkeys(source.split for source in sources if isinstance(source, RankingPrompts)))

    def _some(self, prompts: list[str]) -> list[str]:
        """At most `most` prompts: each position has a random number, and the smallest are taken."""
        drawn = np.random.default_rng(self.seed).random(len(prompts))
        return [prompts[hash_fraction] for hash_fraction in sorted(np.argsort(drawn, kind="stable")[: self.most])]

    def _source(self, split: str) -> PromptSource:
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]


class PromptList:
    """Prompts given as a list."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Store the texts."""
        self.texts = list(texts)

    def prompts(self) -> list[str]:
        """The texts."""
        return list(self.texts)


class PromptFile:
    """Prompts in a file: text with one per line, or JSON such as ImageReward's `refl_data.json`."""

    def __init__(self, path: str | Path, on_error: OnError = "error") -> None:
        """Store the path. Nothing is read yet.

        Args:
            path: `.json` contains a list of texts or of `{"text": ...}`; any other file is text with one prompt per
                line, and blank lines are skipped.
            on_error: Handling of entries that are empty or not a prompt: `error` or `skip`.
        """
        self.path = Path(path).expanduser()
        self.on_error = on_error

    def prompts(self) -> list[str]:
        """All prompts in the file's order, repetitions included.

        Raises:
            ValueError: The file is missing, has no prompts, or has errors and `on_error` is `error`.
        """
        prompts = self._from_json() if self.path.suffix.lower() == ".json" else self._from_text()
        if not prompts:
            raise ValueError(f"{self.path} has no prompts")
        return prompts

    def _from_text(self) -> list[str]:
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist; expected a text file with one prompt per line")
        lines = io.StringIO(read_text(self.path), newline=None)  # `splitlines` would also split within prompts
        return [line.strip() for line in lines if line.strip()]

    def _from_json(self) -> list[str]:
        if not self.path.is_file():
            known = "ImageReward's is data/refl_data.json of github.com/THUDM/ImageReward"
            raise ValueError(f"{self.path} does not exist; expected a JSON file of prompts ({known})")
        prompts: list[str] = []
        errors: list[BadRecord] = []
        entries = read_json_list(self.path)
        for number, entry in enumerate(entries):
            text = entry.get("text") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text.strip():
                prompts.append(text)
            else:
                what = "empty prompt" if isinstance(text, str) else 'expected a text or {"text": ...}'
                errors.append(BadRecord(f"{self.path}, entry {number}", what))
        raise_or_skip(errors, self.on_error, str(self.path), len(errors), len(entries), noun="entries")
        return prompts


class RankingPrompts:
    """The prompts of a preference data set's split, one per ranking."""

    def __init__(self, dataset: PreferenceDataset, split: str) -> None:
        """Store the data set and the split. Nothing is read yet."""
        self.dataset = dataset
        self.split = split

    def prompts(self) -> list[str]:
        """The prompts in the order of the rankings; a prompt with two ids appears twice."""
        return [ranking.prompt for ranking in self.dataset.rankings(self.split)]


Prompts: TypeAlias = PromptSplits | str | Path | Sequence[str] | Mapping[str, str | Path | Sequence[str]]
"""Prompts, or their shorthand; see `prompt_splits`."""


def prompt_splits(prompts: Prompts, seed: int = 0) -> PromptSplits:
    """Splits from their shorthand; a `PromptSplits` is returned unchanged.

    Args:
        prompts: A file as `PromptFile` reads it, or a list of texts, split by a hash of each prompt: 10 % of the
            distinct prompts, and at least one, for validation and as many for test. Or a mapping with the keys
            `train`, `validation` and `test`, each to a file or a list.
        seed: Seed of the split by hash. It does not depend on the run's seed.

    Raises:
        ValueError: A split is missing or empty, or a file cannot be read.
    """
    if isinstance(prompts, PromptSplits):
        return prompts
    if isinstance(prompts, Mapping):
        if prompts.keys() != set(SPLITS):
            raise ValueError(f"prompts has the keys {', '.join(prompts) or '(none)'}; expected {', '.join(SPLITS)}")
        train, validation, test = (_source_of(prompts[split]) for split in SPLITS)
        return PromptSplits(train, validation, test)
    texts = _source_of(prompts).prompts()
    ordered = sorted({spelled_alike(text) for text in texts}, key=lambda text: hash_fraction(text, seed))
    if len(ordered) < len(SPLITS):
        raise ValueError(
            f"prompts has {len(ordered)} distinct prompts; expected at least one for each of {', '.join(SPLITS)}"
        )
    few = max(1, round(HELD_OUT * len(ordered)))
    parts = set(ordered[2 * few :]), set(ordered[:few]), set(ordered[few : 2 * few])
    train, validation, test = (PromptList([text for text in texts if spelled_alike(text) in part]) for part in parts)
    return PromptSplits(train, validation, test)


def _source_of(prompts: str | Path | Sequence[str]) -> PromptSource:
    return PromptFile(prompts) if isinstance(prompts, (str, Path)) else PromptList(prompts)
