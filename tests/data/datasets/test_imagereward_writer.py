"""Preference data in ImageRewardDB's own layout, byte for byte the same each time."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from tests.data.datasets.test_imagereward_db import RANKS, many, records
from tests.data.parts import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_imagereward_db(tmp_path / "db", "train", records(), images_per_archive=5)
    return tmp_path / "db"


def test_the_layout_is_imagerewarddbs_own(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["images/train/train_1.zip", "images/train/train_2.zip", "metadata-train.parquet"]
    rows = pq.read_table(folder / "metadata-train.parquet").to_pylist()
    assert list(rows[0]) == [
        "image_path",
        "prompt_id",
        "prompt",
        "classification",
        "image_amount_in_total",
        "rank",
        "overall_rating",
        "image_text_alignment_rating",
        "fidelity_rating",
    ]
    assert rows[0]["image_path"].startswith("images/train/train_1/")
    assert rows[0]["image_amount_in_total"] == 4
    with zipfile.ZipFile(folder / "images/train/train_2.zip") as archive:
        assert all("/" not in name for name in archive.namelist())
        in_archive = json.loads(archive.read("train_2.json"))
    assert in_archive == [row for row in rows if "/train_2/" in row["image_path"]]


def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_imagereward_db(tmp_path / "again", "train", records(), images_per_archive=5)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_scattered_or_no_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be consecutive"):
        write_imagereward_db(tmp_path, "test", [*records(), records()[0]])
    with pytest.raises(ValueError, match="no records"):
        write_imagereward_db(tmp_path, "test", [])


def test_images_are_kept_without_loss(folder: Path) -> None:
    rows = pq.read_table(folder / "metadata-train.parquet").to_pylist()
    assert [row["rank"] for row in rows] == [rank for ranks in RANKS.values() for rank in ranks]
    for row, record in zip(rows, records(), strict=True):
        archive, _, member = row["image_path"].rpartition("/")
        with zipfile.ZipFile(folder / f"{archive}.zip") as opened, opened.open(member) as file:
            np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(record.image))


@pytest.mark.parametrize(("images", "archives"), [(1, 5), (2, 5), (3, 3), (4, 3), (10, 1), (99, 1)])
def test_a_ranking_is_never_split_between_archives(tmp_path: Path, images: int, archives: int) -> None:
    write_imagereward_db(tmp_path, "test", many(5), images_per_archive=images)
    places = [row["image_path"].split("/")[2] for row in pq.read_table(tmp_path / "metadata-test.parquet").to_pylist()]
    assert places[::2] == places[1::2]
    assert sorted(set(places)) == [f"test_{number}" for number in range(1, archives + 1)]


def test_a_failure_leaves_the_metadata_of_before(folder: Path) -> None:
    before = (folder / "metadata-train.parquet").read_bytes()
    scattered = [*records(), records()[0]]
    with pytest.raises(ValueError, match="must be consecutive"):
        write_imagereward_db(folder, "train", scattered, images_per_archive=5)
    assert (folder / "metadata-train.parquet").read_bytes() == before


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = picture(0).convert("RGBA")
    image.putalpha(0)
    write_imagereward_db(tmp_path, "test", [Record("a", "a cat", "x", image, 1, 7, 7, 7)])
    with zipfile.ZipFile(tmp_path / "images/test/test_1.zip") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".webp")]
        with archive.open(name) as file:
            assert (np.asarray(Image.open(file)) == 255).all()
