"""What answers say, against hand-counted figures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2ifb.annotation.answers import Answer, AnswerLog
from t2ifb.annotation.items import Item, read_items
from t2ifb.annotation.results import _ratings, export, score_items, summarise
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.prompts import hash_fraction
from tests.annotation.parts import write_generated

A, B = (Item(name, f"prompt {name}", (Path("0"), Path("1"), Path("2")), ("base", "tuned", "tuned")) for name in "AB")


def answers(*given: tuple[str, Item, tuple[int, ...]]) -> dict[tuple[str, str], Answer]:
    return {
        (name, item.key): Answer(item.key, name, "ranks" if ranks else "skip", ranks) for name, item, ranks in given
    }


def test_agreement_is_of_pairs_that_both_decide() -> None:
    given = answers(("ada", A, (1, 2, 3)), ("bob", A, (1, 3, 2)), ("ada", B, (1, 1, 2)), ("bob", B, (2, 1, 3)))
    results = summarise(given, [A, B])
    assert results.agreement is not None
    assert results.agreement.mean == pytest.approx((2 + 2) / (3 + 2))
    assert results.counts == {"ada": {"ranks": 2}, "bob": {"ranks": 2}}
    scored = summarise(given, [A, B], {"A": [3.0, 2.0, 1.0], "B": [0.0, 0.0, 1.0]})
    assert scored.reward_agreement is not None
    assert scored.reward_agreement.mean == pytest.approx((3 + 2 + 0 + 0) / (3 + 3 + 2 + 2))
    assert summarise(answers(("ada", A, ())), [A, B]).agreement is None


def test_the_verdict_is_the_share_of_prompts_that_prefer_the_tuned_model() -> None:
    given = answers(("ada", A, (3, 1, 2)), ("bob", A, (2, 2, 1)), ("ada", B, (1, 2, 3)))
    results = summarise(given, [A, B])
    assert results.verdicts["tuned"].mean == pytest.approx(((1 + 1 + 0.5 + 1) / 4 + 0) / 2)
    assert "tuned preferred to base: 44 %" in ", ".join(f"{k}: {v}" for k, v in results.lines().items())
    clear = [replace(A, key=str(n), prompt=str(n)) for n in range(30)]
    better = summarise(answers(*(("ada", item, (3, 1, 2)) for item in clear)), clear)
    assert better.lines()["tuned preferred to base"] == "100 % [88, 100] of the prompts: better"
    assert better.to_json()["verdicts"]["tuned"]["low"] == pytest.approx(0.025 ** (1 / 30))
    one = summarise(answers(("ada", clear[0], (3, 1, 2))), clear)
    assert one.lines()["tuned preferred to base"] == "100 % [3, 100] of the prompts: not clearly better or worse"


def test_a_scorer_scores_every_image(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=2))
    scores = score_items(lambda images, prompts: images.mean((1, 2, 3)), items, torch.device("cpu"))
    assert {key: len(row) for key, row in scores.items()} == {item.key: 4 for item in items}


def test_only_ratings_in_force_are_exported(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=2, copies=1))
    log = AnswerLog(tmp_path, items)
    for item, kind, rating in (
        (items[0], "ranks", 1), (items[0], "ranks", 7), (items[1], "ranks", 2), (items[1], "undone", None),
    ):  # fmt: skip
        ranks = (1, 2) if rating else ()
        log.append(Answer(item.key, "ada", kind, ranks, ({"overall": rating},) * 2 if rating else ()))  # type: ignore
    log.close()
    ratings = _ratings(log.path)
    assert ratings == {image.resolve(): {"overall": 7} for image in items[0].images}


def test_the_export_is_read_as_imagereward_db(tmp_path: Path) -> None:
    splits = {"train": 0, "validation": 0, "test": 0}
    for number in range(1, 40):
        place = hash_fraction(f"prompt {number}", 0)
        splits["train" if place < 0.8 else "validation" if place < 0.9 else "test"] += 1
    assert all(splits.values())
    items = read_items(write_generated(tmp_path, prompts=40, copies=1))
    log = AnswerLog(tmp_path / "annotations", items)
    for item in items:
        log.append(Answer(item.key, "ada", "ranks", (2, 1), ({"overall": 3}, {"overall": 7, "fidelity": 6})))
    log.close()
    counts = export(tmp_path / "annotations", tmp_path / "db")
    assert sum(counts.values()) == 40
    for split, count in counts.items():
        rankings = ImageRewardDB(tmp_path / "db").rankings(split)
        assert len(rankings) == count and {r.ranks for r in rankings} == {(2, 1)}
