"""Who is asked what."""

from pathlib import Path

import pytest

from t2ifb.annotation.answers import Answer, AnswerLog
from t2ifb.annotation.items import Item
from t2ifb.annotation.queues import RESERVED_SECONDS, AnsweredByOthers, Progress, Queues
from tests.annotation.parts import best_first, make_queues


def work(queues: Queues, name: str, most: int = 100, seconds: float = 2.0) -> list[str]:
    """Answer questions until there are none left; gives their keys."""
    keys: list[str] = []
    while len(keys) < most and (item := queues.next(name)) is not None:
        queues.answer(Answer(item.key, name, "ranks", tuple(best_first(item)), seconds=seconds))
        keys.append(item.key)
    return keys


def test_questions_are_shared_out_and_some_are_asked_of_everyone(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 10, overlap=0.2)
    ada, bob = work(queues, "ada", 6), work(queues, "bob")
    assert len(ada) == 6
    assert len(bob) == 2 + 4
    assert set(ada) & set(bob) == {item.key for item in queues.items[:2]}
    assert work(queues, "ada") == []


def test_a_thousand_prompts_are_continued_where_others_stopped(tmp_path: Path) -> None:
    items = [Item(f"{n}", f"prompt {n}", (Path("0"), Path("1")), ("", "")) for n in range(1000)]
    log = AnswerLog(tmp_path, items)
    log.answers += [Answer(item.key, "ada", "ranks", (1, 2)) for item in items[:980]]
    queues = Queues(items, log, overlap=0.01)
    assert (queues.progress("ada").left, queues.progress("bob").left) == (20, 10 + 20)
    assert len(work(queues, "bob")) == 30
    assert queues.progress("ada") == Progress(980, 0, None)


def test_each_question_has_a_number_of_annotators(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 4, annotators_per_prompt=2)
    done = []
    for name, count in (("ada", 4), ("bob", 4), ("eve", 0)):
        assert len(work(queues, name)) == count
        done.append(queues.finished())
    assert done == [False, True, True]


def test_a_question_for_everyone_is_finished_when_all_who_answer_have_answered_it(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 4, overlap=0.5)
    work(queues, "ada")
    assert queues.finished()
    bob = queues.next("bob")
    assert bob is not None and queues.finished()
    queues.answer(Answer(bob.key, "bob", "skip"))
    assert not queues.finished()
    work(queues, "bob")
    assert queues.finished()


def test_what_somebody_sees_is_given_to_others_last_and_the_first_answer_counts(tmp_path: Path) -> None:
    now = [0.0]
    queues = make_queues(tmp_path, 2, clock=lambda: now[0])
    first, second = queues.next("ada"), queues.next("bob")
    assert first is not None and second is not None and first != second
    assert queues.next("ada") == first  # a reload shows the same question
    eve = queues.next("eve")
    assert eve is not None and eve in (first, second) and queues.progress("eve").left == 2  # ada and bob may have left
    assert work(queues, "eve") == [eve.key, ({first.key, second.key} - {eve.key}).pop()]
    with pytest.raises(AnsweredByOthers, match="others have answered this question meanwhile"):
        queues.answer(Answer(first.key, "ada", "skip"))
    assert {name for name, _ in queues.log.current()} == {"eve"}
    queues.answer(Answer(first.key, "eve", "skip"))  # a change of one's own answer
    assert queues.next("ada") is None


def test_reserved_questions_expire(tmp_path: Path) -> None:
    now = [0.0]
    queues = make_queues(tmp_path, 2, clock=lambda: now[0])
    first = queues.next("ada")
    assert queues.next("bob") != first
    now[0] = RESERVED_SECONDS + 1
    assert queues.next("eve") == first


def test_undo_returns_to_the_question_before_also_after_a_restart(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 3)
    keys = work(queues, "ada", 2)
    queues = Queues(queues.items, queues.log)
    for key in reversed(keys):
        item = queues.undo("ada")
        assert item is not None and item.key == key
    assert queues.undo("ada") is None
    assert queues.progress("ada").done == 0
    assert len(work(queues, "ada")) == 3


def test_progress_estimates_the_time_left(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 5)
    assert queues.progress("ada").seconds_left is None
    work(queues, "ada", 2, seconds=10.0)
    progress = queues.progress("ada")
    assert (progress.done, progress.left, progress.seconds_left) == (2, 3, 30.0)


def test_positions_differ_between_annotators_and_questions(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 3)
    orders = {(name, item.key): queues.order(name, item) for name in ("ada", "bob", "eve") for item in queues.items}
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 3
    assert queues.order("ada", queues.items[0]) == orders["ada", queues.items[0].key]


def test_wrong_settings_and_keys_are_refused(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 1)
    for settings in ({"annotators_per_prompt": 0}, {"overlap": 1.5}):
        with pytest.raises(ValueError, match="expected annotators_per_prompt of at least 1 and overlap from 0 to 1"):
            Queues(queues.items, queues.log, **settings)  # type: ignore[arg-type]
    for key in ("nothing", None, ["x"]):
        with pytest.raises(ValueError, match="there is no such question"):
            queues.find(key)
