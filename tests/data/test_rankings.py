import errno
import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from t2ifb.data.rankings import RankedPrompt, find_bad_records, load_rankings, open_image, read_bytes
from tests.conftest import real_data
from tests.data.parts import make_split, picture


def ranking(ranks: list[int]) -> RankedPrompt:
    return RankedPrompt("id", "prompt", tuple(Path(f"{i}.png") for i in range(len(ranks))), tuple(ranks))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9))
def test_comparisons_are_the_pairs_that_are_not_tied(ranks: list[int]) -> None:
    comparisons = ranking(ranks).comparisons()
    assert all(ranks[better] < ranks[worse] for better, worse in comparisons)
    assert {frozenset(pair) for pair in comparisons} == {
        frozenset((i, j)) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]
    }
    assert len(comparisons) == len(set(comparisons))


def test_the_real_test_set_has_its_published_counts() -> None:
    path = real_data("imagereward_test.json")
    rankings = load_rankings(path)
    pairs = sum(len(r.images) * (len(r.images) - 1) // 2 for r in rankings)
    comparisons = sum(len(r.comparisons()) for r in rankings)
    assert len(rankings) == 466
    assert len({r.prompt for r in rankings}) == 463
    assert sum(len(r.images) for r in rankings) == 2720
    assert (comparisons, pairs - comparisons) == (6399, 831)
    assert rankings[0].images[0] == path.parent / "part-005658/images/0040/45b0de4d-5a57-4ae3-8810-ffbd328204fd.webp"


def write(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


def entry(number: int, **changes: object) -> dict[str, object]:
    return {"id": f"id-{number}", "prompt": "a cat", "generations": ["a.png", "b.png"], "ranking": [1, 2]} | changes


def test_paths_are_relative_to_the_json_or_to_the_image_root(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [entry(0)])
    assert load_rankings(path)[0].images == (tmp_path / "a.png", tmp_path / "b.png")
    assert load_rankings(path, tmp_path / "root")[0].images[1] == tmp_path / "root" / "b.png"


ERRORY = {
    1: (entry(1, prompt="  "), "empty prompt"),
    2: (entry(0), "duplicate id"),
    3: (entry(3, ranking=[1, 2, 3]), "3 ranks for 2 images"),
    4: (entry(4, generations=["a.png"], ranking=[1]), "at least two images, this one has 1"),
    5: (entry(5, ranking=[0, 1]), "ranks start at 1"),
}


def test_every_error_is_listed_with_its_place_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [entry(0), *(error for error, _ in ERRORY.values())])
    with pytest.raises(ValueError, match="5 errors in 5 of 6 rankings") as raised:
        load_rankings(path)
    for number, (_, what) in ERRORY.items():
        line = next(line for line in str(raised.value).splitlines() if f"ranking {number} " in line)
        assert str(path) in line
        assert what in line


def test_entries_of_another_form_are_listed(tmp_path: Path) -> None:
    wrong = [{"id": 1}, "text", entry(2, ranking=["1", "2"]), entry(3, generations="a.png")]
    with pytest.raises(ValueError, match="4 errors") as raised:
        load_rankings(write(tmp_path / "test.json", wrong))
    for number, what in enumerate(["no key 'generations'", "expected an object", "integers", "relative paths"]):
        assert f"entry {number}: " in str(raised.value)
        assert what in str(raised.value)


def test_skipping_leaves_out_and_reports(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "test.json", [entry(0), "text", *(error for error, _ in ERRORY.values())])
    assert [r.prompt_id for r in load_rankings(path, on_error="skip")] == ["id-0"]
    assert "dropped 6 of 7 rankings for 6 errors" in caplog.text


def test_broken_images_are_found_by_decoding(tmp_path: Path) -> None:
    rankings = make_split(tmp_path, "test", [(1, 2, 3, 4), (1, 2)])
    missing, empty, text, torn = (Path(str(image)) for image in rankings[0].images)
    missing.unlink()
    empty.write_bytes(b"")
    text.write_text("no image")
    torn.write_bytes(torn.read_bytes()[:60])
    assert len(find_bad_records(rankings, decode=False, place="here")[0]) == 2
    good, errors = find_bad_records(rankings, decode=True, place="here")
    assert good == rankings[1:]
    assert [error.place for error in errors] == [f"here, ranking 0 (id test-0), image {i}" for i in range(4)]
    for error, what in zip(errors, ("missing", "empty", "cannot be decoded", "cannot be decoded"), strict=True):
        assert what in error.what


def test_what_the_machine_would_not_read_is_no_error_of_the_data(tmp_path: Path) -> None:
    class Unreadable:
        def open(self) -> Image.Image:
            raise OSError(errno.EIO, "Input/output error")

    picture(0).save(tmp_path / "a.png")
    rankings = [RankedPrompt("1", "a cat", (tmp_path / "a.png", Unreadable()), (1, 2))]
    with pytest.raises(ValueError, match="Input/output error"):
        find_bad_records(rankings, decode=True, place="here")


def test_unknown_on_error_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", [entry(0)])
    with pytest.raises(ValueError, match="error or skip, not 'ignore'"):
        load_rankings(path, on_error="ignore")  # type: ignore[arg-type]


class InMemory:
    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def open(self) -> Image.Image:
        return self.image


def test_an_image_may_be_any_object_that_opens() -> None:
    one, same, other = InMemory(picture(0)), InMemory(picture(0)), InMemory(picture(1))
    assert open_image(InMemory(picture(0).convert("RGBA"))).mode == "RGB"
    assert read_bytes(one) == read_bytes(same) != read_bytes(other)
