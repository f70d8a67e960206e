"""Which annotator is asked which question."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from t2ifb.annotation.answers import Answer, AnswerLog, name_of
from t2ifb.annotation.items import Item
from t2ifb.utils.random_streams import Stream, generator

RESERVED_SECONDS = 900.0
"""Time for which a question that an annotator sees is given to others only after all other questions."""


class AnsweredByOthers(ValueError):
    """The question has the answers that it needs, all from other people."""


@dataclass(frozen=True)
class Progress:
    """Progress of one annotator.

    Attributes:
        done: Number of answered questions.
        left: Number of questions that the annotator can still be asked.
        seconds_left: Estimate from the annotator's median time; None without answers.
    """

    done: int
    left: int
    seconds_left: float | None


class Queues:
    """A queue of questions for each annotator, over the answers on disk.

    The first questions, a share `overlap` of all, are asked of everyone, so that agreement can be measured. Each other
    question is answered by `annotators_per_prompt` people. A question that somebody sees is given to others last, and
    the first answer counts.
    """

    def __init__(
        self,
        items: Sequence[Item],
        log: AnswerLog,
        annotators_per_prompt: int = 1,
        overlap: float = 0.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Store the settings.

        Args:
            items: Questions in the order in which they are asked.
            log: Answers given so far.
            annotators_per_prompt: Number of people who are asked each question that is not asked of everyone.
            overlap: Share of the questions that everyone is asked.
            seed: Seed of the order of images on the page.
            clock: Time in seconds.

        Raises:
            ValueError: A number is out of range.
        """
        if annotators_per_prompt < 1 or not 0 <= overlap <= 1:
            raise ValueError(
                "expected annotators_per_prompt of at least 1 and overlap from 0 to 1, got "
                f"annotators_per_prompt={annotators_per_prompt}, overlap={overlap}"
            )
        self.items, self.log, self.seed, self.clock = list(items), log, seed, clock
        self.annotators_per_prompt, self.shared = annotators_per_prompt, round(overlap * len(items))
        self._place = {item.key: place for place, item in enumerate(self.items)}
        self._reserved: dict[str, dict[str, float]] = {}
        self._guard = threading.RLock()

    def next(self, annotator: str) -> Item | None:
        """The annotator's next question, which is reserved for them; None at the end."""
        with self._guard:
            item = next(iter(self._open(annotator)), None)
            if item is not None:
                self._reserve(annotator, item)
            return item

    def answer(self, answer: Answer) -> None:
        """Write an answer to disk.

        Raises:
            AnsweredByOthers: The question needs no more answers.
            StorageError: It cannot be written.
        """
        with self._guard:
            people = {name for name, key in self.log.current() if key == answer.item}
            shared = self._place[answer.item] < self.shared
            if not shared and answer.annotator not in people and len(people) >= self.annotators_per_prompt:
                raise AnsweredByOthers("others have answered this question meanwhile; your answer was not written")
            self.log.append(answer)
            self._reserved.get(answer.item, {}).pop(answer.annotator, None)

    def undo(self, annotator: str) -> Item | None:
        """Withdraw the annotator's last answer and return its question, reserved for them; None without answers."""
        with self._guard:
            last = next((a for a in reversed(self.log.current().values()) if a.annotator == annotator), None)
            if last is None:
                return None
            self.log.append(Answer(last.item, annotator, "undone"))
            item = self.items[self._place[last.item]]
            self._reserve(annotator, item)
            return item

    def progress(self, annotator: str) -> Progress:
        """What the annotator has done and can still do."""
        with self._guard:
            own = [answer for (name, _), answer in self.log.current().items() if name == annotator]
            left = len(self._open(annotator))
        times = [answer.seconds for answer in own if answer.seconds > 0]
        return Progress(len(own), left, left * median(times) if times else None)

    def finished(self) -> bool:
        """Whether each question has the answers that it needs; one for everyone needs those of all who answered any."""
        with self._guard:
            answered, people = self._answered(), {name for name, _ in self.log.current()}
        return bool(people) and all(
            people <= answered.get(item.key, set())
            if place < self.shared
            else len(answered.get(item.key, set())) >= self.annotators_per_prompt
            for place, item in enumerate(self.items)
        )

    def order(self, annotator: str, item: Item) -> list[int]:
        """Places of the item's images on the page of an annotator, so that no position is favoured."""
        words = [self.seed, self._place[item.key], *name_of(annotator).encode()]
        shuffled: list[int] = generator(Stream.ANNOTATION, *words).permutation(len(item.images)).tolist()
        return shuffled

    def find(self, key: Any) -> Item:
        """The question of a key.

        Raises:
            ValueError: The key is unknown.
        """
        if not isinstance(key, str) or key not in self._place:
            raise ValueError("there is no such question")
        return self.items[self._place[key]]

    def _open(self, annotator: str) -> list[Item]:
        """Questions that the annotator can be asked: the reserved one first, those reserved for others last."""
        answered = self._answered()
        found: list[Item] = []
        mine: list[Item] = []
        last: list[Item] = []
        for place, item in enumerate(self.items):
            people = answered.get(item.key, set())
            shared = place < self.shared
            if annotator in people or (not shared and len(people) >= self.annotators_per_prompt):
                continue
            waiting = self._waiting(item.key)
            if annotator in waiting:
                mine.append(item)
            elif shared or len(people | waiting) < self.annotators_per_prompt:
                found.append(item)
            else:
                last.append(item)
        return [*mine, *found, *last]

    def _answered(self) -> dict[str, set[str]]:
        """The annotators who have answered each question."""
        found: dict[str, set[str]] = {}
        for name, key in self.log.current():
            found.setdefault(key, set()).add(name)
        return found

    def _waiting(self, key: str) -> set[str]:
        """Annotators for whom a question is reserved now."""
        now = self.clock()
        return {name for name, until in self._reserved.get(key, {}).items() if until > now}

    def _reserve(self, annotator: str, item: Item) -> None:
        self._reserved.setdefault(item.key, {})[annotator] = self.clock() + RESERVED_SECONDS
