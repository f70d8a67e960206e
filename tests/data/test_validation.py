"""Every image is decoded once, and again when anything changed."""

import json
from pathlib import Path

import pytest

from t2ifb.data import rankings as rankings_module
from t2ifb.data import validation
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.validation import check_once, memory_file, short_name
from tests.data.parts import picture


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The images that were decoded so far."""
    seen: list[object] = []
    original = rankings_module.image_error
    monkeypatch.setattr(rankings_module, "image_error", lambda image: seen.append(image) or original(image))
    return seen


@pytest.fixture
def rankings(tmp_path: Path) -> list[RankedPrompt]:
    found = []
    for number in range(3):
        paths = tuple(tmp_path / f"{number}{name}.png" for name in "ab")
        for seed, path in enumerate(paths):
            picture(10 * number + seed).save(path)
        found.append(RankedPrompt(str(number), f"prompt {number}", paths, (1, 2)))
    return found


def files(rankings: list[RankedPrompt]) -> list[Path]:
    return [image for ranking in rankings for image in ranking.images if isinstance(image, Path)]


def test_what_was_found_bad_is_known_without_decoding(
    tmp_path: Path, rankings: list[RankedPrompt], decoded: list[object]
) -> None:
    files(rankings)[2].write_bytes(b"no image")
    memory = tmp_path / "memory" / "checked.json"
    first = check_once(rankings, "here", files(rankings), memory)
    assert len(decoded) == 6
    again = check_once(rankings, "here", files(rankings), memory)
    assert len(decoded) == 6
    assert first == again
    assert [ranking.prompt_id for ranking in first[0]] == ["0", "2"]
    (error,) = first[1]
    assert "here" in error.place and "cannot be decoded" in error.what


@pytest.mark.parametrize("change", ["file", "rank", "prompt", "order", "memory"])
def test_a_change_is_checked_again(
    tmp_path: Path, rankings: list[RankedPrompt], decoded: list[object], change: str
) -> None:
    memory = tmp_path / "checked.json"
    check_once(rankings, "here", files(rankings), memory)
    one = rankings[0]
    if change == "file":
        picture(99, (9, 9)).save(files(rankings)[0])
    elif change == "rank":
        rankings[0] = RankedPrompt(one.prompt_id, one.prompt, one.images, (2, 1))
    elif change == "prompt":
        rankings[0] = RankedPrompt(one.prompt_id, "another", one.images, one.ranks)
    elif change == "order":
        rankings = rankings[::-1]
    else:
        memory.write_text(json.dumps({"key": json.loads(memory.read_text())["key"]}))
    check_once(rankings, "here", files(rankings), memory)
    assert len(decoded) == 12


def test_a_memory_of_older_decoding_is_not_used(
    tmp_path: Path, rankings: list[RankedPrompt], decoded: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for version in (1, 2, 2):
        monkeypatch.setattr(validation, "DECODING", version)
        check_once(rankings, "here", files(rankings), tmp_path / "checked.json")
        contents.append((tmp_path / "checked.json").read_bytes())
    assert contents[0] != contents[1] == contents[2]
    assert len(decoded) == 12


def test_each_part_of_a_data_set_has_a_memory_of_its_own(tmp_path: Path) -> None:
    names = {
        memory_file(tmp_path, source, *parts)
        for source in ("a/set", "another/set")
        for parts in (("train",), ("test",), ("train", "8k"))
    }
    assert len(names) == 6
    assert {path.parent for path in names} == {tmp_path / ".checked"}
    assert short_name("a/set") == short_name(Path("a/set"))
    assert len(short_name("a/set")) == 12
