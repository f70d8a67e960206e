"""Write preference data in ImageRewardDB's file layout."""

import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from t2ifb.data.decoding import to_rgb
from t2ifb.utils.files import atomic_write

SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("classification", pa.string()),
        ("image_amount_in_total", pa.int64()),
        ("rank", pa.int64()),
        ("overall_rating", pa.int64()),
        ("image_text_alignment_rating", pa.int64()),
        ("fidelity_rating", pa.int64()),
    ]
)
"""Columns of `metadata-<split>.parquet`, and keys of the records in each archive's JSON file."""


@dataclass(frozen=True)
class Record:
    """One image of a ranking.

    Attributes:
        prompt_id: Id of the image's ranking.
        prompt: The text; equal in all records of a ranking.
        classification: Topic of the prompt.
        image: The image; stored as lossless WebP.
        rank: 1 is best, ties allowed.
        overall_rating: 1 to 7, 7 is best.
        image_text_alignment_rating: 1 to 7.
        fidelity_rating: 1 to 7.
    """

    prompt_id: str
    prompt: str
    classification: str
    image: PILImage.Image
    rank: int
    overall_rating: int
    image_text_alignment_rating: int
    fidelity_rating: int


def write_imagereward_db(
    folder: str | Path, split: str, records: Iterable[Record], images_per_archive: int = 1600
) -> None:
    """Write one split: `images/<split>/<split>_<i>.zip` then `metadata-<split>.parquet`.

    The same records give the same bytes: names are derived from split, ranking and position, and archives contain no
    timestamps.

    Args:
        folder: The data set's folder.
        split: The split's name.
        records: The images. Those of one ranking must be consecutive.
        images_per_archive: Approximate number of images per archive. A ranking is never split between archives.

    Raises:
        ValueError: The records of a ranking are not consecutive, or no records are given.
        StorageError: The disk is full or the folder is read-only.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for number, rankings in enumerate(_archives(records, images_per_archive), start=1):
        path = folder / "images" / split / f"{split}_{number}.zip"
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            written = [row for ranking in rankings for row in _write_ranking(archive, split, number, ranking)]
            _add(archive, f"{split}_{number}.json", json.dumps(written, indent=2, ensure_ascii=False).encode())
        rows += written
    if not rows:
        raise ValueError(f"the split {split!r} has no records to write")
    with atomic_write(folder / f"metadata-{split}.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file)


def _archives(records: Iterable[Record], images_per_archive: int) -> Iterator[list[list[Record]]]:
    """Group rankings into archives."""
    rankings: list[list[Record]] = []
    seen: set[str] = set()
    for prompt_id, group in groupby(records, key=lambda record: record.prompt_id):
        if prompt_id in seen:
            raise ValueError(f"the records of ranking {prompt_id!r} must be consecutive")
        seen.add(prompt_id)
        rankings.append(list(group))
        if sum(map(len, rankings)) >= images_per_archive:
            yield rankings
            rankings = []
    if rankings:
        yield rankings


def _write_ranking(
    archive: zipfile.ZipFile, split: str, number: int, ranking: list[Record]
) -> Iterator[dict[str, Any]]:
    for position, record in enumerate(ranking):
        name = f"{uuid.uuid5(uuid.NAMESPACE_OID, f'{split}/{record.prompt_id}/{position}')}.webp"
        buffer = io.BytesIO()
        to_rgb(record.image).save(buffer, "WEBP", lossless=True)
        _add(archive, name, buffer.getvalue())
        yield {
            "image_path": f"images/{split}/{split}_{number}/{name}",
            "prompt_id": record.prompt_id,
            "prompt": record.prompt,
            "classification": record.classification,
            "image_amount_in_total": len(ranking),
            "rank": record.rank,
            "overall_rating": record.overall_rating,
            "image_text_alignment_rating": record.image_text_alignment_rating,
            "fidelity_rating": record.fidelity_rating,
        }


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), content)
