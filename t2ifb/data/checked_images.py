"""Checking every image of a data set by decoding it, once ever: what was found is remembered."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from t2ifb.data.decoding import DECODING
from t2ifb.data.faults import Fault
from t2ifb.data.files import atomic_write
from t2ifb.data.rankings import RankedPrompt, find_faults


def check_once(
    rankings: list[RankedPrompt], place: str, files: Iterable[Path], memory: Path
) -> tuple[list[RankedPrompt], list[Fault]]:
    """`find_faults` with decoding, remembered for as long as the rankings and the files stay the same.

    Args:
        rankings: What to check.
        place: Where the rankings come from; the first part of every fault's place.
        files: Files that the images are in, archives or the images themselves; a missing one may appear later.
        memory: Where to remember; in a read-only folder every run checks again.

    Returns:
        The rankings without fault, and the faults.
    """
    key = _key(rankings, files)
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["key"] == key:
            bad = set(known["bad"])
            good = [ranking for number, ranking in enumerate(rankings) if number not in bad]
            return good, [Fault(**fault) for fault in known["faults"]]
    good, faults = find_faults(rankings, decode=True, place=place)
    kept = set(map(id, good))
    bad_numbers = [number for number, ranking in enumerate(rankings) if id(ranking) not in kept]
    content = {"key": key, "bad": bad_numbers, "faults": [asdict(fault) for fault in faults]}
    with suppress(OSError), atomic_write(memory) as file:
        file.write(json.dumps(content, indent=2).encode())
    return good, faults


def memory_file(folder: Path, source: str | Path, *parts: str) -> Path:
    """Where to remember what was found in a part of a data set.

    Args:
        folder: A cache, or the data set's own folder.
        source: The data set.
        parts: The split, and what else decides which rankings there are; they become part of the file's name.
    """
    return folder / ".checked" / f"{'-'.join([short_name(source), *parts])}.json"


def short_name(source: str | Path) -> str:
    """12 letters and digits that stand for a data set in file names."""
    return hashlib.sha256(str(source).encode()).hexdigest()[:12]


def _key(rankings: list[RankedPrompt], files: Iterable[Path]) -> str:
    key = hashlib.sha256(json.dumps([DECODING, *(_stamp(path) for path in files)]).encode())
    for ranking in rankings:
        images = "\0".join(map(str, ranking.images))
        text = f"{ranking.prompt_id}\0{ranking.prompt}\0{ranking.ranks}\0{images}\n"
        key.update(text.encode("utf-8", "surrogatepass"))
    return key.hexdigest()


def _stamp(path: Path) -> list[object]:
    """Path, time and size of a file; the path alone while it is missing."""
    try:
        status = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), status.st_mtime_ns, status.st_size]
