"""A run's folder: what is where, and files that are whole or absent."""

import json
from pathlib import Path
from typing import Any

from t2ifb.data.files import atomic_write, make_folder


class RunFolder:
    """`outputs/<domain>/<experiment>/<time>/`.

    Attributes:
        path: The folder, absolute.
        checkpoints: `last.ckpt` to go on from, `best.ckpt` with the weights that did best on validation.
        samples: Pictures.
        export: The trained model.
    """

    def __init__(self, path: str | Path) -> None:
        """Make the folder and those in it.

        Raises:
            StorageError: It cannot be made.
        """
        self.path = make_folder(Path(path).expanduser().absolute())
        self.checkpoints = make_folder(self.path / "checkpoints")
        self.samples = make_folder(self.path / "samples")
        self.export = make_folder(self.path / "export")

    @property
    def last_checkpoint(self) -> Path:
        """What an interrupted run goes on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights that did best on validation, without the optimiser."""
        return self.checkpoints / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """The table of all logged figures."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """The final figures; its presence means finished."""
        return self.path / "summary.json"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary.is_file()

    @property
    def group(self) -> str:
        """Which runs belong together: `<domain>/<experiment>`."""
        return "/".join(self.path.parts[-3:-1])

    @property
    def name(self) -> str:
        """A name that means something away from its folder: `<experiment> <time>`."""
        return " ".join(self.path.parts[-2:])

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all.

        Args:
            name: Relative to the folder.
            text: Its content.
        """
        with atomic_write(self.path / name) as file:
            file.write(text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write plain containers as JSON, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, last of all: it says that the run is finished."""
        self.write_json(self.summary.name, summary)
