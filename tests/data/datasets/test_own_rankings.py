import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.rankings import read_bytes
from tests.data.parts import encoded_picture, two_steps

Rows = list[dict[str, Any]]


def rows(prompts: int = 2, images: int = 3, start: int = 0, **more: Any) -> Rows:
    """A table; image i of a prompt has rank i + 1."""
    return [
        {"prompt": f"prompt {n}, with a comma", "image": f"images/{n}-{i}.png", "rank": i + 1} | more
        for n in range(start, start + prompts)
        for i in range(images)
    ]


def write(path: Path, table: Rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """The table, and the images that it names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "images").mkdir(exist_ok=True)
    for number in range(60):
        for index in range(3):
            (path.parent / f"images/{number}-{index}.png").write_bytes(encoded_picture(10 * number + index, "PNG"))
    if path.suffix == ".json":
        path.write_text(json.dumps(table))
        return path
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(table[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(table)
    return path


@pytest.mark.parametrize("name", ["train.csv", "train.json"])
def test_a_file_for_a_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, rows()[::-1])
    dataset = OwnRankings(tmp_path)
    assert dataset.available("train")
    assert not dataset.available("test")
    first, second = dataset.rankings("train")
    assert (first.prompt, second.prompt) == ("prompt 1, with a comma", "prompt 0, with a comma")
    assert first.ranks == (3, 2, 1)
    assert read_bytes(second.images[0]) == encoded_picture(2, "PNG")
    with pytest.raises(ValueError, match=r"'test' is missing. Expected a table .*<split>.csv"):
        dataset.rankings("test")


@pytest.mark.parametrize(("delimiter", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-8"), (",", "utf-8-sig")])
def test_tables_of_spreadsheets(tmp_path: Path, delimiter: str, encoding: str) -> None:
    write(tmp_path / "train.csv", rows(), delimiter, encoding)
    assert [r.ranks for r in OwnRankings(tmp_path).rankings("train")] == [(1, 2, 3)] * 2


def test_a_column_says_the_split(tmp_path: Path) -> None:
    write(tmp_path / "rankings.csv", [*rows(2, split="train"), *rows(1, start=5, split="hard")])
    dataset = OwnRankings(tmp_path)
    assert [len(dataset.rankings(split)) for split in ("train", "hard")] == [2, 1]
    assert not dataset.available("validation")
    with pytest.raises(ValueError, match="has the splits hard, train"):
        dataset.rankings("validation")
    write(tmp_path / "rankings.csv", [*rows(1, split="train"), *rows(1, start=5, split="")])
    with pytest.raises(ValueError, match=r"rankings.csv, line 5: the column split is empty"):
        OwnRankings(tmp_path).rankings("train")


def test_an_id_makes_two_rankings_of_one_prompt(tmp_path: Path) -> None:
    table = [row | {"prompt": "a cat", "prompt_id": row["prompt"]} for row in rows(2)]
    write(tmp_path / "train.csv", table)
    rankings = OwnRankings(tmp_path).rankings("train")
    assert [(r.prompt_id, r.prompt) for r in rankings] == [(f"prompt {n}, with a comma", "a cat") for n in (0, 1)]


def test_prompts_are_shared_out_and_stay_where_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def parts(prompts: int) -> dict[str, set[str]]:
        write(tmp_path / "rankings.json", rows(prompts))
        dataset = OwnRankings(tmp_path)
        return {split: {r.prompt for r in dataset.rankings(split)} for split in ("train", "validation", "test")}

    many, few = parts(60), parts(50)
    assert sum(map(len, many.values())) == 60
    assert len(set.union(*many.values())) == 60
    assert len(many["train"]) > 40
    assert all(few[split] <= many[split] for split in few)
    assert caplog.text.count("split by a hash") == 2  # once for each data set, not for each split
    assert f"{len(many['train'])} prompts train" in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_few_prompts_leave_no_split_empty(tmp_path: Path, seed: int) -> None:
    for count in (3, 4, 10, 20):
        write(tmp_path / "rankings.csv", rows(count))
        dataset = OwnRankings(tmp_path, seed=seed)
        sizes = {split: len(dataset.rankings(split)) for split in ("train", "validation", "test")}
        assert sum(sizes.values()) == count and min(sizes.values()) >= max(1, count // 10)
    write(tmp_path / "rankings.csv", rows(1))
    with pytest.raises(ValueError, match="too few prompts for"):
        [OwnRankings(tmp_path, seed=seed).rankings(split) for split in ("train", "validation", "test")]


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_in_two_spellings_is_in_one_split(tmp_path: Path, seed: int) -> None:
    table = rows(6)
    again = [{**row, "prompt": str(row["prompt"]).upper()} for row in table]
    write(tmp_path / "rankings.json", [*table, *again])
    dataset = OwnRankings(tmp_path, seed=seed)
    splits = {s: {r.prompt.lower() for r in dataset.rankings(s)} for s in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 6


@pytest.mark.parametrize("shares", [None, {"train": 0.6, "validation": 0.2, "test": 0.2}, {"train": 1.0}])
def test_each_split_has_a_prompt_and_soon_three_or_its_share(tmp_path: Path, shares: dict[str, float] | None) -> None:
    for seed in range(10):
        dataset = OwnRankings(tmp_path, shares=shares, seed=seed)
        for count in (1, 2, 3, 5, 8, 13, 20, 40, 100):
            found = Counter(dataset._by_hash({f"prompt {n}" for n in range(count)}).values())
            assert sum(found.values()) == count
            if count >= 3:
                assert min(found[name] for name in dataset.shares) >= 1
            if count >= 8:
                assert all(found[name] >= min(3, int(share * count)) for name, share in dataset.shares.items())


def test_shares_that_leave_nothing_are_said(tmp_path: Path) -> None:
    write(tmp_path / "rankings.csv", rows(2))
    with pytest.raises(ValueError, match=r"too few prompts for dev \(2 prompts train, 0 prompts dev\). Rank more, add"):
        OwnRankings(tmp_path, shares={"train": 1.0, "dev": 0.0}).rankings("dev")
    with pytest.raises(ValueError, match="add up to 1"):
        OwnRankings(tmp_path, shares={"train": 0.5})


@pytest.mark.parametrize("name", ["train.csv", "train.json"])
def test_wrong_columns_name_the_nearest(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [{"promt": "a", "images": "b.png", "rank": 1}])
    where = "line 1" if name.endswith("csv") else "entry 0"
    expected = rf"{name}, {where}: no column prompt, image; .*is 'promt' meant to be 'prompt'\?.*is 'images' meant to"
    with pytest.raises(ValueError, match=expected):
        OwnRankings(tmp_path).rankings("train")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("train.csv", b"prompt,image,rank\n", "has no rows"),
        ("train.csv", b"", r"no column prompt, image, rank; found nothing"),
        ("train.csv", b"prompt,image,rank\na, with comma,b.png,1\n", "line 2 has more cells"),
        ("train.csv", b"prompt,image,rank\n\xff,b.png,1\n", r"line 2: the text is not in UTF-8 \(byte 0xff\); save"),
        ("train.json", b"[]", "has no rows"),
        ("train.json", b"{", "not valid JSON"),
        ("train.json", b'["a"]', "entry 0: expected an object"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=what) as raised:
        OwnRankings(tmp_path, on_error="skip").rankings("train")
    assert name in str(raised.value)


def test_two_files_for_a_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows())
    write(tmp_path / "train.json", rows())
    with pytest.raises(ValueError, match=r"has both train.csv and train.json"):
        OwnRankings(tmp_path).available("train")


ERRORY: list[tuple[Rows, str]] = [
    ([{"rank": 1.5}, {}, {}], "line 2: rank must be an integer of at least 1, found '1.5'"),
    ([{}, {"rank": "best"}, {}], "line 6: rank must be an integer of at least 1, found 'best'"),
    ([{"rank": 0}, {}, {}], "ranks start at 1, found [0]"),
    ([{}, {}, {"image": ""}], "line 13: no image"),
    ([{"image": "images/4-1.png"}, {}, {}], "has the same image twice"),
    ([{}, {}, {"image": "images/none.png"}], "line 19: image images/none.png ("),
    ([{"prompt": " "}], "empty prompt"),
]


def test_every_error_is_listed_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = [
        row | change
        for number, (changes, _) in enumerate(ERRORY)
        for row, change in zip(rows(1, len(changes), start=number), changes, strict=True)
    ]
    write(tmp_path / "train.csv", [*table, *rows(1, start=20)])
    (tmp_path / "images/20-0.png").write_bytes(encoded_picture(0, "PNG"))
    with pytest.raises(ValueError, match="7 errors in 7 of 8 rankings") as raised:
        OwnRankings(tmp_path).rankings("train")
    for _, what in ERRORY:
        assert what in str(raised.value)
    dataset = OwnRankings(tmp_path, on_error="skip")
    assert [r.prompt for r in dataset.rankings("train")] == ["prompt 20, with a comma"]
    assert "dropped 7 of 8 rankings" in caplog.text


def test_one_ranking_has_one_prompt_and_one_split(tmp_path: Path) -> None:
    table = [row | {"prompt_id": "one", "split": "train"} for row in rows(2)]
    write(tmp_path / "rankings.csv", table)
    with pytest.raises(ValueError, match="'one' have different values in prompt"):
        OwnRankings(tmp_path).rankings("train")
    table = [row | {"split": split} for row, split in zip(rows(1), ("train", "train", "test"), strict=True)]
    write(tmp_path / "rankings.csv", table)
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="different values in split"):
            OwnRankings(tmp_path).rankings(split)


def test_annotators_may_be_in_different_splits(tmp_path: Path) -> None:
    table = [
        row | {"annotator": who, "split": split}
        for who, split in (("ada", "train"), ("bob", "test"))
        for row in rows(2)
    ]
    write(tmp_path / "rankings.csv", table)
    for split in ("train", "test"):
        found = OwnRankings(tmp_path).rankings(split)
        assert [len(ranking.comparisons()) for ranking in found] == [3, 3]
        assert [one.weight for ranking in found for one in ranking.judgements()] == [1.0] * 6  # one person's


def test_a_reward_model_trains_on_it(tmp_path: Path) -> None:
    write(tmp_path / "own/rankings.csv", rows(40))
    summary = two_steps(OwnRankings(tmp_path / "own"), tmp_path)
    assert summary["data"]["position"] == 2
    assert summary["data"]["comparisons"] == 3 * len(OwnRankings(tmp_path / "own").rankings("train"))


def test_a_table_for_all_splits_beside_one_for_a_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rankings.csv", rows(20))
    write(tmp_path / "test.csv", rows(2))
    with pytest.raises(ValueError, match=r"has both rankings\.csv and test\.csv"):
        OwnRankings(tmp_path).rankings("test")
