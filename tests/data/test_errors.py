"""Errors in data are listed with their places, and stop or are dropped as `on_error` says."""

import pickle

import pytest

from t2ifb.data.errors import (
    SHOWN_ERRORS,
    BadRecord,
    BadRecords,
    brief,
    check_numbers,
    check_paths,
    check_text,
    listing,
    parse_entries,
    raise_or_skip,
)

ERRORS = [BadRecord("line 2", "empty prompt"), BadRecord("line 5", "no image"), BadRecord("line 9", "empty prompt")]


def test_without_errors_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    raise_or_skip([], "error", "here", 0, 3)
    raise_or_skip([], "skip", "here", 0, 3)
    assert not caplog.records


def test_errors_stop_with_their_places_and_the_setting_that_drops_them() -> None:
    with pytest.raises(BadRecords) as raised:
        raise_or_skip(ERRORS, "error", "train.csv", 2, 7)
    assert str(raised.value) == (
        "train.csv has 3 errors in 2 of 7 rankings. Correct them, or set on_error=skip to drop these rankings:\n"
        "  line 2 and 1 more: empty prompt\n  line 5: no image"
    )
    with pytest.raises(BadRecords, match=r"1 error in 1 of 7 entries.*drop these entries"):
        raise_or_skip(ERRORS[:1], "error", "train.csv", 1, 7, "entries")


def test_dropped_records_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    raise_or_skip(ERRORS, "skip", "train.csv", 2, 7)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "train.csv: dropped 2 of 7 rankings for 3 errors:\n  line 2 and 1 more" in record.getMessage()


@pytest.mark.parametrize("errors", [[], ERRORS])
def test_another_wish_is_refused_also_where_there_is_no_error(errors: list[BadRecord]) -> None:
    with pytest.raises(ValueError, match="on_error must be error or skip, not 'ignore'"):
        raise_or_skip(errors, "ignore", "here", 0, 1)  # type: ignore[arg-type]


def test_the_setting_may_be_named_otherwise_and_the_rest_stays() -> None:
    error = BadRecords("a.csv", "1 error", "rows", "  line 2: empty")
    other = error.advising("dataset.on_error=skip")
    assert str(other) == str(error).replace("on_error=skip", "dataset.on_error=skip")
    assert other.place == "a.csv"
    assert str(error.advising("")) == "a.csv has 1 error. Correct them:\n  line 2: empty"


def test_it_comes_out_of_another_process_with_its_message() -> None:
    error = BadRecords("a.csv", "1 error", "rows", "  line 2: empty")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError) and str(again) == str(error)


def test_a_list_is_short_however_many_kinds_of_errors_there_are() -> None:
    many = [BadRecord(f"line {number}", f"error {number}") for number in range(SHOWN_ERRORS + 5)]
    lines = listing([*many, many[-1]]).split("\n")
    assert len(lines) == SHOWN_ERRORS + 1
    assert lines[0] == "  line 0: error 0"
    assert lines[-1] == "  and 6 more"
    assert len(listing(many[:SHOWN_ERRORS]).split("\n")) == SHOWN_ERRORS
    assert listing([]) == ""


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [("a b", 3, "a b"), ("a bc", 3, "a …"), ("  a\n\tb ", 80, "a b"), ("x" * 81, 80, "x" * 79 + "…"), ("", 3, "")],
)
def test_a_text_is_brought_to_one_line(text: str, most: int, expected: str) -> None:
    assert brief(text, most) == expected


def test_entries_that_cannot_be_parsed_are_listed_and_the_others_kept() -> None:
    def parse(number: int, entry: dict[str, object]) -> tuple[int, str]:
        if entry["text"] == "bad":
            raise ValueError("this is bad")
        return number, check_text(entry["text"], "text")

    entries = [{"text": "a"}, {}, "no object", {"text": 3}, {"text": "bad"}, {"text": "b"}]
    records, errors = parse_entries(enumerate(entries, 1), parse, "x.json")
    assert records == [(1, "a"), (6, "b")]
    assert list(map(str, errors)) == [
        "x.json, entry 2: no key 'text'",
        "x.json, entry 3: expected an object, got str",
        "x.json, entry 4: `text` must be a text",
        "x.json, entry 5: this is bad",
    ]


def test_mistakes_of_a_parser_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        parse_entries([(0, {})], lambda *_: 1 / 0, "x.json")  # type: ignore[arg-type, return-value]


def test_values_are_of_their_kind() -> None:
    assert (check_text("a", "x"), check_paths(["a", "b"], "x"), check_numbers([1, -2], "x")) == (
        "a",
        ["a", "b"],
        [1, -2],
    )
    for check, wrong in (
        (check_text, (None, 1, ["a"])),
        (check_paths, (None, "a", [1], ["a", None])),
        (check_numbers, (None, 1, [1.0], ["1"], [True])),
    ):
        for value in wrong:
            with pytest.raises(TypeError, match="`x` must be"):
                check(value, "x")  # type: ignore[operator]
