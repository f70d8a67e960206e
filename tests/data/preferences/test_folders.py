"""Folders of better and worse images."""

from pathlib import Path

import pytest

from t2ifb.data.preferences.folders import folder_rows
from tests.data.parts import encoded_picture


def put(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        path.write_bytes(encoded_picture(len(path.parts), "PNG"))
    else:
        path.write_text(text)
    return path


def test_a_folder_per_pair(tmp_path: Path) -> None:
    for split, name in (("train", "0"), ("train", "1"), ("test", "2")):
        put(tmp_path / split / name / "win.png")
        put(tmp_path / split / name / "lose.webp")
        put(tmp_path / split / name / "prompt.txt", f"cat\n{name}")
    rows = folder_rows(tmp_path)
    assert [(row.text("split"), row.text("prompt")) for row in rows] == [
        ("test", "cat 2"),
        ("train", "cat 0"),
        ("train", "cat 1"),
    ]
    assert row_names(tmp_path, rows[0].cells) == ("test/2/win.png", "test/2/lose.webp")
    assert "split" not in folder_rows(tmp_path / "train")[0].cells


def row_names(root: Path, cells: dict[str, str]) -> tuple[str, ...]:
    return tuple(Path(cells[side]).relative_to(root).as_posix() for side in ("chosen", "rejected"))


def test_a_folder_of_better_and_one_of_worse_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "high" / f"{name}.jpg")
        put(tmp_path / "low" / f"{name}.png")
    put(tmp_path / "high/a.txt", "a cat")
    put(tmp_path / "b.txt", "a dog")
    rows = folder_rows(tmp_path)
    assert [row.text("prompt") for row in rows] == ["a cat", "a dog"]
    assert row_names(tmp_path, rows[1].cells) == ("high/b.jpg", "low/b.png")


def test_folders_that_are_no_splits_are_read_together(tmp_path: Path) -> None:
    for folder in ("monday", "tuesday"):
        for name in ("win.png", "lose.png"):
            put(tmp_path / folder / "0" / name)
        put(tmp_path / folder / "0" / "prompt.txt", folder)
    rows = folder_rows(tmp_path)
    assert [row.text("prompt") for row in rows] == ["monday", "tuesday"]
    assert not any("split" in row.cells for row in rows)
    (tmp_path / "tuesday").rename(tmp_path / "val")
    with pytest.raises(ValueError, match="monday are no splits, but val are; move them elsewhere"):
        folder_rows(tmp_path)


def test_a_pair_without_its_other_image_or_prompt_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "0/better.png")
    with pytest.raises(ValueError, match=r"0/better.png has no image to compare with; expected .*0/worse.png"):
        folder_rows(tmp_path)
    put(tmp_path / "0/worse.png")
    with pytest.raises(ValueError, match=r"has no prompt; expected a text file .*0/prompt.txt"):
        folder_rows(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["0/lose.png"], r"0/lose.png has no image to compare with; expected .*0/win.png"),
        (["win/0.png", "lose/0.png", "lose/1.png"], r"lose/1.png has no image to compare with; expected .*win/1.png"),
    ],
)
def test_a_pair_without_its_better_image_is_an_error(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        put(tmp_path / file)
    put(tmp_path / "0.txt", "a cat")
    with pytest.raises(ValueError, match=message):
        folder_rows(tmp_path)


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    for file in ("a/0/win.PNG", "a/0/lose.PNG", "b/high/7.JPG", "b/low/7.JPG"):
        put(tmp_path / file)
    put(tmp_path / "a/0/prompt.txt", "a cat")
    put(tmp_path / "b/7.txt", "a dog")
    assert [row.text("prompt") for row in folder_rows(tmp_path / "a")] == ["a cat"]
    assert [row.text("prompt") for row in folder_rows(tmp_path / "b")] == ["a dog"]


def test_other_folders_have_no_pairs(tmp_path: Path) -> None:
    put(tmp_path / "images/0.png")
    assert folder_rows(tmp_path) == folder_rows(tmp_path / "nowhere") == []
