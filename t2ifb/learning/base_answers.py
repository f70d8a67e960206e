"""Cache of the base model's evaluation samples, shared by runs with equal settings, such as a sweep."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist

import t2ifb
from t2ifb.data.devices import device_facts
from t2ifb.data.files import file_lock, make_folder
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.evaluation.code_hash import library_versions
from t2ifb.learning.exam import Answers, Exam, together
from t2ifb.learning.tuned_states import REWARD, ask
from t2ifb.scorers.mix import Mix

DEPENDS_ON = (
    "diffusion", "sampling", "reward", "judges", "truth", "diversity",
    "standardise", "validation_prompts", "images_per_prompt", "samples_per_batch",
)  # fmt: skip
"""Settings that the base model's samples depend on, besides prompts and seed."""


class BaseAnswers:
    """Cache keyed by everything that the samples depend on. Jobs that need the same entry wait for the first."""

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any]) -> None:
        """Store the settings.

        Args:
            folder: Folder of the cache; None disables it.
            settings: Settings of the run as plain containers; without them the cache is disabled.
        """
        self.folder = None if folder is None or not settings else Path(folder).expanduser()
        self.known = _stamped({name: settings.get(name) for name in DEPENDS_ON})

    def of(self, exam: Exam, model: DiffusionModel, samples_per_batch: int) -> Answers:
        """The base model's samples, computed if not cached. All processes of a run must call this together."""
        if self.folder is None:
            return ask(exam, model, samples_per_batch, "the base model", base=True)
        path = make_folder(self.folder) / f"{self._key(exam, model)}.safetensors"
        if together():  # all processes sample, so none may wait for another here
            known = [path.exists()]
            dist.broadcast_object_list(known)
            if not known[0]:
                answers = ask(exam, model, samples_per_batch, "the base model", base=True)
                if dist.get_rank() == 0:
                    answers.save(path)
                return answers
            found = [Answers.read(path) if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(found)
            assert found[0] is not None
            return found[0]
        with file_lock(path.with_suffix(".lock")):
            if not path.exists():
                ask(exam, model, samples_per_batch, "the base model", base=True).save(path)
            return Answers.read(path)

    def _key(self, exam: Exam, model: DiffusionModel) -> str:
        reward = dict(exam.judges.scorers.items()).get(REWARD)
        asked = {
            "stream": exam.stream,
            "seed": exam.seed,
            "prompts": exam.prompts,
            "sampler": [exam.sampler.num_inference_steps, exam.sampler.guidance_scale],
            "settings": self.known,
            "unit": [reward.means.tolist(), reward.deviations.tolist()] if isinstance(reward, Mix) else None,
            "code": package_hash(),
            "libraries": library_versions(),
            "device": device_facts(model.device),
            "precision": str(model.denoiser.dtype),
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:20]


@cache
def package_hash() -> str:
    """Hash of all code in this package, so that results of other code are not reused."""
    files = sorted(Path(t2ifb.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _stamped(value: Any) -> Any:
    """Replace named files and folders in plain containers by their paths, times and sizes.

    For a run folder only its export counts.
    """
    if isinstance(value, Mapping):
        return {str(key): _stamped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stamped(item) for item in value]
    if not isinstance(value, str):
        return value
    path = Path(value.removeprefix("local-dir:")).expanduser()
    try:
        exported = path / "export"
        inside = sorted((exported if exported.is_dir() else path).rglob("*")) if value and path.is_dir() else [path]
        files = [(str(file.relative_to(path)), file.stat()) for file in inside if file.is_file()]
        return [value, [(name, status.st_mtime_ns, status.st_size) for name, status in files]]
    except (OSError, ValueError):  # path too long, or a null byte
        return value
