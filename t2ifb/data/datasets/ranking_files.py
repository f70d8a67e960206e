"""A preference data set in JSON files."""

from collections.abc import Mapping
from pathlib import Path

from t2ifb.data.errors import BadRecord, OnError, raise_or_skip
from t2ifb.data.rankings import RankedPrompt, load_rankings
from t2ifb.data.validation import check_once, image_files, memory_file


class RankingFiles:
    """Splits in JSON files of the form that `load_rankings` reads.

    Attributes:
        errors: Errors per split from the image check; filled by `rankings`.
    """

    def __init__(
        self, files: Mapping[str, str | Path], image_root: str | Path | None = None, on_error: OnError = "error"
    ) -> None:
        """Store the paths. Nothing is read yet.

        Args:
            files: The file of each split, such as `{"test": "test.json"}`.
            image_root: Root of the image paths; each file's own folder by default.
            on_error: `error` or `skip`.
        """
        self.files = {split: Path(path).expanduser() for split, path in files.items()}
        self.image_root = image_root
        self.on_error = on_error
        self.errors: dict[str, list[BadRecord]] = {}

    def available(self, split: str) -> bool:
        """Whether the split's file exists."""
        return split in self.files and self.files[split].is_file()

    def rankings(self, split: str) -> list[RankedPrompt]:
        """Rankings of a split. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split does not exist, or has errors and `on_error` is `error`.
        """
        if split not in self.files:
            raise ValueError(f"no split {split!r}; the splits are {', '.join(self.files) or 'none'}")
        path = self.files[split]
        loaded = load_rankings(path, self.image_root, self.on_error)
        memory = memory_file(path.parent, path.absolute(), split)
        good, self.errors[split] = check_once(loaded, str(path), image_files(loaded), memory)
        raise_or_skip(self.errors[split], self.on_error, str(path), len(loaded) - len(good), len(loaded))
        return good
