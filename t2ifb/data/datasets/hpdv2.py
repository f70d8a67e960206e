"""HPDv2, the Human Preference Dataset v2 (arXiv 2306.09341): JSON annotations, images in tar archives."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from t2ifb.data.errors import BadRecord, OnError, check_numbers, check_paths, check_text, parse_entries, raise_or_skip
from t2ifb.data.prompts import hash_fraction
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.storage.archives import leaves_folder, unpack_once
from t2ifb.data.storage.hub import FolderFiles, files_of
from t2ifb.data.validation import check_once, memory_file, short_name
from t2ifb.utils.files import read_json_list

STORED_IN = {"train": "train", "validation": "train", "test": "test"}
"""Part of the data set that holds each split."""


class HPDv2:
    """A data set in HPDv2's layout, in a folder or on the hub.

    - `train.json`: a list of `{"prompt", "file_path": [2 paths], "human_preference": [1 for the preferred image]}`.
      Each entry is the choice of one person and becomes one ranking. Many entries share a prompt or even both images.
    - `test.json`: a list of `{"prompt", "image_path": [k paths], "rank": [k ints]}`, one entry per prompt. `rank` is
      the ranking averaged over the annotators; their individual rankings (`raw_annotations`) are not read. A lower rank
      is better: the authors' evaluation (github.com/tgxs002/HPSv2, `hpsv2/evaluation.py`, `evaluate_rank`) compares it
      with the images' places by falling score. Ranks that start at 0 are shifted to start at 1, which changes no
      comparison.
    - Paths are relative to the folders `train/` and `test/`, unpacked from `train.tar.gz` and `test.tar.gz`. Both
      spellings of the path key are read.

    HPDv2 has no validation split. A share of the training prompts, chosen by a hash, becomes one.

    Attributes:
        errors: Errors per split; filled by `rankings`.
    """

    def __init__(
        self,
        source: str | Path,
        validation_share: float = 0.05,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        on_error: OnError = "error",
    ) -> None:
        """Store the settings. Nothing is read or downloaded yet.

        Args:
            source: A folder, or a hub id such as `ymhao/HPDv2`.
            validation_share: Approximate share of the training prompts in the validation split, from 0 to below 1.
            seed: Seed of that choice. With the same seed and share, a prompt is always in the same split.
            cache_folder: Folder for downloads, unpacked images and the results of image checks. By default the archives
                of a local folder are unpacked into it.
            on_error: `error` stops on bad data, `skip` drops the affected rankings.

        Raises:
            ValueError: `validation_share` is out of range.
        """
        if not 0 <= validation_share < 1:
            raise ValueError(f"validation_share must be from 0 to below 1, not {validation_share}")
        self.source = source
        self.validation_share = validation_share
        self.seed = seed
        self.on_error = on_error
        self.errors: dict[str, list[BadRecord]] = {}
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self._files = files_of(source, self.cache_folder)

    @staticmethod
    def recognises(source: str) -> bool:
        """Whether a folder or hub id is in HPDv2's layout."""
        folder = Path(source).expanduser()
        if not folder.is_dir():
            return source.endswith("/HPDv2")
        images = [folder / name for part in ("train", "test") for name in (part, f"{part}.tar.gz")]
        return (folder / "test.json").is_file() and any(each.exists() for each in images)

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        if isinstance(self._files, FolderFiles):
            return (
                f"{self.source} is not a complete data set: expected train.json and test.json, each with its images in "
                "train.tar.gz and test.tar.gz or in the folders train/ and test/. Give another folder."
            )
        return (
            f"{self._files} is not on this machine. Download it with "
            f"`python -m t2ifb.prepare domain=sd15 dataset=hpdv2 dataset.source={self.source}`."
        )

    def available(self, split: str) -> bool:
        """Whether annotations and images are on this machine, unpacked or not; the network is not used."""
        if (part := STORED_IN.get(split)) is None:
            return False
        names = (part, f"{part}.tar.gz")
        return self._files.find(f"{part}.json") is not None and any(self._files.find(name) for name in names)

    def download(self, splits: Iterable[str]) -> None:
        """Download and unpack the missing files of the splits. A local folder is only checked and unpacked.

        Raises:
            ValueError: A split does not exist, the hub cannot be reached, the disk has too little space, or files are
                missing.
        """
        parts = list(dict.fromkeys(_part(split) for split in splits))
        packed = [part for part in parts if self._files.find(part) is None]
        self._files.fetch([*(f"{part}.json" for part in parts), *(f"{part}.tar.gz" for part in packed)])
        for part in parts:
            self._image_folder(part)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings in the order of the annotations. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split is missing, or has errors and `on_error` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        part = _part(split)
        annotations = self._files.find(f"{part}.json")
        assert annotations is not None
        folder, refused = self._image_folder(part)

        def parse(number: int, entry: dict[str, Any]) -> RankedPrompt:
            names = check_paths(entry["file_path" if "file_path" in entry else "image_path"], "file_path")
            if outside := [name for name in names if leaves_folder(name)]:
                raise ValueError(f"image {outside[0]} points outside the data set's folder")
            if len(set(names)) < len(names):
                raise ValueError("the same image twice")
            ranks = _averaged_ranks(entry) if part == "test" else _choice(entry)
            images = tuple(folder / name for name in names)
            return RankedPrompt(f"{part}-{number}", check_text(entry["prompt"], "prompt"), images, ranks)

        entries = self._entries(annotations, split)
        place = f"{self._files}, {split}"
        parsed, errors = parse_entries(entries, parse, str(annotations))
        images = sorted({image for ranking in parsed for image in ranking.images if isinstance(image, Path)})
        memory = memory_file(self.cache_folder or self._files.home, self.source, split)
        good, more = check_once(parsed, place, images, memory)
        self.errors[split] = [*refused, *errors, *more]
        raise_or_skip(self.errors[split], self.on_error, place, len(entries) - len(good), len(entries))
        return good

    def _entries(self, annotations: Path, split: str) -> list[tuple[int, Any]]:
        """The split's annotations with their indices in the file. Entries without a prompt count as training."""
        entries = list(enumerate(read_json_list(annotations)))
        if _part(split) == "test":
            return entries
        return [(number, e) for number, e in entries if self._is_validation(e) == (split == "validation")]

    def _is_validation(self, entry: Any) -> bool:
        prompt = entry.get("prompt") if isinstance(entry, dict) else None
        return isinstance(prompt, str) and hash_fraction(prompt, self.seed) < self.validation_share

    def _image_folder(self, part: str) -> tuple[Path, list[BadRecord]]:
        """Root folder of a part's paths, unpacked if needed, and the archive members that were rejected."""
        if (folder := self._files.find(part)) is not None:
            return folder, []
        if (archive := self._files.find(f"{part}.tar.gz")) is None:
            raise ValueError(f"The images of {part} are missing. {self.missing_message}")
        unpacked = (self.cache_folder or self._files.home) / "unpacked" / f"{short_name(self.source)}-{part}"
        refused = unpack_once(archive, unpacked)
        return (unpacked / part if (unpacked / part).is_dir() else unpacked), refused


def _part(split: str) -> str:
    if split not in STORED_IN:
        raise ValueError(f"HPDv2 has no split {split!r}; its splits are {', '.join(STORED_IN)}")
    return STORED_IN[split]


def _choice(entry: dict[str, Any]) -> tuple[int, ...]:
    """Ranks of a person's choice: 1 for the preferred image, 2 for the other."""
    preference = check_numbers(entry["human_preference"], "human_preference")
    if sorted(preference) != [0, 1]:
        raise ValueError(f"human_preference must be [1, 0] or [0, 1], found {preference}")
    return tuple(2 - chosen for chosen in preference)


def _averaged_ranks(entry: dict[str, Any]) -> tuple[int, ...]:
    """Ranks of a test prompt's images, shifted so that the best is 1."""
    ranks = check_numbers(entry["rank"], "rank")
    if any(rank < 0 for rank in ranks):
        raise ValueError(f"ranks must not be negative, found {ranks}")
    return tuple(rank - min(ranks) + 1 for rank in ranks)
