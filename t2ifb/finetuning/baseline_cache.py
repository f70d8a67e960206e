"""Cache of the base model's evaluation samples, shared by runs with equal settings, such as a sweep."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.diffusion.model import TextToImageModel
from t2ifb.diffusion.sampling import generate
from t2ifb.evaluation.scoring import ScorerSet
from t2ifb.finetuning.evaluator import REWARD, EvalSamples, Evaluator, evaluate, stored
from t2ifb.scorers.mix import Mix
from t2ifb.utils.devices import device_facts
from t2ifb.utils.files import make_folder
from t2ifb.utils.fingerprints import FileHashes, fingerprint, library_versions


class BaselineCache:
    """Cache keyed by everything that the samples depend on. Jobs that need the same entry wait for the first."""

    def __init__(self, folder: str | Path | None, depends_on: Mapping[str, Any]) -> None:
        """Store the settings.

        Args:
            folder: Folder of the cache; None disables it.
            depends_on: Arguments of the run that the base model's samples depend on, besides prompts and seed.
        """
        self.folder = None if folder is None else Path(folder).expanduser()
        self.known = self.folder and fingerprint(depends_on, hash_file=FileHashes(self.folder / "file_keys.npy"))

    def of(self, evaluator: Evaluator, model: TextToImageModel, samples_per_batch: int) -> EvalSamples:
        """The base model's samples, computed if not cached. All processes of a run must call this together."""

        def compute() -> EvalSamples:
            return evaluate(evaluator, model, samples_per_batch, "the base model", base=True)

        if self.folder is None:
            return compute()
        return stored(make_folder(self.folder) / f"{self._key(evaluator, model)}.safetensors", compute)

    def _key(self, evaluator: Evaluator, model: TextToImageModel) -> str:
        reward = dict(evaluator.judges.scorers.items()).get(REWARD)
        asked = {
            "stream": evaluator.stream,
            "seed": evaluator.seed,
            "sampler": [evaluator.sampler.num_inference_steps, evaluator.sampler.guidance_scale],
            "settings": self.known,
            "unit": [reward.means.tolist(), reward.deviations.tolist()] if isinstance(reward, Mix) else None,
            "code": [evaluate, Evaluator, ScorerSet, type(model), generate],
            "libraries": library_versions(),
            "device": device_facts(model.device),
            "precision": str(model.denoiser.dtype),
        }
        prompts = json.dumps(evaluator.prompts)
        return hashlib.sha256(f"{fingerprint(asked)} {prompts}".encode()).hexdigest()[:20]
