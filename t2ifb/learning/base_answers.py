"""The base model's answers to an exam, found once for all runs that ask the same: the jobs of a sweep."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.data.files import file_lock, make_folder
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.learning.exam import Answers, Exam
from t2ifb.learning.tuned_states import ask

DEPENDS_ON = (
    "diffusion", "sampling", "reward", "judges", "truth", "diversity",
    "standardise", "validation_prompts", "images_per_prompt", "samples_per_batch",
)  # fmt: skip
"""Settings of a run that its base model's answers depend on, besides prompts and seed."""


class BaseAnswers:
    """Keeps answers in a folder by what they depend on; jobs that need the same wait for the first of them."""

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        """Say where.

        Args:
            folder: Where answers are kept; None keeps none.
            settings: The run's, as plain containers; without them nothing is kept.
        """
        self.folder = None if folder is None or not settings else Path(folder).expanduser()
        self.known = _stamped({name: settings.get(name) for name in DEPENDS_ON})

    def of(self, exam: Exam, model: DiffusionModel, samples_per_batch: int) -> Answers:
        """The base model's answers, drawn now if nobody has before."""
        if self.folder is None:
            return ask(exam, model, samples_per_batch, "the base model", base=True)
        asked = {"stream": exam.stream, "seed": exam.seed, "prompts": exam.prompts, "settings": self.known}
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:20]
        path = make_folder(self.folder) / f"{key}.safetensors"
        with file_lock(path.with_suffix(".lock")):
            if not path.exists():
                ask(exam, model, samples_per_batch, "the base model", base=True).save(path)
            return Answers.read(path)


def _stamped(value: Any) -> Any:
    """Plain containers, where files and folders that are named also stand with their times and sizes."""
    if isinstance(value, Mapping):
        return {str(key): _stamped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stamped(item) for item in value]
    if not isinstance(value, str):
        return value
    path = Path(value.removeprefix("local-dir:")).expanduser()
    try:
        inside = sorted(path.rglob("*")) if value and path.is_dir() else [path]
        files = [(str(file.relative_to(path)), file.stat()) for file in inside if file.is_file()]
        return [value, [(name, status.st_mtime_ns, status.st_size) for name, status in files]]
    except (OSError, ValueError):  # too long for a path, a null byte
        return value
