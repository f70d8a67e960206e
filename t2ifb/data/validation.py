"""Decode every image of a data set once, to find bad ones, and store the result."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from t2ifb.data.decoding import DECODING
from t2ifb.data.errors import BadRecord
from t2ifb.data.rankings import RankedPrompt, find_bad_records
from t2ifb.utils.files import write_json
from t2ifb.utils.fingerprints import stamp


def check_once(
    rankings: list[RankedPrompt], place: str, files: Iterable[Path], memory: Path
) -> tuple[list[RankedPrompt], list[BadRecord]]:
    """Run `find_bad_records` with decoding. The stored result is reused while rankings and files stay the same.

    Args:
        rankings: The rankings to check.
        place: Source of the rankings, the first part of every error's place.
        files: Files that hold the images: archives or the images themselves. Files may be missing.
        memory: File for the result. In a read-only folder every run checks again.

    Returns:
        The rankings without error, and the errors.
    """
    key = _key(rankings, files)
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["key"] == key:
            bad = set(known["bad"])
            good = [ranking for number, ranking in enumerate(rankings) if number not in bad]
            return good, [BadRecord(**error) for error in known["errors"]]
    good, errors = find_bad_records(rankings, decode=True, place=place)
    kept = set(map(id, good))
    bad_numbers = [number for number, ranking in enumerate(rankings) if id(ranking) not in kept]
    content = {"key": key, "bad": bad_numbers, "errors": [asdict(error) for error in errors]}
    with suppress(OSError):
        write_json(memory, content)
    return good, errors


def image_files(rankings: Iterable[RankedPrompt]) -> list[Path]:
    """Images of rankings that are files of their own."""
    images = [image for ranking in rankings for image in ranking.images]
    files = (image if isinstance(image, Path) else getattr(image, "file", None) for image in images)
    return [file for file in files if file is not None]


def memory_file(folder: Path, source: str | Path, *parts: str) -> Path:
    """File for the result of checking one part of a data set.

    Args:
        folder: A cache, or the data set's own folder.
        source: The data set.
        parts: The split and other choices that decide which rankings are read. They become part of the file name.
    """
    return folder / ".checked" / f"{'-'.join([short_name(source), *parts])}.json"


def short_name(source: str | Path) -> str:
    """12 hexadecimal digits that identify a data set in file names."""
    return hashlib.sha256(str(source).encode()).hexdigest()[:12]


def _key(rankings: list[RankedPrompt], files: Iterable[Path]) -> str:
    stamps = [stamp(path) if path.exists() else str(path) for path in files]
    content = [[r.prompt_id, r.prompt, list(r.ranks), list(map(str, r.images))] for r in rankings]
    return hashlib.sha256(json.dumps([DECODING, stamps, content]).encode()).hexdigest()
