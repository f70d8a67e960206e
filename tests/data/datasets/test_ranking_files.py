"""Rankings in JSON files, one for each split."""

from pathlib import Path

import pytest
from PIL import Image

from t2ifb.data.datasets.ranking_files import RankingFiles
from tests.data.parts import picture
from tests.data.test_rankings import entry, write


def test_ranking_files_are_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        picture(0).save(tmp_path / name)
    files = RankingFiles({"test": write(tmp_path / "test.json", [entry(0)])})
    assert files.available("test")
    assert not files.available("train")
    assert len(files.rankings("test")) == 1
    with monkeypatch.context() as patch:  # what was decoded once is known
        patch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
        assert len(files.rankings("test")) == 1
    with pytest.raises(ValueError, match="no split 'train'; the splits are test"):
        files.rankings("train")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="missing"):
        files.rankings("test")


def test_bad_rankings_are_dropped_and_listed_by_split(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(0).save(tmp_path / name)
    for split, entries in (("train", [entry(0), entry(1, prompt=" ")]), ("test", [entry(2)])):
        write(tmp_path / f"{split}.json", entries)
    (tmp_path / "b.png").write_bytes(b"no image")
    picture(1).save(tmp_path / "c.png")
    write(tmp_path / "test.json", [entry(2), entry(3, generations=["a.png", "c.png"])])
    files = RankingFiles({"train": tmp_path / "train.json", "test": str(tmp_path / "test.json")}, on_error="skip")
    assert [ranking.prompt_id for ranking in files.rankings("test")] == ["id-3"]
    assert files.rankings("train") == []
    assert {split: len(errors) for split, errors in files.errors.items()} == {"train": 1, "test": 1}
    with pytest.raises(ValueError, match="cannot be decoded"):
        RankingFiles({"test": tmp_path / "test.json"}).rankings("test")


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        picture(0).save(tmp_path / "images" / name)
    file = write(tmp_path / "test.json", [entry(0)])
    assert len(RankingFiles({"test": file}, tmp_path / "images").rankings("test")) == 1
    with pytest.raises(ValueError, match="missing"):
        RankingFiles({"test": file}).rankings("test")
