"""Answers on disk: nothing is lost, and rewards are trained on them as they are."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from t2ifb.annotation.answers import FILE, Answer, AnswerLog, name_of, read_lines
from t2ifb.annotation.items import read_items
from t2ifb.annotation.results import summarise
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.rankings import read_bytes
from t2ifb.utils.files import StorageError
from tests.annotation.parts import EVIL, write_generated
from tests.data.parts import encoded_picture


def test_answers_are_read_back_and_as_rankings(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path))
    log = AnswerLog(tmp_path / "annotations", items)
    evil = next(item for item in items if item.prompt == EVIL)
    first, second = (item for item in items if item is not evil)
    log.append(Answer(evil.key, "ada", "ranks", (1, 2, 3, 3), seconds=2.5))
    log.append(Answer(evil.key, "bob", "ranks", (2, 1, 3, 3)))
    log.append(Answer(first.key, "ada", "ranks", (4, 3, 2, 1)))
    log.append(Answer(first.key, "ada", "undone"))
    log.append(Answer(second.key, "ada", "ranks", (1, 1, 1, 1)))
    log.append(Answer(second.key, "ada", "all bad"))
    log.append(Answer(first.key, "bob", "skip"))
    log.close()
    again = AnswerLog(tmp_path / "annotations", items)
    assert again.answers == log.answers
    assert [(a.annotator, a.kind) for a in again.current().values()] == [
        ("ada", "ranks"), ("bob", "ranks"), ("ada", "all bad"), ("bob", "skip"),
    ]  # fmt: skip
    again.close()
    (ranking,) = OwnRankings(tmp_path / "annotations", shares={"train": 1.0}).rankings("train")
    assert ranking.prompt == EVIL
    assert [Path(str(image)).resolve() for image in ranking.images] == [image.resolve() for image in evil.images]
    assert ranking.ranks == (1, 1, 3, 3) or ranking.ranks == (1, 1, 2, 2)
    assert {(v.for_first, v.for_second) for v in ranking.votes} == {(1, 1), (2, 0)}


def test_an_unfinished_line_is_removed_and_a_broken_one_is_named(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path))
    log = AnswerLog(tmp_path / "annotations", items)
    log.append(Answer(items[0].key, "ada", "skip"))
    log.close()
    whole = log.path.read_bytes()
    for cut in (1, 20, len(whole) - 2):  # the last would be a whole line without its end
        log.path.write_bytes(whole + whole[:cut])
        again = AnswerLog(tmp_path / "annotations", items)
        assert len(again.answers) == 1
        again.append(Answer(items[1].key, "ada", "skip"))
        again.close()
        assert len(read_lines(log.path)) == 2
    log.path.write_bytes(b"{\n" + whole)
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        AnswerLog(tmp_path / "other", items).close()
        read_lines(log.path)


def test_a_line_that_the_disk_had_no_room_for_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = read_items(write_generated(tmp_path))
    log = AnswerLog(tmp_path / "annotations", items)
    log.append(Answer(items[0].key, "ada", "skip"))

    def full(descriptor: int) -> None:
        monkeypatch.undo()
        os.truncate(descriptor, os.fstat(descriptor).st_size - 20)  # as if only a part had been written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        log.append(Answer(items[1].key, "ada", "skip"))
    log.append(Answer(items[1].key, "ada", "skip"))
    log.close()
    assert [row["prompt_id"] for row in read_lines(log.path)] == [items[0].key, items[1].key]
    assert [answer.item for answer in log.answers] == [items[0].key, items[1].key]


def test_two_processes_do_not_write_the_same_file(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path))
    log = AnswerLog(tmp_path / "annotations", items)
    with pytest.raises(ValueError, match="another process collects answers"):
        AnswerLog(tmp_path / "annotations", items)
    log.close()
    AnswerLog(tmp_path / "annotations", items).close()


def test_answers_to_other_questions_are_kept(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path))
    log = AnswerLog(tmp_path / "annotations", items)
    log.append(Answer(items[0].key, "ada", "skip"))
    log.close()
    later = AnswerLog(tmp_path / "annotations", items[1:])
    assert later.answers == []
    later.close()
    assert len(read_lines(log.path)) == 1


def test_answers_follow_their_images_when_the_order_changes(tmp_path: Path) -> None:
    source = write_generated(tmp_path / "images", prompts=20, copies=1)
    items = read_items(source, "compare")
    log = AnswerLog(tmp_path / "out", items)
    for item in items:
        tuned = item.models.index("tuned")
        ratings = tuple({"overall": 7 if place == tuned else 1} for place in range(2))
        log.append(Answer(item.key, "ada", "ranks", tuple(1 if place == tuned else 2 for place in range(2)), ratings))
    log.close()
    source = source.rename(tmp_path / "moved")
    again = read_items(source, "compare", seed=1)
    orders = {item.key: item.models for item in items}
    assert any(item.models != orders[item.key] for item in again)
    log = AnswerLog(tmp_path / "out", again)
    log.close()
    assert len(log.current()) == 20
    assert summarise(log.current(), again).verdicts["tuned"].mean == 1
    for answer in log.answers:
        tuned = log.items[answer.item].models.index("tuned")
        assert answer.ratings[tuned] == {"overall": 7}


def test_answers_follow_their_models_when_files_are_renamed(tmp_path: Path) -> None:
    source = write_generated(tmp_path / "images", prompts=3, copies=1)
    items = read_items(source, "compare")
    log = AnswerLog(tmp_path / "out", items)
    for item in items:
        log.append(Answer(item.key, "ada", "ranks", tuple(1 if model == "tuned" else 2 for model in item.models)))
    log.close()
    index = json.loads((source / "prompts.json").read_text())
    for entry in index:
        for model, prefix in (("base", "z"), ("tuned", "a")):  # in the other order than before
            (name,) = entry["images"][model]
            (source / name).rename(source / f"{prefix}_{name}")
            entry["images"][model] = [f"{prefix}_{name}"]
    (source / "prompts.json").write_text(json.dumps(index))
    again = read_items(source, "compare")
    log = AnswerLog(tmp_path / "out", again)
    log.close()
    assert len(read_lines(log.path)) == 2 * 3
    AnswerLog(tmp_path / "out", again).close()
    assert len(read_lines(log.path)) == 2 * 3  # once
    assert summarise(log.current(), again).verdicts["tuned"].mean == 1
    rankings = OwnRankings(tmp_path / "out", shares={"train": 1.0}).rankings("train")
    assert len(rankings) == 3  # the lines with the old names are replaced, not further answers
    for ranking in rankings:
        assert Path(str(ranking.images[ranking.ranks.index(1)])).name.startswith("a_")


def test_answers_follow_the_content_of_images(tmp_path: Path) -> None:
    """Files without models are renamed, so that they come in another order."""
    folder = tmp_path / "images" / "one"
    folder.mkdir(parents=True)
    (folder / "prompt.txt").write_text("a cat")
    for name in "abc":
        (folder / f"{name}.png").write_bytes(encoded_picture(ord(name), "PNG"))
    (item,) = read_items(tmp_path / "images")
    log = AnswerLog(tmp_path / "out", [item])
    log.append(Answer(item.key, "ada", "ranks", tuple("abc".index(image.stem) + 1 for image in item.images)))
    log.close()
    best = (folder / "a.png").read_bytes()
    (folder / "a.png").rename(folder / "z.png")
    AnswerLog(tmp_path / "out", read_items(tmp_path / "images")).close()
    (ranking,) = OwnRankings(tmp_path / "out", shares={"train": 1.0}).rankings("train")
    assert read_bytes(ranking.images[ranking.ranks.index(1)]) == best
    broken = {**read_lines(tmp_path / "out" / FILE)[0], "hashes": ["0", "1", "2"]}
    (tmp_path / "out" / FILE).write_text(json.dumps(broken) + "\n")
    with pytest.raises(ValueError, match="expected 3 images, their models and their hashes"):
        AnswerLog(tmp_path / "out", read_items(tmp_path / "images"))


def test_a_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"prompt": "a"}\n{"prompt": "b"}')
    for _ in range(2):
        assert [row["prompt"] for row in read_lines(tmp_path / FILE)] == ["a", "b"]
    assert (tmp_path / FILE).read_text() == '{"prompt": "a"}\n{"prompt": "b"}\n'


def test_the_folder_of_answers_may_be_a_link(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path / "images", prompts=1))
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    for folder in (tmp_path / "link", tmp_path / "far" / "away"):
        log = AnswerLog(folder, items)
        log.append(Answer(items[0].key, "ada", "ranks", (1, 2, 3, 4)))
        log.close()
        (ranking,) = OwnRankings(folder, shares={"train": 1.0}).rankings("train")
        assert [Path(str(image)).resolve() for image in ranking.images] == list(items[0].images)
    assert len(log.answers) == 2


GOOD: dict[str, Any] = {"annotator": "ada", "kind": "ranks", "ranks": [1, 2, 2, 4], "ratings": None, "seconds": 3}
WRONG = [
    ({"annotator": ""}, "name must have 1 to 60"),
    ({"annotator": "a\x00b"}, "name must have 1 to 60"),
    ({"annotator": ["ada"]}, "name must have 1 to 60"),
    ({"kind": "delete"}, "answer must be one of ranks, skip"),
    ({"ranks": 5}, "ranks and ratings must be lists"),
    ({"ranks": True}, "ranks and ratings must be lists"),
    ({"ratings": 5}, "ranks and ratings must be lists"),
    ({"ranks": [1, 2]}, "ranks must be 4 numbers from 1 to 4"),
    ({"ranks": [0, 1, 2, 3]}, "ranks must be 4 numbers"),
    ({"ranks": [1, 2, 3, True]}, "ranks must be 4 numbers"),
    ({"ratings": [{}]}, "ratings must be given for each of 4 images"),
    ({"ratings": [{"overall": 8}, {}, {}, {}]}, "ratings must be from 1 to 7"),
    ({"ratings": [{"beauty": 1}, {}, {}, {}]}, "ratings must be from 1 to 7, by overall"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_untrusted_answers_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    item = read_items(write_generated(tmp_path, prompts=1))[0]
    assert Answer.checked(item, **GOOD).ranks == (1, 2, 2, 4)
    assert Answer.checked(item, **GOOD | {"seconds": "x"}).seconds == 0
    with pytest.raises(ValueError, match=message):
        Answer.checked(item, **GOOD | change)


def test_names_are_normalised() -> None:
    assert name_of("  Ada   Lovelace ") == "Ada Lovelace"


def test_lines_are_plain_json(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=1))
    log = AnswerLog(tmp_path / "annotations", items)
    log.append(Answer(items[0].key, "ada", "ranks", (1, 2, 3, 4), ({"overall": 7}, {}, {}, {})))
    log.close()
    (line,) = log.path.read_text().splitlines()
    row = json.loads(line)
    assert row["images"][0].startswith("../0000_") and row["models"] == list(items[0].models)
    assert row["ratings"] == [{"overall": 7}, {}, {}, {}]
