"""Meaning of labels and votes."""

from typing import Any

import pytest

from t2ifb.data.preferences.labels import Labels, two_votes

FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
NAMES = ("image_a", "image_b")
MEANINGS: list[tuple[list[Any], tuple[str, str], list[tuple[float, float]]]] = [
    (["a", "B ", "tie"], NAMES, [FIRST, SECOND, TIE]),
    (["left", "Right", "both-bad"], NAMES, [FIRST, SECOND, TIE]),
    (["image_b", "images.image_b"], ("images.image_a", "images.image_b"), [SECOND, SECOND]),
    ([0, 1, "1", 1.0], NAMES, [FIRST, SECOND, SECOND, SECOND]),
    (["0.5", 0, 1], NAMES, [TIE, FIRST, SECOND]),
    ([1, 2], NAMES, [FIRST, SECOND]),
    ([1], ("1.jpg", "2.jpg"), [FIRST]),
    ([1, 1], ("image_1", "image_2"), [FIRST, FIRST]),
    ([1, 1], ("image_0", "image_1"), [SECOND, SECOND]),
    (["image_0", "image_1", "image1"], ("jpg_0", "jpg_1"), [FIRST, SECOND, SECOND]),
    (["image_1", "image2", "image_left"], ("image_a", "image_b"), [FIRST, SECOND, FIRST]),
    (["left", "a", "first"], ("right_image", "left_image"), [SECOND, SECOND, FIRST]),
    ([1, 2, "image_1"], ("image_2", "image_1"), [SECOND, FIRST, SECOND]),
    (["b", "image_b"], ("photo_b", "photo_a"), [FIRST, FIRST]),
]


@pytest.mark.parametrize(("labels", "names", "expected"), MEANINGS)
def test_labels_are_understood(labels: list[Any], names: tuple[str, str], expected: list[tuple[float, float]]) -> None:
    meaning = Labels(labels, names)
    assert [meaning.votes(label) for label in labels] == expected


def test_the_meaning_of_numbers_is_described() -> None:
    assert str(Labels([0, 1], NAMES)) == "label 0 prefers image_a, label 1 prefers image_b"
    assert str(Labels(["a"], NAMES)) == ""


def test_given_labels_replace_the_known_ones() -> None:
    meaning = Labels([1, 0, -1], NAMES, {"first": 1, "second": [0, "zero"], "tie": -1})
    assert [meaning.votes(label) for label in (1, "0", "zero", -1)] == [FIRST, SECOND, SECOND, TIE]
    with pytest.raises(ValueError, match="unknown label 'a'; expected 1, 0, zero, -1"):
        meaning.votes("a")
    written = Labels(["1.0", "0.0"], NAMES, {"first": 1.0, "second": "0"})  # pandas writes them if one is missing
    assert [written.votes(label) for label in ("1.0", "0.0", 1, 0)] == [FIRST, SECOND, FIRST, SECOND]


@pytest.mark.parametrize("numbers", [[-1, 1], [0, 1, 2], [3], [1, 1]])
def test_ambiguous_numbers_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"are ambiguous; say what they mean with labels=\{first"):
        Labels(numbers, NAMES)


@pytest.mark.parametrize("label", ["c", True, "maybe"])
def test_an_unknown_label_is_an_error_and_an_empty_one_is_none(label: object) -> None:
    meaning = Labels(["a"], NAMES)
    with pytest.raises(ValueError, match="unknown label"):
        meaning.votes(label)
    assert meaning.votes(None) is meaning.votes(" ") is None
    with pytest.raises(ValueError, match="expected a label for first, second and tie, got 'best'"):
        Labels([], NAMES, {"best": 1})


def test_two_votes() -> None:
    assert two_votes("3", 1.0) == (3, 1)
    assert two_votes(0, 0) is two_votes(None, "") is None
    assert [two_votes(*pair, signed=True) for pair in ((1, -1), (-1, 1), (0, 0), (0, 1))] == [
        FIRST,
        SECOND,
        TIE,
        SECOND,
    ]
    with pytest.raises(ValueError, match="at least 0, found -1 and 2"):
        two_votes(-1, 2)
    with pytest.raises(ValueError, match="must be numbers, found 'x' and '1'"):
        two_votes("x", 1)
