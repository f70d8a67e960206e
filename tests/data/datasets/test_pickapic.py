from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t2ifb.data.datasets.pickapic import PickAPic
from t2ifb.data.rankings import open_image, read_bytes
from t2ifb.data.storage import archives
from tests.data.parts import encoded_picture, two_steps


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row as in the real shards; the first image is preferred."""
    return {
        "are_different": True,
        "best_image_uid": f"uid-{2 * number}",
        "caption": f"prompt {number}",
        "created_at": None,
        "has_label": True,
        "image_0_uid": f"uid-{2 * number}",
        "image_1_uid": f"uid-{2 * number + 1}",
        "jpg_0": encoded_picture(2 * number),
        "jpg_1": encoded_picture(2 * number + 1),
        "label_0": 1.0,
        "label_1": 0.0,
        "model_0": "a",
        "model_1": "b",
        "ranking_id": number,
        "user_id": 7,
    } | changes


def write_shard(folder: Path, name: str, rows: list[dict[str, Any]], rows_per_group: int = 2) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = pa.Table.from_pylist([row(0)]).schema
    path = folder / "data" / name
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=rows_per_group)
    return path


def write_set(folder: Path) -> Path:
    """Shards of the splits, named as in the real set."""
    write_shard(folder, "train-00000-of-00002-0123456789abcdef.parquet", [row(n) for n in range(5)])
    changed = [
        row(5, label_0=0.0, label_1=1.0),
        row(6, label_0=0.5, label_1=0.5),
        row(7, has_label=False, label_0=-1.0),
    ]
    write_shard(folder, "train-00001-of-00002-fedcba9876543210.parquet", changed)
    for split, start in (("validation", 10), ("validation_unique", 20), ("test", 30)):
        write_shard(folder, f"{split}-00000-of-00001-0123456789abcdef.parquet", [row(start), row(start + 1)])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "pickapic")


def test_labels_become_ranks_and_unlabelled_rows_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = PickAPic(folder)
    rankings = dataset.rankings("train")
    assert [r.prompt for r in rankings] == [f"prompt {n}" for n in range(7)]
    assert [r.ranks for r in rankings] == [(1, 2)] * 5 + [(2, 1), (1, 1)]
    assert [r.comparisons() for r in rankings[4:]] == [[(0, 1)], [(1, 0)], []]
    assert len({r.prompt_id for r in rankings}) == 7
    assert dataset.unlabelled == {"train": 1}
    assert dataset.errors == {"train": []}
    assert "1 of 8 rows have no label" in caplog.text


def test_images_are_those_of_their_rows(folder: Path) -> None:
    for number, ranking in enumerate(PickAPic(folder).rankings("train")):
        assert [read_bytes(image) for image in ranking.images] == [
            encoded_picture(2 * number),
            encoded_picture(2 * number + 1),
        ]
        assert open_image(ranking.images[0]).size == (8, 8)


def test_listing_does_not_read_the_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PickAPic(folder).rankings("train")
    read: list[str] = []
    original = pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, *arguments: Any, columns: list[str], **more: Any) -> pa.Table:
        read.extend(columns)
        return original(self, *arguments, columns=columns, **more)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    monkeypatch.setattr(archives, "_row_groups", archives._RowGroups())
    (ranking, *_) = PickAPic(folder).rankings("train")  # its images were checked above, once and for all
    assert not set(read) & {"jpg_0", "jpg_1"}
    read.clear()
    read_bytes(ranking.images[1])
    assert read == ["jpg_1"]


def test_only_so_many_shards_are_read(folder: Path) -> None:
    assert len(PickAPic(folder, max_shards=1).rankings("train")) == 5
    next((folder / "data").glob("train-00001*")).unlink()
    assert len(PickAPic(folder, max_shards=1).rankings("train")) == 5
    assert not PickAPic(folder).available("train")
    with pytest.raises(ValueError, match=r"'train' is missing.*lacks shards .all expected"):
        PickAPic(folder).rankings("train")
    with pytest.raises(ValueError, match="at least 1, or null for all, not 0"):
        PickAPic(folder, max_shards=0)


def test_splits_whose_names_begin_alike_are_apart(folder: Path) -> None:
    dataset = PickAPic(folder)
    assert [r.prompt for r in dataset.rankings("validation")] == ["prompt 10", "prompt 11"]
    assert [r.prompt for r in dataset.rankings("validation_unique")] == ["prompt 20", "prompt 21"]
    assert not dataset.available("valid")
    with pytest.raises(ValueError, match=r"has no data/valid-\*\.parquet"):
        dataset.download(["valid"])


ERRORY = {
    0: ({"caption": " "}, "empty prompt"),
    1: ({"label_0": 1.0, "label_1": 1.0}, "labels must be 1 and 0, 0 and 1, or 0.5 twice, found 1.0 and 1.0"),
    2: ({"image_1_uid": "uid-4"}, "the same image twice (uid-4)"),
    3: ({"jpg_0": None}, "the cell contains no image"),
    4: ({"jpg_1": b""}, "empty (0 bytes)"),
    5: ({"jpg_1": encoded_picture(1)[:100]}, "cannot be decoded"),
    6: ({"label_0": None}, "found None and 0.0"),
}


def test_every_error_is_listed_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(number, **changes) for number, (changes, _) in ERRORY.items()]
    shard = write_shard(tmp_path, "train-00000-of-00001-0123456789abcdef.parquet", [*rows, row(7)])
    with pytest.raises(ValueError, match="7 errors in 7 of 8 rankings") as raised:
        PickAPic(tmp_path).rankings("train")
    for number, (_, what) in ERRORY.items():
        places = (f"{shard}, row {number}:", f"{shard.stem}/{number})", f"row group {number // 2}, row {number % 2}, ")
        lines = [line for line in str(raised.value).splitlines() if any(place in line for place in places)]
        assert any(what in line for line in lines), (number, what)
    dataset = PickAPic(tmp_path, on_error="skip")
    assert [r.prompt for r in dataset.rankings("train")] == ["prompt 7"]
    assert len(dataset.errors["train"]) == 7
    assert "dropped 7 of 8 rankings" in caplog.text


def test_broken_shards_are_named(folder: Path) -> None:
    shard = next((folder / "data").glob("test-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{shard.name} is not a complete parquet file"):
        PickAPic(folder).rankings("test")
    pq.write_table(pa.table({"caption": ["a"], "jpg_0": [b""]}), shard)
    with pytest.raises(ValueError, match="has no column label_0, label_1, image_0_uid"):
        PickAPic(folder).rankings("test")


def test_a_reward_model_trains_on_it(folder: Path, tmp_path: Path) -> None:
    summary = two_steps(PickAPic(folder), tmp_path)
    assert summary["data"]["position"] == 2
    assert summary["data"]["comparisons"] == 6
    assert summary["test/comparisons"] == 2
