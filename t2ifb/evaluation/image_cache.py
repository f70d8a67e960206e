"""Image cache: images of a base model and of tuned ones from the same noise, sampled once."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import track

from t2ifb.data.drawn import write_image
from t2ifb.diffusion.lora import LORA_WEIGHTS, exported_file, load_lora
from t2ifb.diffusion.model import load_for_sampling
from t2ifb.diffusion.pipeline_model import PipelineModel
from t2ifb.diffusion.sampling import generate
from t2ifb.diffusion.source import read_pipeline
from t2ifb.evaluation.lazy import Unbuilt, build
from t2ifb.evaluation.run_names import short_names
from t2ifb.utils.devices import device_of
from t2ifb.utils.files import file_lock
from t2ifb.utils.fingerprints import FileHashes, fingerprint, library_versions
from t2ifb.utils.random_streams import Stream


@dataclass(frozen=True)
class Sample:
    """One image to sample: the `copy`-th for a prompt."""

    prompt: str
    copy: int

    @property
    def name(self) -> str:
        """File stem. Prompts never enter file names."""
        return f"{hashlib.sha256(self.prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}_{self.copy}"

    def key(self, seed: int) -> tuple[int, ...]:
        """Random key of the noise, a function of prompt and copy alone."""
        return (Stream.IMAGE_CACHE, seed, int(self.name.partition("_")[0][:15], 16), self.copy)


class Generations:
    """Sample missing images. Interrupted runs continue; jobs that need the same images wait for each other.

    The cache key of a model's images contains the diffusion model's files, the sampler, the adapters' weights, the
    seed, and the versions of the code and libraries that sample.
    """

    def __init__(
        self,
        folder: str | Path,
        diffusion: Unbuilt,
        sampling: Unbuilt,
        batch_size: int = 16,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        """Store the settings. Nothing is loaded yet.

        Args:
            folder: Folder of the cache.
            diffusion: A `ModelSource`, unbuilt.
            sampling: A `Sampler`, unbuilt.
            batch_size: Images per batch.
            device: Device; `auto` is the GPU if one exists.
            seed: Seed of the noise.
        """
        self.root, self.diffusion = Path(folder).expanduser(), diffusion
        self.sampling: Any = sampling
        self.batch_size, self.seed = batch_size, seed
        self.device = device_of(device)
        self._hashes = FileHashes(self.root / "file_keys.npy")

    def at(self, sampling: Any) -> "Generations":
        """The same cache and noise with another sampler, built or unbuilt."""
        found = copy(self)
        found.sampling = sampling
        return found

    def fill(self, name: str, adapters: Path | None, samples: Sequence[Sample]) -> list[Path]:
        """Files of one model's images, sampled if missing.

        Args:
            name: Name of the model in progress messages.
            adapters: A folder with exported adapters; None for the base model.
            samples: The images.

        Raises:
            ValueError: The model or the adapters cannot be loaded.
        """
        place = self.root / self._key(adapters)
        files = [place / f"{sample.name}.png" for sample in samples]
        with file_lock(self.root / f"{place.name}.lock"):
            starts = range(0, len(samples), self.batch_size)
            batches = [range(start, min(start + self.batch_size, len(samples))) for start in starts]
            missing = [batch for batch in batches if not all(files[number].exists() for number in batch)]
            if missing:
                texts = (samples[number].prompt for batch in missing for number in batch)
                model = load_for_sampling(build(self.diffusion), texts, self.device)
                sampler = build(self.sampling)
                if adapters is not None:
                    load_lora(model, adapters)
                for batch in track(missing, f"sampling from {escape(name)}"):
                    some = [samples[number] for number in batch]
                    keys = [sample.key(self.seed) for sample in some]
                    (images,) = generate(model, sampler, [sample.prompt for sample in some], keys, len(some))
                    for number, image in zip(batch, images, strict=True):
                        if not files[number].exists():  # rounding depends on the batch, and people may have ranked it
                            write_image(files[number], image)
        return files

    def _key(self, adapters: Path | None) -> str:
        weights = "base" if adapters is None else adapters / LORA_WEIGHTS
        code = load_lora, read_pipeline, PipelineModel, Generations
        parts = self.diffusion, self.sampling, *code, library_versions(), self.seed, weights
        return fingerprint(*parts, hash_file=self._hashes)[:16]


def samples_of(prompts: Sequence[str], images_per_prompt: int) -> list[Sample]:
    """Samples of prompts, `images_per_prompt` consecutive ones each."""
    return [Sample(prompt, copy) for prompt in prompts for copy in range(images_per_prompt)]


def tuned_runs(runs: Sequence[str | Path]) -> Mapping[str, Path]:
    """Exports of fine-tuning runs, or folders of adapters, by their names in tables and on the comparison page.

    No run is named `base`, which is reserved for the base model.

    Raises:
        ValueError: A folder is neither a finished fine-tuning run nor has adapters, or is given twice.
    """
    for run in runs:
        path = Path(run).expanduser()
        finished = (path / "export" / LORA_WEIGHTS).is_file() and (path / "summary.json").is_file()
        if not finished and not (path / LORA_WEIGHTS).is_file():
            raise ValueError(
                f"{path} is not a finished fine-tuning run: summary.json or export/{LORA_WEIGHTS} is missing; it is no "
                f"folder of adapters either: {LORA_WEIGHTS} is missing"
            )
    return exported_adapters(runs)


def exported_adapters(sources: Sequence[str | Path]) -> Mapping[str, Path]:
    """Folders with exported adapters by their names in tables; none is named `base`.

    Args:
        sources: Run folders, their `export/`, or the files.

    Raises:
        ValueError: There are no adapters, or they are given twice.
    """
    folders = [exported_file(source).parent for source in sources]
    places = [Path(os.path.abspath(place_of(folder))) for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError("a run is given twice")
    *names, _ = short_names([*places, Path("base")])
    return dict(zip(names, folders, strict=True))


def place_of(adapters: Path) -> Path:
    """Folder that a user names for exported adapters: their run's, or their own."""
    return adapters.parent if adapters.name == "export" else adapters
