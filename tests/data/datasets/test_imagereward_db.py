import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from t2ifb.data.datasets.imagereward_db import ImageRewardDB, Record, write_imagereward_db
from t2ifb.data.rankings import open_image
from tests.data.parts import picture

RANKS = {"id-0": (1, 2, 2, 3), "id-1": (2, 1), "id-2": (1, 2, 3), "id-3": (1, 1)}


def records() -> list[Record]:
    return [
        Record(prompt_id, f"prompt of {prompt_id}", "People", picture(100 * row + i), rank, 7 - i, 6, 5)
        for row, (prompt_id, ranks) in enumerate(RANKS.items())
        for i, rank in enumerate(ranks)
    ]


def rewrite(archive: Path, changes: dict[str, bytes | None]) -> None:
    """Change, add or (None) remove members of an archive."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()} | changes
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_imagereward_db(tmp_path / "db", "train", records(), images_per_archive=5)
    return tmp_path / "db"


def first_images(folder: Path, number: int) -> list[str]:
    """Member names of the images of `train_<number>.zip`."""
    with zipfile.ZipFile(folder / f"images/train/train_{number}.zip") as archive:
        return [name for name in archive.namelist() if name.endswith(".webp")]


def test_what_is_written_is_read_back(folder: Path) -> None:
    rankings = ImageRewardDB(folder).rankings("train")
    assert {r.prompt_id: r.ranks for r in rankings} == RANKS
    assert [r.prompt for r in rankings] == [f"prompt of {prompt_id}" for prompt_id in RANKS]
    images = [image for r in rankings for image in r.images]
    for image, record in zip(images, records(), strict=True):
        np.testing.assert_array_equal(np.array(open_image(image)), np.array(record.image))


def test_an_extracted_archive_is_read_too(folder: Path) -> None:
    expected = ImageRewardDB(folder).rankings("train")
    archive = folder / "images/train/train_1.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(archive.with_suffix(""))
    archive.unlink()
    rankings = ImageRewardDB(folder).rankings("train")
    assert [r.ranks for r in rankings] == [r.ranks for r in expected]
    assert isinstance(rankings[0].images[0], Path)


def test_any_split_with_metadata_is_available(folder: Path) -> None:
    write_imagereward_db(folder, "compositional", records(), images_per_archive=100)
    database = ImageRewardDB(str(folder))
    assert database.available("compositional")
    assert not database.available("test")
    (folder / "images/train/train_2.zip").unlink()
    assert not database.available("train")
    with pytest.raises(ValueError, match=r"'train' is missing.*prepare"):
        database.rankings("train")
    with pytest.raises(ValueError, match=r"lacks images/train/train_2.zip"):
        database.download(["train"])


def test_a_subset_is_the_first_archives(tmp_path: Path) -> None:
    write_imagereward_db(tmp_path, "train", many(6), images_per_archive=2)
    assert len(ImageRewardDB(tmp_path, subset="8k").rankings("train")) == 6
    for number in (5, 6):
        (tmp_path / f"images/train/train_{number}.zip").unlink()
    assert [r.prompt_id for r in ImageRewardDB(tmp_path, subset="1k").rankings("train")] == list("0123")
    with pytest.raises(ValueError, match="no subset '3k'"):
        ImageRewardDB(tmp_path, subset="3k")


def many(count: int) -> list[Record]:
    return [Record(str(n), "a cat", "x", picture(10 * n + i), i + 1, 7, 7, 7) for n in range(count) for i in range(2)]


def test_the_same_prompt_under_two_ids_is_two_rankings(tmp_path: Path) -> None:
    write_imagereward_db(tmp_path, "test", many(2))
    assert [r.prompt for r in ImageRewardDB(tmp_path).rankings("test")] == ["a cat", "a cat"]


def test_known_errors_in_the_wild_are_listed_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty, missing, *_ = first_images(folder, 1)
    undecodable = first_images(folder, 2)[0]
    rewrite(folder / "images/train/train_1.zip", {empty: b"", missing: None, "../../evil.webp": b"x"})
    rewrite(folder / "images/train/train_2.zip", {undecodable: b"RIFF no image"})
    with pytest.raises(ValueError, match="4 errors in 2 of 4 rankings") as raised:
        ImageRewardDB(folder).rankings("train")
    for what in (
        f"ranking id-0: image images/train/train_1/{empty} is empty (0 bytes)",
        f"ranking id-0: image images/train/train_1/{missing} is missing from its archive",
        "train_1.zip: member '../../evil.webp' leaves the folder",
        f"(id id-2), image 0: image {folder}/images/train/train_2.zip!{undecodable} cannot be decoded",
    ):
        assert what in str(raised.value)
    database = ImageRewardDB(folder, on_error="skip")
    assert [r.prompt_id for r in database.rankings("train")] == ["id-1", "id-3"]
    assert "dropped 2 of 4 rankings" in caplog.text
    assert len(database.errors["train"]) == 4


def test_decoding_is_done_once_while_the_archives_stay(folder: Path) -> None:
    ImageRewardDB(folder).rankings("train")
    (memory,) = (folder / ".checked").iterdir()
    written = memory.stat().st_mtime_ns
    ImageRewardDB(folder).rankings("train")
    assert memory.stat().st_mtime_ns == written
    rewrite(folder / "images/train/train_2.zip", {first_images(folder, 2)[0]: b"RIFF no image"})
    with pytest.raises(ValueError, match="cannot be decoded"):
        ImageRewardDB(folder).rankings("train")


def test_a_repaired_image_of_an_extracted_archive_is_checked_again(folder: Path) -> None:
    archive = folder / "images/train/train_1.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(archive.with_suffix(""))
    archive.unlink()
    image = ImageRewardDB(folder).rankings("train")[0].images[0]
    assert isinstance(image, Path)
    good = image.read_bytes()
    image.write_bytes(b"RIFF no image")
    with pytest.raises(ValueError, match="cannot be decoded"):
        ImageRewardDB(folder).rankings("train")
    image.write_bytes(good)
    assert ImageRewardDB(folder).rankings("train")


def test_paths_in_the_metadata_cannot_leave_the_folder_either(folder: Path) -> None:
    table = pq.read_table(folder / "metadata-train.parquet")
    paths = table["image_path"].to_pylist()
    paths[0] = "images/train/train_1/../../../../secret.png"
    pq.write_table(table.set_column(0, "image_path", [paths]), folder / "metadata-train.parquet")
    picture(0).save(folder.parent / "secret.png")
    with pytest.raises(ValueError, match="points outside the data set's folder"):
        ImageRewardDB(folder).rankings("train")


def test_broken_files_are_named(folder: Path) -> None:
    archive = folder / "images/train/train_1.zip"
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"train_1.zip is not a whole zip archive"):
        ImageRewardDB(folder).rankings("train")
    (folder / "metadata-train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"metadata-train.parquet is not a parquet file"):
        ImageRewardDB(folder).available("train")


def test_a_hub_data_set_that_was_not_downloaded_says_what_to_do(tmp_path: Path) -> None:
    database = ImageRewardDB("zai-org/ImageRewardDB", cache_folder=tmp_path)
    assert not database.available("test")
    with pytest.raises(ValueError, match=r"zai-org/ImageRewardDB is not on this machine.*t2ifb.prepare"):
        database.rankings("test")
    with pytest.raises(ValueError, match="Could not download"):
        database.download(["test"])
