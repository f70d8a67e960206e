import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.data.datasets.hpdv2 import HPDv2
from t2ifb.data.prompts import hash_fraction
from t2ifb.data.rankings import read_bytes
from t2ifb.data.storage import archives
from tests.data.parts import encoded_picture, two_steps

PROMPTS = [f"prompt {n}" for n in range(40)]
SHARE = 0.25


def choice(number: int, **changes: Any) -> dict[str, Any]:
    """An entry of `train.json`; two of them share each prompt."""
    return {
        "human_preference": [1, 0] if number % 3 else [0, 1],
        "prompt": PROMPTS[number % 40],
        "file_path": [f"{number % 20:08d}.jpg", f"{number % 20 + 20:08d}.jpg"],
        "user_hash": "0a1b",
    } | changes


def ranked(number: int, **changes: Any) -> dict[str, Any]:
    """An entry of `test.json`."""
    return {
        "prompt": f"test prompt {number}",
        "image_path": [f"{3 * number + i:08d}.jpg" for i in range(3)],
        "rank": [2, 3, 1],
        "raw_annotations": [{"rank": [2, 3, 1], "user_hash": "0a1b"}],
    } | changes


def write_tar(path: Path, members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra or []:
            archive.addfile(info)


def write_set(folder: Path, train: list[Any] | None = None, test: list[Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps([choice(n) for n in range(80)] if train is None else train))
    (folder / "test.json").write_text(json.dumps([ranked(n) for n in range(3)] if test is None else test))
    write_tar(folder / "train.tar.gz", {f"train/{n:08d}.jpg": encoded_picture(n) for n in range(40)})
    write_tar(folder / "test.tar.gz", {f"test/{n:08d}.jpg": encoded_picture(100 + n) for n in range(9)})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "hpd")


def test_choices_and_rankings_are_read(folder: Path) -> None:
    dataset = HPDv2(folder, SHARE)
    parts = {split: dataset.rankings(split) for split in ("train", "validation", "test")}
    numbers = sorted(int(r.prompt_id.removeprefix("train-")) for r in parts["train"] + parts["validation"])
    assert numbers == list(range(80))
    for ranking in parts["train"] + parts["validation"]:
        number = int(ranking.prompt_id.removeprefix("train-"))
        assert ranking.prompt == PROMPTS[number % 40]
        assert ranking.ranks == ((1, 2) if number % 3 else (2, 1))
        assert read_bytes(ranking.images[1]) == encoded_picture(number % 20 + 20)
    assert [r.comparisons() for r in parts["test"]] == [[(0, 1), (2, 0), (2, 1)]] * 3
    assert read_bytes(parts["test"][1].images[2]) == encoded_picture(105)


def test_no_prompt_is_in_training_and_validation(folder: Path) -> None:
    dataset = HPDv2(folder, SHARE)
    train, validation = ({r.prompt for r in dataset.rankings(split)} for split in ("train", "validation"))
    assert train | validation == set(PROMPTS)
    assert not train & validation
    assert validation == {prompt for prompt in PROMPTS if hash_fraction(prompt, 0) < SHARE}
    assert train and validation
    assert {r.prompt for r in HPDv2(folder, SHARE).rankings("validation")} == validation
    assert {r.prompt for r in HPDv2(folder, SHARE, seed=1).rankings("validation")} != validation
    assert not HPDv2(folder, 0.0).rankings("validation")
    with pytest.raises(ValueError, match="from 0 to below 1, not 1.0"):
        HPDv2(folder, 1.0)


@given(st.text(), st.integers(0, 9))
def test_spelling_does_not_move_a_prompt(prompt: str, seed: int) -> None:
    assert 0 <= hash_fraction(prompt, seed) < 1
    assert hash_fraction(f"  {prompt}\n", seed) == hash_fraction(prompt, seed)
    assert hash_fraction(prompt.casefold(), seed) == hash_fraction(prompt, seed)


def test_a_share_is_about_what_was_asked_for() -> None:
    within = sum(hash_fraction(f"prompt {n}", 0) < 0.1 for n in range(10_000))
    assert 850 < within < 1150


def test_ranks_may_start_at_zero_or_one(tmp_path: Path) -> None:
    write_set(tmp_path, test=[ranked(0, rank=[0, 2, 1]), ranked(1, rank=[1, 3, 2]), ranked(2, rank=[1, 1, 2])])
    assert [r.ranks for r in HPDv2(tmp_path).rankings("test")] == [(1, 3, 2), (1, 3, 2), (1, 1, 2)]


def test_archives_are_unpacked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HPDv2(folder).available("test")
    HPDv2(folder).rankings("test")
    assert not list(folder.rglob("*.tmp"))
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_extract", lambda *_: pytest.fail("unpacked again"))
        HPDv2(folder).rankings("test")
    write_tar(folder / "test.tar.gz", {f"test/{n:08d}.jpg": encoded_picture(200 + n) for n in range(9)})
    (ranking, *_) = HPDv2(folder).rankings("test")
    assert read_bytes(ranking.images[0]) == encoded_picture(200)


@pytest.mark.parametrize("prefix", ["", "./", "test/"])
def test_members_may_stand_in_a_folder_or_not(tmp_path: Path, prefix: str) -> None:
    write_set(tmp_path / "hpd")
    write_tar(tmp_path / "hpd/test.tar.gz", {f"{prefix}{n:08d}.jpg": encoded_picture(n) for n in range(9)})
    assert len(HPDv2(tmp_path / "hpd", cache_folder=tmp_path / "cache").rankings("test")) == 3
    assert sorted(path.name for path in (tmp_path / "hpd").iterdir() if path.is_dir()) == []


def test_folders_that_are_unpacked_already_are_read(folder: Path) -> None:
    for part in ("train", "test"):
        shutil.unpack_archive(folder / f"{part}.tar.gz", folder)
        (folder / f"{part}.tar.gz").unlink()
    dataset = HPDv2(folder)
    dataset.download(["train", "validation", "test"])
    assert dataset.rankings("test")[0].images[0] == folder / "test/00000000.jpg"
    assert not (folder / "unpacked").exists()


def test_what_tries_to_leave_the_folder_is_refused_and_reported(folder: Path, tmp_path: Path) -> None:
    link = tarfile.TarInfo("test/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../../../.."
    inside = {f"test/{n:08d}.jpg": encoded_picture(n) for n in range(9)}
    outside = {name: b"evil" for name in ("../../../evil", str(tmp_path / "evil"), "a/../../evil")}
    write_tar(folder / "test.tar.gz", {**outside, **inside}, [link])
    write_tar(folder / "train.tar.gz", {"train/link/evil": b"evil"})
    dataset = HPDv2(folder, on_error="skip")
    for _ in range(2):  # also when it is unpacked already
        assert len(dataset.rankings("test")) == 3
        whats = [error.what for error in dataset.errors["test"]]
        assert len(whats) == 4
        assert sum("leaves the folder" in what for what in whats) == 3
        assert sum("link or a device" in what for what in whats) == 1
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "link") or path.is_symlink()]
    with pytest.raises(ValueError, match="4 errors in 0 of 3 rankings"):
        HPDv2(folder).rankings("test")


@pytest.mark.parametrize("cut", [0.3, 0.9, 8])
def test_a_damaged_archive_leaves_nothing(folder: Path, cut: float) -> None:
    archive = folder / "test.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(cut * len(whole)) if cut < 1 else -8])
    with pytest.raises(ValueError, match=r"test.tar.gz is not a complete tar.gz archive .*download it again"):
        HPDv2(folder).rankings("test")
    assert not [path for path in folder.rglob("*") if path.suffix in (".jpg", ".tmp")]
    archive.write_bytes(b"no archive at all")
    with pytest.raises(ValueError, match="is not a complete tar.gz archive"):
        HPDv2(folder).rankings("test")


def test_too_little_space_is_said_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "free_bytes", lambda _: 10)
    with pytest.raises(ValueError, match="No space to unpack"):
        HPDv2(folder).rankings("test")


ERRORY = {
    0: (choice(0, prompt=""), "empty prompt"),
    1: (choice(1, human_preference=[1, 1]), "must be [1, 0] or [0, 1], found [1, 1]"),
    2: (choice(2, file_path=["00000000.jpg"]), "at least two images, this one has 1"),
    3: (choice(3, file_path=["../../secret.jpg", "00000001.jpg"]), "points outside the data set's folder"),
    4: (choice(4, file_path=["00000099.jpg", "00000001.jpg"]), "is missing"),
    5: (choice(5, file_path=["00000001.jpg"] * 2), "the same image twice"),
    6: ({"prompt": "a"}, "no key 'image_path'"),
    7: ("text", "expected an object"),
    8: (choice(8, human_preference=["1", "0"]), "`human_preference` must be a list of integers"),
}


def test_every_error_is_listed_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path, [*(entry for entry, _ in ERRORY.values()), choice(9)])
    with pytest.raises(ValueError, match="10 errors in 9 of 10 rankings") as raised:
        HPDv2(tmp_path, 0.0).rankings("train")
    for number, (_, what) in ERRORY.items():
        lines = str(raised.value).splitlines()
        here = [line for line in lines if f"entry {number}:" in line or f"(id train-{number})" in line]
        assert any(what in line for line in here), (number, what)
    dataset = HPDv2(tmp_path, 0.0, on_error="skip")
    assert [r.prompt_id for r in dataset.rankings("train")] == ["train-9"]
    assert "dropped 9 of 10 rankings" in caplog.text


def test_errors_of_the_test_split(tmp_path: Path) -> None:
    write_set(tmp_path, test=[ranked(0, rank=[1, 2]), ranked(1, rank=[-1, 1, 2]), ranked(2)])
    with pytest.raises(ValueError, match="2 errors in 2 of 3") as raised:
        HPDv2(tmp_path).rankings("test")
    assert "2 ranks for 3 images" in str(raised.value)
    assert "must not be negative" in str(raised.value)


def test_images_are_decoded_once_while_they_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    from t2ifb.data import rankings

    original = rankings.image_error
    monkeypatch.setattr(rankings, "image_error", lambda image: decoded.append(image) or original(image))
    HPDv2(folder, 0.0).rankings("train")
    assert len(decoded) == 40  # each distinct image, though 80 rankings have two
    HPDv2(folder, 0.0).rankings("train")
    assert len(decoded) == 40
    image = HPDv2(folder, 0.0).rankings("train")[0].images[0]
    assert isinstance(image, Path)
    image.unlink()
    with pytest.raises(ValueError, match="is missing"):
        HPDv2(folder, 0.0).rankings("train")


def test_missing_parts_say_what_to_do(tmp_path: Path) -> None:
    dataset = HPDv2("ymhao/HPDv2", cache_folder=tmp_path)
    assert not dataset.available("train")
    with pytest.raises(ValueError, match=r"'train' is missing.*python -m t2ifb.prepare domain=sd15 dataset=hpdv2"):
        dataset.rankings("train")
    with pytest.raises(ValueError, match="HPDv2 has no split 'dev'; its splits are train, validation, test"):
        dataset.download(["dev"])
    with pytest.raises(ValueError, match=r"lacks test.json, test.tar.gz"):
        HPDv2(tmp_path).download(["test"])


def test_a_reward_model_trains_on_it(folder: Path, tmp_path: Path) -> None:
    summary = two_steps(HPDv2(folder, SHARE), tmp_path)
    assert summary["data"]["position"] == 2
    assert summary["data"]["comparisons"] == len(HPDv2(folder, SHARE).rankings("train"))
    assert summary["test/comparisons"] == 9
