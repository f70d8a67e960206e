"""Files of a run are read as far as possible, and what is wrong with them is noted."""

import math
from pathlib import Path
from typing import Any

import pytest

from t2ifb.reporting.files import Notes, number, read_json, read_rows, read_yaml, rounded


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.5", 1.5), (" 2 ", 2.0), ("1e-3", 0.001), (3, 3.0), ("", None), ("x", None), (None, None), ("nan", None),
        ("inf", None), ("-Infinity", None), (math.nan, None), (True, None), ([1], None), ("1" * 400, None),
        (10**400, None),
    ],
)  # fmt: skip
def test_a_number_is_finite_or_none(cell: Any, value: float | None) -> None:
    assert number(cell) == value


def test_rounding_keeps_digits_that_count() -> None:
    assert [rounded(value) for value in (1 / 3, 123456789.0, 1e-9 / 3, 0.0, None)] == [
        0.333333, 123457000.0, 3.33333e-10, 0.0, None,
    ]  # fmt: skip
    assert rounded(2 / 3, 2) == 0.67


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_missing_is_nothing_and_no_error(tmp_path: Path, notes: Notes, read: Any) -> None:
    assert read(tmp_path / "a", dict, notes) is None
    assert read_rows(tmp_path / "a", notes) == []
    assert notes.texts == []


@pytest.mark.parametrize(
    ("read", "text", "note"),
    [
        (read_json, "{", "not valid JSON"),
        (read_json, "[" * 100_000, "not valid JSON"),
        (read_json, "[1]", "expected a dict, found list"),
        (read_json, "null", "expected a dict, found NoneType"),
        (read_yaml, "a: [1", "not valid YAML"),
        (read_yaml, "!!python/object/apply:os.getcwd []", "not valid YAML"),  # nothing is executed
        (read_yaml, "- 1", "expected a dict, found list"),
    ],
)
def test_what_is_broken_is_one_line(tmp_path: Path, notes: Notes, read: Any, text: str, note: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text(text)
    assert read(tmp_path / "sub" / "a", dict, notes) is None
    (found,) = notes.texts
    assert found.startswith(f"sub/a: {note}")
    assert "\n" not in found


def test_what_is_right_is_read(tmp_path: Path, notes: Notes) -> None:
    (tmp_path / "a").write_text('{"a": [1, null], "b": "${c}"}')
    for read in (read_json, read_yaml):
        assert read(tmp_path / "a", dict, notes) == {"a": [1, None], "b": "${c}"}
    (tmp_path / "empty").write_text("")
    assert read_yaml(tmp_path / "empty", dict, notes) == {}
    assert notes.texts == []


def test_a_folder_in_the_place_of_a_file_is_noted_by_its_path(tmp_path: Path, notes: Notes) -> None:
    assert read_json(tmp_path, dict, Notes(tmp_path / "run")) is None
    other = Notes(tmp_path / "run")
    assert read_rows(tmp_path, other) == []
    assert other.texts == [f"{tmp_path}: cannot be read (Is a directory)"]


@pytest.mark.parametrize(
    ("text", "rows", "note"),
    [
        ("a,b\n1,2\n", [{"a": "1", "b": "2"}], None),
        ("a,b\r\n1,2\r\n", [{"a": "1", "b": "2"}], None),
        ('a,b\n"x\ny","1,2"\n', [{"a": "x\ny", "b": "1,2"}], None),
        ("a,b\n", [], None),
        ("a,b\n1,2\n\n3,4\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], None),
        ("a,b\n1,2\n3,4", [{"a": "1", "b": "2"}], "the last line is truncated"),
        ("a,b\n1,2\n3\n4,5,6\n", [{"a": "1", "b": "2"}], "2 of its lines have another number of cells"),
        ("", [], "is empty"),
        ("a,b", [], "is empty"),
    ],
)
def test_rows_that_are_whole_are_kept(
    tmp_path: Path, notes: Notes, text: str, rows: list[dict[str, str]], note: str | None
) -> None:
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert read_rows(tmp_path / "a.csv", notes) == rows
    assert any(note in each for each in notes.texts) if note else notes.texts == []


def test_bytes_that_are_no_text_do_not_matter_in_other_cells(tmp_path: Path, notes: Notes) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,x\ncaf\xe9,1\n")
    assert read_rows(tmp_path / "a.csv", notes) == [{"prompt": "caf\ufffd", "x": "1"}]
