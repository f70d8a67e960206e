"""Human rankings of images, and checks of them."""

import errno
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from rich.progress import track

from t2ifb.data.decoding import to_rgb, too_large
from t2ifb.data.errors import (
    BadRecord,
    OnError,
    brief,
    check_numbers,
    check_paths,
    check_text,
    parse_entries,
    raise_or_skip,
)
from t2ifb.utils.files import read_json_list

__all__ = [
    "BadRecord",
    "Image",
    "ImageSource",
    "Judgement",
    "PreferenceDataset",
    "RankedPrompt",
    "Votes",
    "load_rankings",
    "open_image",
    "read_bytes",
]


class ImageSource(Protocol):
    """A hashable reference to an image that is opened on demand.

    A source may also have `read() -> bytes`, its encoded file, and `identity() -> str`, which changes when the content
    does. With these the embedding cache identifies the image without decoding or reading it.
    """

    def open(self) -> PILImage.Image:
        """Open the image."""
        ...


Image: TypeAlias = Path | ImageSource

CHUNK = 16
"""Images that a thread checks per task."""
ANNOUNCED = 2000
"""Checking at least this many images shows a progress bar."""


@dataclass(frozen=True)
class Votes:
    """Votes on two images of a ranking.

    Attributes:
        first: Index of an image.
        second: Index of the other image.
        for_first: Number of votes for the first image, at least 0; a tie is half a vote for each image.
        for_second: Number of votes for the second image.
    """

    first: int
    second: int
    for_first: float
    for_second: float


@dataclass(frozen=True)
class Judgement:
    """A comparison with the votes on it.

    Attributes:
        better: Index of the image with more votes; with equal votes, of the first image.
        worse: Index of the other image.
        share: Share of the votes for `better`, from 0.5 to 1.
        weight: Number of votes.
    """

    better: int
    worse: int
    share: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class RankedPrompt:
    """One ranking: a prompt and its images with their ranks.

    Attributes:
        prompt_id: Unique id of the ranking; several rankings may share a prompt.
        prompt: The text.
        images: k images.
        ranks: The k ranks of the images; 1 is best, ties are allowed.
        votes: Votes behind the ranks, if there were several or a tie was given; at most once per pair of images.
    """

    prompt_id: str
    prompt: str
    images: tuple[Image, ...]
    ranks: tuple[int, ...]
    votes: tuple[Votes, ...] = ()

    def comparisons(self) -> list[tuple[int, int]]:
        """All pairs (index of the better image, index of the worse one); at most C(k, 2), ties are left out."""
        pairs = combinations(range(len(self.ranks)), 2)
        return [(i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in pairs if self.ranks[i] != self.ranks[j]]

    def judgements(self) -> list[Judgement]:
        """What a reward model learns: the votes or, without votes, `comparisons` with one vote each."""
        if not self.votes:
            return [Judgement(better, worse) for better, worse in self.comparisons()]
        found = []
        for votes in self.votes:
            pair = (votes.first, votes.second) if votes.for_first >= votes.for_second else (votes.second, votes.first)
            total = votes.for_first + votes.for_second
            found.append(Judgement(*pair, max(votes.for_first, votes.for_second) / total, total))
        return found


class PreferenceDataset(Protocol):
    """A data set with rankings per split."""

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The rankings of a split such as `train`, `validation` or `test`."""
        ...

    def available(self, split: str) -> bool:
        """Whether all files of the split are on this machine."""
        ...


def read_bytes(image: Image) -> bytes:
    """The encoded file of an image; for a source without `read()`, its size and pixels.

    Raises:
        OSError: The image cannot be read.
    """
    if isinstance(image, Path):
        return image.read_bytes()
    if (read := getattr(image, "read", None)) is not None:
        return cast(bytes, read())
    picture = open_image(image)
    return f"{picture.size}".encode() + picture.tobytes()


def open_image(image: Image) -> PILImage.Image:
    """Decode an image to RGB, as a viewer shows it; see `to_rgb`.

    Raises:
        ValueError: The image is missing, empty, too large or cannot be decoded; the message names it.
    """
    try:
        if isinstance(image, Path):
            with PILImage.open(io.BytesIO(image.read_bytes())) as picture:
                return to_rgb(picture)
        return to_rgb(image.open())
    except PILImage.DecompressionBombError:
        raise ValueError(f"cannot read the image {image}: {too_large()}") from ValueError(too_large())
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image {image}: it is empty or of unknown format") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise ValueError(f"cannot read the image {image}: {error or type(error).__name__}") from error


def image_error(image: Image) -> str | None:
    """Decode an image and describe its error; None if it has none.

    Raises:
        ValueError: The machine cannot read the file (no permission, a broken disk, too many open files). This is not a
            error of the data and may be temporary.
    """
    if isinstance(image, Path):
        if not image.is_file():
            return f"image {image} is missing"
        if image.stat().st_size == 0:
            return f"image {image} is empty (0 bytes)"
    try:
        open_image(image)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):  # Pillow's own errors have no errno
            raise
        return f"image {image} cannot be decoded ({cause})"
    return None


def find_bad_records(
    rankings: list[RankedPrompt], decode: bool, place: str
) -> tuple[list[RankedPrompt], list[BadRecord]]:
    """Find every error: empty prompt, duplicate id, one image only, ranks that do not match, bad images.

    Args:
        rankings: The rankings to check.
        decode: Also decode every image, to find missing, empty and damaged ones.
        place: Source of the rankings, the first part of every error's place.

    Returns:
        The rankings without errors, and the errors of the others.
    """
    good: list[RankedPrompt] = []
    errors: list[BadRecord] = []
    seen: set[str] = set()
    for number, (ranking, broken) in enumerate(zip(rankings, _broken_images(rankings, decode), strict=True)):
        where = f"{place}, ranking {number} (id {brief(ranking.prompt_id)})"
        found = [BadRecord(where, what) for what in _structure_errors(ranking, seen)]
        found += [BadRecord(f"{where}, image {index}", what) for index, what in broken]
        seen.add(ranking.prompt_id)
        errors += found
        if not found:
            good.append(ranking)
    return good, errors


def _structure_errors(ranking: RankedPrompt, seen: set[str]) -> Iterator[str]:
    if ranking.prompt_id in seen:
        yield "duplicate id"
    if not ranking.prompt.strip():
        yield "empty prompt"
    if len(ranking.images) < 2:
        yield f"a ranking needs at least two images, this one has {len(ranking.images)}"
    if len(ranking.ranks) != len(ranking.images):
        yield f"{len(ranking.ranks)} ranks for {len(ranking.images)} images"
    if wrong := [rank for rank in ranking.ranks if rank < 1]:
        yield f"ranks start at 1, found {wrong}"


def _broken_images(rankings: list[RankedPrompt], decode: bool) -> Iterator[list[tuple[int, str]]]:
    """Index and error of the broken images of each ranking. Repeated images are decoded once."""
    if not decode:
        yield from ([] for _ in rankings)
        return
    distinct = list(dict.fromkeys(image for ranking in rankings for image in ranking.images))
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    with ThreadPoolExecutor() as pool:
        found = pool.map(_errors_of, chunks)
        shown = track(found, "checking images", total=len(chunks)) if len(distinct) >= ANNOUNCED else found
        errors = dict(zip(distinct, (what for chunk in shown for what in chunk), strict=True))
    for ranking in rankings:
        whats = (errors[image] for image in ranking.images)
        yield [(index, what) for index, what in enumerate(whats) if what]


def _errors_of(images: list[Image]) -> list[str | None]:
    return [image_error(image) for image in images]


def load_rankings(
    path: str | Path, image_root: str | Path | None = None, on_error: OnError = "error"
) -> list[RankedPrompt]:
    """Read rankings in the format of ImageReward's `test.json` (arXiv 2304.05977). Images are not opened.

    Args:
        path: JSON, a list of `{"id", "prompt", "generations": [relative paths], "ranking": [ints, 1 is best]}`.
        image_root: Root of the image paths; the JSON file's folder by default.
        on_error: `error` raises on any error, `skip` leaves out the affected rankings.

    Raises:
        ValueError: The file is missing or has another format, or has errors and `on_error` is `error`.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    entries = read_json_list(path)

    def parse(number: int, entry: dict[str, Any]) -> RankedPrompt:
        images = tuple(root / name for name in check_paths(entry["generations"], "generations"))
        ranks = tuple(check_numbers(entry["ranking"], "ranking"))
        return RankedPrompt(str(entry["id"]), check_text(entry["prompt"], "prompt"), images, ranks)

    rankings, errors = parse_entries(enumerate(entries), parse, str(path))
    good, more = find_bad_records(rankings, decode=False, place=str(path))
    raise_or_skip(errors + more, on_error, str(path), len(entries) - len(good), len(entries))
    return good
