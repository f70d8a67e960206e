"""Images in archives are read in place, and nothing in an archive leaves its folder."""

import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from t2ifb.data.errors import BadRecord
from t2ifb.data.storage import archives
from t2ifb.data.storage.archives import ArchiveImage, ParquetImage, archive_members, leaves_folder, unpack_once
from tests.data.datasets.test_hpdv2 import write_set, write_tar
from tests.data.datasets.test_pickapic import row, write_shard
from tests.data.parts import encoded_picture, picture


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../x.webp", "/x.webp", "a/../../x.webp", "..\\x.webp", "C:\\x.webp"])
def test_members_that_leave_the_folder_are_never_read(tmp_path: Path, name: str) -> None:
    assert leaves_folder(name)
    write_zip(tmp_path / "images.zip", {name: b"content"})
    with pytest.raises(ValueError, match="points outside the archive's folder"):
        ArchiveImage(tmp_path / "images.zip", name).read()


@pytest.mark.parametrize("name", ["x.webp", "a/b/x.webp", "a/..x", "x..webp", "a b/c.png"])
def test_other_names_stay_in_the_folder(name: str) -> None:
    assert not leaves_folder(name)


def test_an_image_in_a_zip_archive_is_read_in_place(tmp_path: Path) -> None:
    members = {"a.png": encoded_picture(0, "PNG"), "folder/b.png": encoded_picture(1, "PNG"), "folder/": b""}
    path = write_zip(tmp_path / "images.zip", members)
    assert archive_members(path) == {name: len(members[name]) for name in ("a.png", "folder/b.png")}
    for number, name in enumerate(("a.png", "folder/b.png")):
        image = ArchiveImage(path, name)
        assert image.read() == members[name]
        np.testing.assert_array_equal(np.asarray(image.open()), np.asarray(picture(number)))
    with pytest.raises(KeyError):
        ArchiveImage(path, "c.png").read()


def test_the_identity_of_an_archived_image_follows_its_content(tmp_path: Path) -> None:
    image = ArchiveImage(tmp_path / "images.zip", "a.png")
    found = []
    for content in (b"one", b"two", b"one", b"three"):
        write_zip(image.archive, {"a.png": content})
        found.append(image.identity())
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "images.zip", {"a.png": encoded_picture(0, "PNG"), "b.png": encoded_picture(1, "PNG")})
    content = path.read_bytes()
    path.write_bytes(content.replace(encoded_picture(1, "PNG")[20:60], bytes(40)))
    assert ArchiveImage(path, "a.png").read() == encoded_picture(0, "PNG")
    with pytest.raises(ValueError, match=r"images.zip!b.png is damaged"):
        ArchiveImage(path, "b.png").read()
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"images.zip is not a whole zip archive"):
        ArchiveImage(path, "a.png").read()


def test_few_archives_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "OPEN_ARCHIVES", 2)
    pool = archives._Pool()
    paths = [write_zip(tmp_path / f"{number}.zip", {"a": bytes([number])}) for number in range(5)]
    for path in [*paths, *paths]:
        assert pool.get(path).read("a") == bytes([int(path.stem)])
        assert len(pool._open) <= 2


def test_jobs_that_come_at_once_unpack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path / "hpd")
    killed = folder / "unpacked" / ".images.abcdef.tmp"  # left behind by a job that was killed
    killed.mkdir(parents=True)
    started: list[Path] = []
    original = archives._extract

    def slow(archive: Path, place: Path) -> list[BadRecord]:
        started.append(place)
        time.sleep(0.2)
        assert not (folder / "unpacked" / "images").exists()
        return original(archive, place)

    monkeypatch.setattr(archives, "_extract", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: unpack_once(folder / "test.tar.gz", folder / "unpacked" / "images"), range(3)))
    assert len(started) == 1
    assert len(list((folder / "unpacked" / "images" / "test").iterdir())) == 9
    assert not killed.exists()


def test_an_archive_that_changed_replaces_what_was_unpacked(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.tar.gz", tmp_path / "unpacked"
    write_tar(archive, {"one.txt": b"1", "deep/two.txt": b"2"})
    assert unpack_once(archive, folder) == []
    assert (folder / "deep" / "two.txt").read_bytes() == b"2"
    write_tar(archive, {"three.txt": b"three"})
    assert unpack_once(archive, folder) == []
    assert sorted(path.name for path in folder.rglob("*")) == [archives.RECORD, "three.txt"]


def test_members_that_are_no_files_are_refused_now_and_when_asked_again(tmp_path: Path) -> None:
    link, device = tarfile.TarInfo("link"), tarfile.TarInfo("device")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc", tarfile.CHRTYPE
    write_tar(tmp_path / "a.tar.gz", {"good.txt": b"good", "../evil.txt": b"evil"}, [link, device])
    first, again = (unpack_once(tmp_path / "a.tar.gz", tmp_path / "folder") for _ in range(2))
    assert first == again
    assert {error.what.split("'")[1] for error in first} == {"../evil.txt", "link", "device"}
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [archives.RECORD, "good.txt"]
    assert not (tmp_path / "evil.txt").exists()


def test_few_row_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "KEPT_BYTES", 1)
    groups = archives._RowGroups()
    shard = write_shard(tmp_path, "train-00000-of-00001.parquet", [row(n) for n in range(6)])
    for group in (0, 1, 2):
        groups.get(shard, group, "jpg_0")
    assert len(groups._kept) == 2


def test_an_image_in_a_parquet_cell_is_read_in_place(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "test.parquet", [row(0), row(1), row(2, jpg_0=None), row(3, jpg_1=b"")])
    image = ParquetImage(shard, 0, 1, "jpg_1")
    assert image.read() == encoded_picture(3)
    assert image.open().size == picture(3).size
    assert str(image) == f"{shard}!row group 0, row 1, jpg_1"
    with pytest.raises(ValueError, match="the cell contains no image"):
        ParquetImage(shard, 1, 0, "jpg_0").read()
    with pytest.raises(ValueError, match="empty"):
        ParquetImage(shard, 1, 1, "jpg_1").read()
    places = [(0, 0, "jpg_0"), (0, 0, "jpg_1"), (0, 1, "jpg_0"), (1, 0, "jpg_0")]
    assert len({ParquetImage(shard, *place).identity() for place in places}) == 4
