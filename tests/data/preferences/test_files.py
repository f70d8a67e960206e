"""Every format of preference files, made here in its real layout, becomes rankings."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.preferences.files import split_files
from t2ifb.data.rankings import RankedPrompt, read_bytes
from tests.data.parts import encoded_picture, two_steps
from tests.data.storage.test_columnar import write_parquet, write_samples

COUNT = 3
"""Prompts of each file; the first image of prompt n is picture 2 n, the second one 2 n + 1."""
Cells = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "cache"))


def name(number: int, side: int) -> str:
    return f"img/{number}_{side}.png"


def image(number: int, side: int) -> bytes:
    return encoded_picture(2 * number + side, "PNG")


def with_images(folder: Path, count: int = COUNT) -> Path:
    (folder / "img").mkdir(parents=True)
    for number in range(count):
        for side in (0, 1):
            (folder / name(number, side)).write_bytes(image(number, side))
    return folder


def named(first: str, second: str, *more: Cells, count: int = COUNT) -> list[Cells]:
    """Rows of a table of pairs with file names, each with the cells of `more` in turn."""
    return [
        {"prompt": f"prompt {n}", first: name(n, 0), second: name(n, 1)} | (more[n % len(more)] if more else {})
        for n in range(count)
    ]


def embedded(first: str, second: str, *more: Cells, raw: bool = False, prompt: str = "prompt") -> list[Cells]:
    """Rows with encoded images, as bytes or as the `datasets` library stores them."""
    cell = (lambda content: content) if raw else (lambda content: {"bytes": content, "path": None})
    return [
        {prompt: f"prompt {n}", first: cell(image(n, 0)), second: cell(image(n, 1))} | more[n % len(more)]
        for n in range(COUNT)
    ]


def write(path: Path, rows: list[Cells]) -> Path:
    """A table as CSV, TSV, JSON or JSON Lines."""
    if path.suffix in (".json", ".jsonl"):
        lines = [json.dumps(row) for row in rows]
        path.write_text(f"[{','.join(lines)}]" if path.suffix == ".json" else "\n".join(lines))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def folders(root: Path) -> Path:
    for number in range(COUNT):
        for stem, side in (("win", 0), ("lose", 1)):
            path = root / f"{number}/{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image(number, side))
        (root / f"{number}/prompt.txt").write_text(f"prompt {number}")
    return root


def two_folders(root: Path) -> Path:
    for stem, side in (("high", 0), ("low", 1)):
        (root / "images" / stem).mkdir(parents=True)
        for number in range(COUNT):
            (root / "images" / stem / f"{number}.png").write_bytes(image(number, side))
            (root / "images" / f"{number}.txt").write_text(f"prompt {number}")
    return root / "images"


def shards(root: Path) -> Path:
    rows = embedded("jpg_0", "jpg_1", {"label_0": 1.0, "label_1": 0.0, "has_label": True}, raw=True, prompt="caption")
    (root / "data").mkdir()
    write_parquet(root / "data/train-00000-of-00002-0123456789abcdef.parquet", rows[:2])
    write_parquet(root / "data/train-00001-of-00002-0123456789abcdef.parquet", rows[2:])
    return root


def tars(root: Path) -> Path:
    members: dict[str, Any] = {}
    for n in range(COUNT):
        sides = {f"{n:03}.{side}.png": image(n, side) for side in (0, 1)}
        members |= sides | {f"{n:03}.json": {"prompt": f"prompt {n}", "label_0": 1, "label_1": 0}}
    return write_samples(root / "some.tar", members)


def argilla(root: Path) -> Path:
    answers = {
        "preference.responses": ["image_1"],
        "preference.responses.users": ["ada"],
        "preference.responses.status": ["submitted"],
    }
    return write_parquet(root / "export.parquet", embedded("images.image_1", "images.image_2", answers))


def label_studio(root: Path) -> Path:
    result = [{"type": "pairwise", "from_name": "p", "to_name": ["a", "b"], "value": {"selected": "left"}}]
    tasks = [{"data": row, "annotations": [{"completed_by": 1, "result": result}]} for row in named("image1", "image2")]
    return write(root / "project-1-at-2026-11-29.json", tasks)


def label_studio_choices(root: Path) -> Path:
    result = [{"type": "choices", "from_name": "c", "to_name": "a", "value": {"choices": ["image1"]}}]
    tasks = [{"data": row, "annotations": [{"completed_by": 1, "result": result}]} for row in named("image1", "image2")]
    return write(root / "project-3-at-2026-11-29.json", tasks)


def label_studio_ranker(root: Path) -> Path:
    tasks = []
    for n in range(COUNT):
        items = [{"id": f"{n}_{side}", "html": f"<img src='/data/local-files/?d={name(n, side)}'/>"} for side in (0, 1)]
        result = [
            {"type": "ranker", "from_name": "r", "to_name": "l", "value": {"ranker": {"r": [f"{n}_0", f"{n}_1"]}}}
        ]
        data = {"prompt": f"prompt {n}", "images": items}
        tasks.append({"id": n, "data": data, "annotations": [{"completed_by": 1, "result": result}]})
    return write(root / "project-2-at-2026-11-29.json", tasks)


def images_with_ranks(root: Path) -> Path:
    rows = [{"prompt": f"prompt {n}", "image": name(n, s), "rank": s + 1} for n in range(COUNT) for s in (0, 1)]
    return write(root / "rankings.tsv", rows)


def lists(root: Path) -> Path:
    images = [[name(n, side) for side in (0, 1)] for n in range(COUNT)]
    rows = [{"id": n, "prompt": f"prompt {n}", "generations": images[n], "ranking": [1, 2]} for n in range(COUNT)]
    return write(root / "test.json", rows)


FORMATS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "label a": (lambda root: write(root / "p.csv", named("image_a", "image_b", {"label": "a"})), "label=label"),
    "label left": (lambda root: write(root / "p.tsv", named("left", "right", {"choice": "left"})), "label=choice"),
    "label 0": (lambda root: write(root / "p.jsonl", named("image_0", "image_1", {"label": 0})), "0 prefers image_0"),
    "one of each number": (
        lambda root: write(root / "p.json", named("img_1", "img_2", {"winner": 1})), "label 1 prefers img_1"
    ),
    "pref": (lambda root: write(root / "p.csv", named("path_a", "path_b", {"pref_0": 1, "pref_1": -1})), "=pref_0"),
    "label as text": (
        lambda root: write(root / "p.json", named("left_image", "right_image", {"preferred": "Left"})), "=preferred"
    ),
    "chosen": (lambda root: write(root / "p.csv", named("chosen", "rejected")), "first image is the preferred"),
    "votes": (lambda root: write(root / "p.csv", named("image_a", "image_b", {"votes_a": 1, "votes_b": 0})), "votes_a"),
    "HPDv3": (
        lambda root: write(root / "p.json", named("path1", "path2", {"confidence": 1.0, "model1": "x"})), "HPDv3"
    ),
    "Open Image Preferences": (
        lambda root: write_parquet(root / "p.parquet", embedded("chosen", "rejected", {"x": 1})), "Open Image Pref"
    ),
    "Rapidata": (
        lambda root: write_parquet(
            root / "p.parquet", embedded("image1", "image2", {"votes_image1": 1, "votes_image2": 0})
        ),
        "Rapidata votes",
    ),
    "Rapidata weighted": (
        lambda root: write(
            root / "p.json",
            named("image1", "image2", {"weighted_results_image1_preference": 1.0,
                                       "weighted_results_image2_preference": 0.0}),
        ),
        "Rapidata preferences",
    ),
    "lists of votes": (
        lambda root: write(root / "p.json", named("image1", "image2", {"votes": [1, 0]})), "votes=votes"
    ),
    "Label Studio Choices": (label_studio_choices, "Label Studio export"),
    "Pick-a-Pic": (shards, "Pick-a-Pic"),
    "WebDataset": (tars, "read as pairs"),
    "Argilla": (argilla, "Argilla export, question preference"),
    "Label Studio": (label_studio, "Label Studio export"),
    "Label Studio Ranker": (label_studio_ranker, "Label Studio export with rankings"),
    "table of rankings": (images_with_ranks, ""),
    "ImageReward": (lists, "lists of images and ranks"),
    "win and lose": (folders, "folders of images"),
    "high and low": (two_folders, "folders of images"),
}  # fmt: skip


def everything(source: Path, **more: Any) -> list[RankedPrompt]:
    return OwnRankings(source, shares={"train": 1.0}, **more).rankings("train")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_becomes_rankings(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, said = FORMATS[kind]
    rankings = everything(make(with_images(tmp_path / "own")))
    assert sorted(r.prompt for r in rankings) == [f"prompt {n}" for n in range(COUNT)]
    for ranking in rankings:
        number = int(ranking.prompt.split()[1])
        assert ranking.ranks == (1, 2)
        assert [read_bytes(each) for each in ranking.images] == [image(number, side) for side in (0, 1)]
        assert ranking.judgements() == RankedPrompt("", "", ranking.images, (1, 2)).judgements()
    assert said in caplog.text


def test_votes_ties_and_several_annotators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = named("image1", "image2", {"label": "a", "annotator": "ada"})
    rows += named("image1", "image2", {"label": "b", "annotator": "bob"}, {"label": "a", "annotator": "bob"})
    rows += [
        named("image1", "image2", {"label": "tie", "annotator": "eve"})[2],
        *named("image2", "image1", {"label": ""}),
    ]
    rankings = everything(write(with_images(tmp_path / "own") / "pairs.json", rows))
    judged = {r.prompt: [(j.share, j.weight) for j in r.judgements()] for r in rankings}
    assert judged == {"prompt 0": [(0.5, 2)], "prompt 1": [(1, 2)], "prompt 2": [(0.5, 3)]}
    assert [r.ranks for r in rankings] == [(1, 1), (1, 2), (1, 1)]
    assert "3 of 10 rows have no choice" in caplog.text
    assert "3 pairs of images have several answers, 2 of them contradicting ones" in caplog.text


def test_a_column_map_and_labels(tmp_path: Path) -> None:
    rows = [{"q": row["prompt"], "x": row["a"], "y": row["b"], "best": -1} for row in named("a", "b")]
    path = write(with_images(tmp_path / "own") / "pairs.csv", rows)
    columns = {"prompt": "q", "first": "x", "second": "y", "label": "best"}
    assert [r.ranks for r in everything(path, columns=columns, labels={"first": 1, "second": -1})] == [(2, 1)] * COUNT
    with pytest.raises(ValueError, match=r"pairs.csv: the labels -1 are ambiguous; say what they mean with labels="):
        everything(path, columns=columns)
    with pytest.raises(
        ValueError, match=r"pairs.csv, line 1: columns: no column for label=worst; found the columns q, x, y"
    ):
        everything(path, columns=columns | {"label": "worst"})
    images = [{"q": "p", "file": name(0, side), "place": side + 1} for side in (0, 1)]
    ranked = everything(write(path, images), columns={"prompt": "q", "image": "file", "rank": "place"})
    assert [(r.prompt, r.ranks) for r in ranked] == [("p", (1, 2))]


def test_a_column_map_is_checked_and_wins_in_all_formats(tmp_path: Path) -> None:
    folder = with_images(tmp_path / "own")
    rows = [{"prompt": "p", "image": "gone.png", "file": name(0, s), "rank": 9, "place": s + 1} for s in (0, 1)]
    path = write(folder / "a.csv", rows)
    assert [r.ranks for r in everything(path, columns={"image": "file", "rank": "place"})] == [(1, 2)]
    with pytest.raises(ValueError, match="columns: no column for rank=plaice; found the columns prompt, image, file"):
        everything(path, columns={"rank": "plaice"})
    with pytest.raises(ValueError, match="columns: unknown role label; expected some of prompt, image, rank"):
        everything(path, columns={"label": "place"})
    path = lists(folder)
    asked = [json.loads(path.read_text())[n] | {"asked": f"other {n}"} for n in range(COUNT)]
    path.write_text(json.dumps(asked))
    assert {r.prompt for r in everything(path, columns={"prompt": "asked"})} == {f"other {n}" for n in range(COUNT)}
    with pytest.raises(ValueError, match="columns: no column for prompt=q; found the columns"):
        everything(path, columns={"prompt": "q"})
    with pytest.raises(ValueError, match="folders of images have no columns; leave columns out"):
        everything(folders(tmp_path / "pairs"), columns={"prompt": "q"})


def test_a_number_of_votes_is_no_choice_and_lists_may_be_texts(tmp_path: Path) -> None:
    folder = with_images(tmp_path / "own")
    counted = write(folder / "a.csv", named("image1", "image2", {"label": "b", "votes": 7}))
    assert [r.ranks for r in everything(counted)] == [(2, 1)] * COUNT
    for path in ("b.csv", "b.jsonl"):
        listed = write(folder / path, named("image1", "image2", {"votes": "[1, 3]"}))
        rankings = everything(listed)
        assert [(r.ranks, [j.share for j in r.judgements()]) for r in rankings] == [((2, 1), [0.75])] * COUNT
    with pytest.raises(ValueError, match="no column says which image is preferred; found the columns prompt, image1"):
        everything(write(folder / "c.csv", named("image1", "image2", {"votes": 7})))
    with pytest.raises(ValueError, match="votes must be a list of two numbers of votes"):
        everything(counted, columns={"votes": "votes"})


@pytest.mark.parametrize("split", ["val", "valid", "validation", "Val"])
def test_splits_have_several_names(tmp_path: Path, split: str) -> None:
    folder = with_images(tmp_path / "column")
    write(folder / "pairs.csv", named("chosen", "rejected", {"split": split}))
    table = with_images(tmp_path / "table")
    write(table / f"{split}.csv", named("chosen", "rejected"))
    for source in (folder, table, folders(tmp_path / "folders" / split).parent):
        assert len(OwnRankings(source).rankings("validation")) == COUNT
        assert not OwnRankings(source).available("train")


def test_splits_of_files(tmp_path: Path) -> None:
    def files(*names: str) -> dict[str | None, list[str]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for each in names:
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).touch()
        return {split: [path.name for path in paths] for split, paths in split_files(folder).items()}

    assert files("train.csv", "hard.json") == {"train": ["train.csv"], "hard": ["hard.json"]}
    assert files("any.csv", "readme.md") == {None: ["any.csv"]}
    assert files("data/train-0-of-2.parquet", "data/train-1-of-2.parquet") == {
        None: ["train-0-of-2.parquet", "train-1-of-2.parquet"]
    }
    assert files("train-0.tar", "val-0.tar") == {"train": ["train-0.tar"], "validation": ["val-0.tar"]}
    assert files("train/0.tar", "test/0.tar") == {"test": ["0.tar"], "train": ["0.tar"]}
    assert files("readme.md") == {}
    with pytest.raises(ValueError, match=r"several tables \(a.csv, b.csv\); give one of them as source"):
        files("a.csv", "b.csv")


def test_a_split_column_assigns_pairs(tmp_path: Path) -> None:
    rows = named("chosen", "rejected", {"split": "train"}, {"split": "test"})
    dataset = OwnRankings(write(with_images(tmp_path / "own") / "pairs.csv", rows))
    assert [len(dataset.rankings(split)) for split in ("train", "test")] == [2, 1]
    assert not dataset.available("validation")


def test_numbers_mean_the_same_in_all_splits(tmp_path: Path) -> None:
    folder = with_images(tmp_path / "own")
    write(folder / "test.csv", named("image_a", "image_b", {"label": 1}))
    with pytest.raises(ValueError, match=r"the labels 1 are ambiguous; say what they mean with labels=\{first"):
        OwnRankings(folder).rankings("test")
    (folder / "notes.csv").write_text("nothing\n1\n")
    for labels, ranks in (((0, 1), (2, 1)), ((1, 2), (1, 2))):
        write(folder / "train.csv", named("image_a", "image_b", *({"label": each} for each in labels)))
        assert [r.ranks for r in OwnRankings(folder).rankings("test")] == [ranks] * COUNT


def test_bad_pairs_are_listed_or_skipped(tmp_path: Path) -> None:
    rows = named("image_a", "image_b", {"label": "a"}, {"label": "maybe"})
    rows.append({"prompt": "x", "image_a": "0.png", "image_b": "1.png", "label": "b"})
    path = write(with_images(tmp_path / "own") / "pairs.jsonl", rows)
    with pytest.raises(ValueError, match="3 errors in 2 of 4 pairs") as raised:
        everything(path)
    assert "line 2: unknown label 'maybe'; expected a, b, left, right, image_a, image_b, tie" in str(raised.value)
    assert len(everything(path, on_error="skip")) == 2


def several_votes(root: Path) -> Path:
    return write(root / "p.csv", named("image_a", "image_b", {"votes_a": 3, "votes_b": 1}))


def several_annotators(root: Path) -> Path:
    votes = (("a", "ada"), ("tie", "bob"), ("b", "eve"), ("a", "kim"))
    answers = [{"label": label, "annotator": who} for label, who in votes]
    return write(root / "p.jsonl", [row for each in answers for row in named("image_a", "image_b", each)])


TRAINED = {name: make for name, (make, _) in FORMATS.items()} | {
    "several votes": several_votes,
    "several annotators": several_annotators,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_a_reward_is_trained_on_it(tmp_path: Path, kind: str) -> None:
    source = TRAINED[kind](with_images(tmp_path / "own"))
    dataset = OwnRankings(source, shares={"train": 0.4, "validation": 0.3, "test": 0.3}, seed=seed_for_all_splits())
    summary = two_steps(dataset, tmp_path)
    assert summary["data"]["position"] == 2
    assert (tmp_path / "run/export/reward.safetensors").is_file()


def seed_for_all_splits() -> int:
    """A seed with which every split has one of the prompts."""
    from t2ifb.data.prompts import hash_fraction

    return next(
        seed
        for seed in range(1000)
        if sorted(sum(hash_fraction(f"prompt {n}", seed) >= border for border in (0.4, 0.7)) for n in range(COUNT))
        == [0, 1, 2]
    )
