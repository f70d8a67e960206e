"""Which columns of a preference table are the prompt, the images, and the choice."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ROLES = {
    "prompt": "the prompt",
    "first": "an image",
    "second": "the other image",
    "chosen": "the preferred image, instead of first",
    "rejected": "the other image, instead of second",
    "label": "which image is preferred",
    "votes_first": "votes for the first image",
    "votes_second": "votes for the second image",
    "votes": "a list of both numbers of votes",
    "confidence": "probability that the choice is right",
    "weight": "number of votes that a row stands for",
    "annotator": "who chose",
    "prompt_id": "id of the pair",
    "split": "the split",
    "labelled": "whether the row has a choice",
    "image": "the image, in a table with a row per image",
    "rank": "its rank",
}
"""What a column map can name."""
ALIASES = {
    "prompt": ("prompt", "caption", "text", "instruction", "txt"),
    "label": ("label", "preference", "choice", "preferred", "winner", "vote", "answer", "selected"),
    "votes": ("choice_dist", "votes"),
    "confidence": ("confidence",),
    "weight": ("weight",),
    "annotator": ("annotator", "annotator_id", "user_id", "user", "worker_id", "worker", "rater"),
    "prompt_id": ("prompt_id",),
    "split": ("split",),
    "labelled": ("has_label",),
}
ENDINGS = ("jpg", "jpeg", "png", "webp")
SIDES = (
    *((f"{stem}{one}", f"{stem}{two}") for stem in ("image_", "image", "img_", "img", "jpg_", "path_", "path")
      for one, two in (("a", "b"), ("0", "1"), ("1", "2"), ("left", "right"))),
    ("left_image", "right_image"),
    ("images.image_1", "images.image_2"),
    ("image1_path", "image2_path"),
    ("left", "right"),
    *((f"{stem}{one}.{ending}", f"{stem}{two}.{ending}") for ending in ENDINGS for stem in ("", "image")
      for one, two in (("0", "1"), ("1", "2"), ("a", "b"))),
)  # fmt: skip
"""Columns of two images, in the order of preference among them."""
ORDERED = (
    ("chosen", "rejected"), ("chosen_image", "rejected_image"), ("winner", "loser"), ("win", "lose"),
    ("better", "worse"), ("high", "low"), *((f"win.{ending}", f"lose.{ending}") for ending in ENDINGS),
    *((f"chosen.{ending}", f"rejected.{ending}") for ending in ENDINGS),
)  # fmt: skip
"""Columns of two images whose names say which is preferred."""
VOTES = (
    *((f"votes_{one}", f"votes_{two}") for one, two in (("image1", "image2"), ("image_1", "image_2"),
      ("image_0", "image_1"), ("image_a", "image_b"), ("a", "b"), ("0", "1"), ("1", "2"), ("first", "second"),
      ("left", "right"))),
    ("weighted_results_image1_preference", "weighted_results_image2_preference"),
    ("label_0", "label_1"),
    ("pref_0", "pref_1"),
)  # fmt: skip
"""Columns of two numbers, the larger for the preferred image."""
PRESETS = {
    "Pick-a-Pic": {"jpg_0", "jpg_1", "label_0", "label_1"},
    "Rapidata votes": {"image1", "image2", "votes_image1", "votes_image2"},
    "Rapidata preferences": {"image1", "image2", "weighted_results_image1_preference"},
    "HPDv3": {"path1", "path2"},
    "Open Image Preferences": {"chosen", "rejected"},
}
"""Names of known files by columns that they have."""
FIRST_IS_BETTER = {("path1", "path2")}
"""Image columns of HPDv3: without a label or votes the first image is the preferred one. One of its columns `CHOICES`
tells its tables from others with these names; a row of them may be empty."""
CHOICES = {"confidence", "choice_dist"}
HALVES = (("first", "second"), ("chosen", "rejected"), ("votes_first", "votes_second"))
"""Roles that are given together."""
RIVALS = (("first", "chosen"), ("label", "votes"), ("label", "votes_first"), ("votes", "votes_first"),
          ("chosen", "label"), ("chosen", "votes_first"))  # fmt: skip
"""Roles that say the same in different ways."""


@dataclass(frozen=True)
class PairColumns:
    """The columns of a table with one row per comparison.

    Attributes:
        name: Name of the format, for messages.
        columns: Column of each role, among them `prompt`, `first` and `second`; see `ROLES`.
        ordered: Whether the first image is the preferred one, so that no column says which is.
    """

    name: str
    columns: Mapping[str, str]
    ordered: bool

    def __str__(self) -> str:
        named = ", ".join(f"{role}={column}" for role, column in self.columns.items())
        return f"{self.name} ({named}{'; the first image is the preferred one' if self.ordered else ''})"


def pair_columns(columns: Iterable[str], given: Mapping[str, str | None] | None = None) -> PairColumns | None:
    """Find out what the columns of a table of pairs are.

    Args:
        columns: Lower-case names.
        given: Columns by role (`ROLES`). They take precedence: with a given choice (`label`, `votes`, `votes_first`,
            `chosen`) no other one is guessed. None means that there is no such column, though a name looks like it.

    Returns:
        The columns; None if there are no two images among them.

    Raises:
        ValueError: The given map has an unknown role or column, half a pair or rivals, or prompt or choice cannot be
            found.
    """
    there, given = list(columns), given or {}
    found = checked_map(there, given)
    absent = {role for role, column in given.items() if column is None}
    listed = _listed(there)
    _check_roles(found)
    chosen = {"label", "votes", "votes_first"} & found.keys()
    ordered = "chosen" in found
    settled = ordered or bool(chosen)
    if ordered:
        found["first"], found["second"] = found.pop("chosen"), found.pop("rejected")
    taken = set(found.values())
    if "first" not in found:
        pair = next((pair for pair in (*SIDES, *ORDERED) if set(pair) <= set(there) - taken), None)
        if pair is None:
            if given and "image" not in there:
                raise ValueError(f"columns: name the columns of both images as first and second; {listed}")
            return None
        found["first"], found["second"] = pair
        ordered = pair in ORDERED and not chosen - {"votes"}
        taken |= set(pair)
    for role, names in ALIASES.items():
        if role in found or role in absent or (settled and role in ("label", "votes")):
            continue
        if column := next((name for name in names if name in there and name not in taken), None):
            found[role] = column
    settled = settled or bool(absent & {"votes_first", "votes_second"})
    if not settled and (pair := next((pair for pair in VOTES if set(pair) <= set(there) - taken), None)):
        found["votes_first"], found["votes_second"] = pair
    # Nothing is guessed that the names of the images say already; votes say more than a label.
    needless = ("label", "votes", "votes_first", "votes_second") if ordered else ("label",) * ("votes_first" in found)
    for role in needless:
        if role not in given:
            found.pop(role, None)
    if "prompt" not in found:
        raise ValueError(f"no column with the prompt; {listed}. Name it with columns={{prompt: …}}")
    own = not {"label", "votes_first"} & found.keys() and found.get("votes") in (None, "choice_dist")
    own = own and bool(CHOICES & set(there))
    ordered = ordered or (own and (found["first"], found["second"]) in FIRST_IS_BETTER)
    if not ordered and not {"label", "votes", "votes_first"} & found.keys():
        raise ValueError(
            f"no column says which image is preferred; {listed}. Name it with columns={{label: …}} or "
            "columns={votes_first: …, votes_second: …}, or name the images columns={chosen: …, rejected: …}"
        )
    name = next((name for name, needed in PRESETS.items() if needed <= set(there)), "pairs")
    return PairColumns(name, {role: found[role] for role in ROLES if role in found}, ordered)


def checked_map(
    columns: Sequence[str], given: Mapping[str, str | None], roles: Iterable[str] = ROLES
) -> dict[str, str]:
    """A map that the user gave, with lower-case columns, without roles that have none.

    Args:
        columns: Lower-case names of the columns that are there.
        given: Columns by role.
        roles: What the map can name.

    Raises:
        ValueError: A role is unknown, or a column is missing.
    """
    found = lower_map(given)
    if unknown := [role for role in given if role not in roles]:
        raise ValueError(f"columns: unknown role {', '.join(unknown)}; expected some of {', '.join(roles)}")
    if lacking := [f"{role}={column}" for role, column in found.items() if column not in columns]:
        raise ValueError(f"columns: no column for {', '.join(lacking)}; {_listed(columns)}")
    return found


def lower_map(given: Mapping[str, str | None]) -> dict[str, str]:
    """Lower-case columns by role, of the roles that have one."""
    return {role: str(column).strip().lower() for role, column in given.items() if column is not None}


def _listed(columns: Sequence[str]) -> str:
    return f"found the columns {', '.join(columns) or 'none'}"


def _check_roles(found: Mapping[str, str]) -> None:
    """Check that no given role lacks its other half or has a rival.

    Raises:
        ValueError: One does.
    """
    for pair in HALVES:
        if len(given := [role for role in pair if role in found]) == 1:
            raise ValueError(f"columns: {given[0]} is given alone; name both {pair[0]} and {pair[1]}")
    for one, two in RIVALS:
        if one in found and two in found:
            raise ValueError(f"columns: {one} and {two} are both given; keep one of them")
