"""Images of a round and their rankings."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from t2ifb.annotation.answers import Answer, AnswerLog
from t2ifb.annotation.items import read_items
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.iteration.collection import (
    ANSWERS,
    COLLECTED,
    Judge,
    RankingsNeeded,
    collect,
    divide,
    draw,
    prompts_of_rounds,
)
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import PROMPTS
from tests.iteration.parts import darkest_first, write_images

CPU = torch.device("cpu")


def test_no_prompt_is_ranked_twice_and_further_rounds_change_no_earlier_one() -> None:
    prompts = [f"prompt {number}" for number in range(20)] + ["Prompt  3", "prompt 3"]
    rounds = prompts_of_rounds(prompts, 3, 5, seed=0)
    drawn = [prompt for some in rounds for prompt in some]
    assert len({prompt.casefold() for prompt in drawn}) == 15
    assert prompts_of_rounds(prompts, 4, 5, seed=0)[:3] == rounds
    assert prompts_of_rounds(prompts, 3, 5, seed=1) != rounds
    with pytest.raises(ValueError, match="need 21 distinct training prompts; there are 20"):
        prompts_of_rounds(prompts, 3, 7, seed=0)


def test_rankings_are_divided_by_prompts() -> None:
    prompts = [f"prompt {number}" for number in range(10)]
    assert set(divide(prompts, 0.0, 0).values()) == {"train"}
    splits = list(divide(prompts, 0.01, 0).values())
    assert [splits.count(name) for name in ("train", "validation", "test")] == [8, 1, 1]
    splits = list(divide(prompts * 2, 0.2, 0).values())
    assert [splits.count(name) for name in ("train", "validation", "test")] == [6, 2, 2]
    with pytest.raises(ValueError, match="2 prompts have a ranking; expected more than 2"):
        divide(prompts[:2], 0.1, 0)
    with pytest.raises(ValueError, match="0 prompts have a ranking"):
        divide([], 0.0, 0)


def test_interrupted_drawing_continues_with_the_same_images(tmp_path: Path) -> None:
    def go(name: str) -> dict[str, bytes]:
        folder = tmp_path / name
        draw(folder, StableDiffusionSource(str(PIPELINE)), None, Sampler(2, 1.0), PROMPTS, 2, (0, 1), 2, CPU)
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    whole = go("images")
    assert len(set(whole.values())) == len(whole) == 5
    for name in ("0001_0_base.png", "prompts.json"):
        (tmp_path / "images" / name).unlink()
    kept = (tmp_path / "images" / "0000_0_base.png").stat().st_mtime_ns
    assert go("images") == whole
    assert (tmp_path / "images" / "0000_0_base.png").stat().st_mtime_ns == kept
    items = read_items(tmp_path / "images")
    assert {item.prompt for item in items} == set(PROMPTS)
    assert {model for item in items for model in item.models} == {"base"}


def gather(folder: Path, annotators: dict[str, Judge] | None = None, answered: float = 1.0) -> dict[str, object]:
    return collect(folder, annotators, answered, held_out=0.2, reward=None, device=CPU, seed=0)


def test_people_are_waited_for_and_later_answers_change_nothing(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    with pytest.raises(RankingsNeeded, match=r"6 of 6 prompts.*t2ifb.annotate source=.*images.*resume=True") as wanted:
        gather(folder)
    assert str(pickle.loads(pickle.dumps(wanted.value))) == str(wanted.value)
    items = read_items(folder)

    def answer(*kinds: str) -> None:
        log = AnswerLog(folder / ANSWERS, items)
        for item, kind in zip(items, kinds, strict=False):
            log.append(Answer.checked(item, "Ann", kind, [1, 2, 3] if kind == "ranks" else None, None, 1.0))
        log.close()

    answer("ranks", "ranks", "ranks", "skip")
    with pytest.raises(RankingsNeeded, match="2 of 6 prompts"):
        gather(folder)
    with pytest.raises(RankingsNeeded):
        gather(folder, answered=0.7)
    figures = gather(folder, answered=0.6)
    assert (figures["prompts"], figures["rankings"], figures["counts"]) == (6, 3, {"Ann": {"ranks": 3, "skip": 1}})
    assert json.loads((folder / "summary.json").read_text())["rankings"] == 3
    collected = (folder / COLLECTED / "rankings.jsonl").read_bytes()
    answer(*["ranks"] * 6)
    assert (folder / COLLECTED / "rankings.jsonl").read_bytes() == collected
    dataset = OwnRankings(folder / COLLECTED)
    rankings = [ranking for split in ("train", "validation", "test") for ranking in dataset.rankings(split)]
    assert {ranking.prompt for ranking in rankings} == {item.prompt for item in items[:3]}
    assert all(ranking.ranks == (1, 2, 3) for ranking in rankings)


def test_answers_about_pairs_of_the_images_count_too(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    log = AnswerLog(folder / ANSWERS, pairs := read_items(folder, images=2))
    for item in pairs:
        log.append(Answer.checked(item, "Ann", "ranks", [1, 2], None, 1.0))
    log.close()
    assert gather(folder)["prompts"] == 6
    dataset = OwnRankings(folder / COLLECTED)
    assert len({r.prompt for split in ("train", "validation", "test") for r in dataset.rankings(split)}) == 6


def test_ties_of_all_images_are_not_held_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    items = read_items(folder)
    log = AnswerLog(folder / ANSWERS, items)
    for number, item in enumerate(items):
        log.append(Answer.checked(item, "Ann", "ranks", [1, 2, 3] if number < 3 else [1, 1, 1], None, 1.0))
    log.close()
    gather(folder)
    lines = [json.loads(line) for line in (folder / COLLECTED / "rankings.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines if line["ranks"] == [1, 1, 1]} == {"train"}
    assert {line["split"] for line in lines if line["ranks"] == [1, 2, 3]} == {"train", "validation", "test"}


def test_all_skipped_is_an_error(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 3)
    items = read_items(folder)
    log = AnswerLog(folder / ANSWERS, items)
    for item in items:
        log.append(Answer.checked(item, "Ann", "all bad", None, None, 1.0))
    log.close()
    with pytest.raises(ValueError, match="0 prompts have a ranking"):
        gather(folder)


def test_interrupted_programs_continue_and_each_ranks_all(tmp_path: Path) -> None:
    folders = [write_images(tmp_path / name) for name in ("whole", "interrupted")]
    calls = 0

    def stopped(images: Sequence[Image.Image], prompt: str) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return darkest_first(images, prompt)

    with pytest.raises(KeyboardInterrupt):
        gather(folders[1], {"one": stopped, "two": stopped})
    both = [gather(folder, {"one": darkest_first, "two": darkest_first}) for folder in folders]
    assert both[0] == both[1]
    assert both[0]["rankings"] == 12
    assert both[0]["agreement"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    one, other = ((folder / COLLECTED / "rankings.jsonl").read_bytes() for folder in folders)
    assert one == other
    assert len(OwnRankings(folders[0] / COLLECTED).rankings("train")) == 4
