"""Roles of the columns of tables of pairs."""

import pytest

from t2ifb.data.preferences.columns import pair_columns

KNOWN = {
    "caption image_a image_b label": ("pairs", {"first": "image_a", "second": "image_b", "label": "label"}, False),
    "jpg_0 jpg_1 label_0 label_1 caption has_label": (
        *("Pick-a-Pic", {"votes_first": "label_0", "votes_second": "label_1", "labelled": "has_label"}, False),
    ),
    "prompt chosen rejected": ("Open Image Preferences", {"first": "chosen", "second": "rejected"}, True),
    "prompt image1 image2 votes_image1 votes_image2 model1 model2 image1_path image2_path": (
        *("Rapidata votes", {"first": "image1", "votes_second": "votes_image2"}, False),
    ),
    "prompt path1 path2 confidence choice_dist": (
        *("HPDv3", {"first": "path1", "confidence": "confidence", "votes": "choice_dist"}, True),
    ),
    "prompt path1 path2 label": ("HPDv3", {"first": "path1", "label": "label"}, False),
    "prompt path1 path2 votes_1 votes_2": ("HPDv3", {"votes_first": "votes_1"}, False),
    "prompt left right preference user_id": ("pairs", {"label": "preference", "annotator": "user_id"}, False),
    "prompt image_0 image_1 pref_0 pref_1": ("pairs", {"votes_first": "pref_0"}, False),
}


@pytest.mark.parametrize("columns", KNOWN)
def test_known_columns_get_their_roles(columns: str) -> None:
    name, some, ordered = KNOWN[columns]
    form = pair_columns(columns.split())
    assert form is not None
    assert (form.name, form.ordered) == (name, ordered)
    assert some.items() <= form.columns.items()
    assert {"prompt", "first", "second"} <= form.columns.keys()
    assert name in str(form) and f"prompt={form.columns['prompt']}" in str(form)


def test_a_map_takes_precedence_and_needs_no_known_name() -> None:
    form = pair_columns(["q", "x", "y", "best", "label"], {"prompt": "Q", "first": "x", "second": "y", "label": "best"})
    assert form is not None and form.columns == {"prompt": "q", "first": "x", "second": "y", "label": "best"}
    named = pair_columns(["q", "x", "y"], {"prompt": "q", "chosen": "x", "rejected": "y"})
    assert named is not None and named.ordered and named.columns["second"] == "y"


def test_a_given_choice_excludes_guessed_ones() -> None:
    table = ["prompt", "image_a", "image_b", "label", "votes_a", "votes_b", "votes", "final"]
    for given in ({"label": "final"}, {"votes": "votes"}, {"votes_first": "votes_b", "votes_second": "votes_a"}):
        form = pair_columns(table, given)
        assert form is not None and not form.ordered
        choice = {"label", "votes", "votes_first", "votes_second"} & form.columns.keys()
        assert {role: form.columns[role] for role in choice} == given
    named = pair_columns(table, {"chosen": "image_b", "rejected": "image_a"})
    assert named is not None and named.ordered
    assert named.columns == {"prompt": "prompt", "first": "image_b", "second": "image_a"}
    labelled = pair_columns(["prompt", "chosen", "rejected", "final"], {"label": "final"})
    assert labelled is not None and not labelled.ordered and labelled.columns["label"] == "final"


def test_guessed_columns_contradict_nothing_that_the_names_say() -> None:
    ordered = pair_columns(["prompt", "chosen", "rejected", "votes_a", "votes_b", "label"])
    assert ordered is not None and ordered.ordered
    assert ordered.columns == {"prompt": "prompt", "first": "chosen", "second": "rejected"}
    voted = pair_columns(["prompt", "image_a", "image_b", "votes_a", "votes_b", "label"])
    assert voted is not None and "label" not in voted.columns and voted.columns["votes_first"] == "votes_a"
    with pytest.raises(ValueError, match="no column says which image is preferred"):
        pair_columns(["prompt", "path1", "path2", "better"])  # named as in HPDv3, whose first image is the better one


def test_none_in_a_map_means_that_there_is_no_such_column() -> None:
    table = ["prompt", "image_a", "image_b", "label", "confidence", "weight", "user", "votes_a", "votes_b"]
    without = pair_columns(table, dict.fromkeys(("confidence", "weight", "annotator", "votes_first")))
    assert without is not None
    assert without.columns == {"prompt": "prompt", "first": "image_a", "second": "image_b", "label": "label"}
    with pytest.raises(ValueError, match="unknown role sure"):
        pair_columns(table, {"sure": None})


def test_a_table_of_images_is_none_of_pairs() -> None:
    assert pair_columns(["prompt", "image", "rank"]) is None


WRONG = [
    ({"promt": "q"}, "unknown role promt; expected some of prompt, first"),
    ({"prompt": "frage"}, "no column for prompt=frage; found the columns q, image_a, image_b"),
    ({}, r"no column with the prompt; found the columns q, image_a, image_b. Name it with columns=\{prompt: …\}"),
    ({"first": "image_b"}, "first is given alone; name both first and second"),
    ({"votes_second": "q"}, "votes_second is given alone; name both votes_first and votes_second"),
    ({"label": "q", "votes": "q"}, "label and votes are both given; keep one of them"),
    ({"prompt": "q"}, "no column says which image is preferred; found the columns q, image_a, image_b"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_a_wrong_map_is_one_message_with_the_columns(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        pair_columns(["q", "image_a", "image_b"], given)
    assert "\n" not in str(raised.value)
