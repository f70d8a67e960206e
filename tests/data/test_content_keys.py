"""Images and prompts are known by their content, which is read once."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.data import content_keys
from t2ifb.data.content_keys import ImageKeys, prompt_key
from t2ifb.data.datasets.pickapic import PickAPic
from t2ifb.data.storage.archives import ParquetImage
from t2ifb.utils.fingerprints import KEY_BYTES
from tests.data.datasets.test_pickapic import row, write_set, write_shard
from tests.data.parts import picture


class InMemory:
    """An image without an identity."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.opened = image, 0

    def open(self) -> Image.Image:
        self.opened += 1
        return self.image


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


def test_a_prompt_is_known_by_its_bytes() -> None:
    assert prompt_key("a caf\u00e9") == hashlib.sha256("a caf\u00e9".encode()).digest()
    assert prompt_key("a cat") != prompt_key("a Cat")
    assert len(prompt_key("\ud800")) == KEY_BYTES  # half a letter, as a broken file may hold


def test_equal_files_have_equal_keys_wherever_they_are(tmp_path: Path, images: list[Path]) -> None:
    (tmp_path / "copy.png").write_bytes(images[0].read_bytes())
    keys = ImageKeys(tmp_path / "keys.npy")([*images, tmp_path / "copy.png"])
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert keys[3] == keys[0]
    assert len(set(keys)) == 3


def test_a_file_is_read_again_when_its_time_or_size_changed(tmp_path: Path, images: list[Path]) -> None:
    before = ImageKeys(tmp_path / "keys.npy")(images)
    status = images[0].stat()
    images[0].write_bytes(bytes(status.st_size))
    os.utime(images[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert ImageKeys(tmp_path / "keys.npy")(images) == before  # nothing shows that it changed
    os.utime(images[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = ImageKeys(tmp_path / "keys.npy")(images)
    assert after[0] != before[0] and after[1:] == before[1:]


def test_an_image_without_identity_is_read_every_time(tmp_path: Path) -> None:
    image, keys = InMemory(picture(0)), ImageKeys(tmp_path / "keys.npy")
    assert keys([image]) == keys([InMemory(picture(0))]) == keys([image])
    assert image.opened == 2
    assert not keys.table.path.exists()


def test_keys_of_several_jobs_are_kept_together(tmp_path: Path, images: list[Path]) -> None:
    one, other = ImageKeys(tmp_path / "keys.npy"), ImageKeys(tmp_path / "keys.npy")
    keys = [*one(images[:2]), *other(images[2:])]
    assert len(np.load(tmp_path / "keys.npy")) == 3
    assert ImageKeys(tmp_path / "keys.npy")(images) == keys


@pytest.mark.parametrize("content", [b"", b"no table", b"\x93NUMPY"])
def test_a_broken_table_is_made_anew(tmp_path: Path, images: list[Path], content: bytes) -> None:
    keys = ImageKeys(tmp_path / "keys.npy")(images)
    (tmp_path / "keys.npy").write_bytes(content)
    assert ImageKeys(tmp_path / "keys.npy")(images) == keys
    assert len(np.load(tmp_path / "keys.npy")) == 3


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the image .*nowhere\.png"):
        ImageKeys(tmp_path / "keys.npy")([tmp_path / "nowhere.png"])


def test_keys_are_remembered_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path / "pickapic")
    (ranking, *_) = PickAPic(folder).rankings("test")
    keys = ImageKeys(folder / "keys.npy")(ranking.images)
    assert len(set(keys)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(ParquetImage, "read", lambda _: pytest.fail("read again"))
        assert ImageKeys(folder / "keys.npy")(ranking.images) == keys
    shard = next((folder / "data").glob("test-*"))
    write_shard(folder, shard.name, [row(90), row(91)])
    assert ImageKeys(folder / "keys.npy")(ranking.images) != keys


def test_keys_of_older_decoding_are_not_used(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for version in (1, 2, 2):
        monkeypatch.setattr(content_keys, "DECODING", version)
        found.append(ImageKeys(tmp_path / "keys.npy")(images))
    assert not set(found[0]) & set(found[1])
    assert found[1] == found[2]
