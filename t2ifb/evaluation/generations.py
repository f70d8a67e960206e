"""Images of a base model and of tuned ones from the same noise, drawn once and kept on disk."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from rich.progress import track

from t2ifb.data.devices import device_of
from t2ifb.data.files import atomic_write, file_lock, sha256_file
from t2ifb.diffusion.lora import LORA_WEIGHTS, load_lora
from t2ifb.diffusion.sampling import generate
from t2ifb.evaluation.code_hash import library_versions
from t2ifb.evaluation.names import short_names
from t2ifb.evaluation.unbuilt import Identities, Unbuilt, build

STREAM = 0x0DF6
"""Keeps this noise apart from that of training and of its validations."""


@dataclass(frozen=True)
class Sample:
    """One image to be drawn: the `copy`-th for a prompt."""

    prompt: str
    copy: int

    @property
    def name(self) -> str:
        """The stem of its file: nothing of the prompt gets into a file name."""
        return f"{hashlib.sha256(self.prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}_{self.copy}"

    def key(self, seed: int) -> tuple[int, ...]:
        """What its noise depends on: prompt and copy, and not what else is drawn."""
        return (STREAM, seed, int(self.name.partition("_")[0][:15], 16), self.copy)


class Generations:
    """Draws what is not there yet; an interrupted run goes on, and jobs that need the same images wait for each other.

    A model's images are kept by what they depend on: the diffusion model's files, the sampler, the adapters' weights,
    the seed, and code and libraries that draw.
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
        """Name the place; nothing is loaded yet.

        Args:
            folder: Where images are kept.
            diffusion: A `DiffusionSource`, unbuilt.
            sampling: A `Sampler`, unbuilt.
            batch_size: Images that are drawn together.
            device: What draws; `auto` is the GPU if there is one.
            seed: Of the noise.
        """
        self.root, self.diffusion, self.sampling = Path(folder).expanduser(), diffusion, sampling
        self.batch_size, self.seed = batch_size, seed
        self.device = device_of(device)
        self._identities = Identities(self.root / "file_keys.npy")

    def fill(self, name: str, adapters: Path | None, samples: Sequence[Sample]) -> list[Path]:
        """The files of some images by one model.

        Args:
            name: What progress calls the model.
            adapters: A folder with exported adapters; None for the base model.
            samples: Which.

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
                model = replace(build(self.diffusion), device=str(self.device)).load()
                sampler = build(self.sampling)
                if adapters is not None:
                    load_lora(model.denoiser, adapters)
                for batch in track(missing, f"drawing with {name}"):
                    some = [samples[number] for number in batch]
                    keys = [sample.key(self.seed) for sample in some]
                    (images,) = generate(model, sampler, [sample.prompt for sample in some], keys, len(some))
                    for number, image in zip(batch, images, strict=True):
                        with atomic_write(files[number]) as file:
                            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
        return files

    def _key(self, adapters: Path | None) -> str:
        code = [self._identities(part) for part in (self.diffusion, self.sampling, load_lora, Generations)]
        weights = "base" if adapters is None else sha256_file(adapters / LORA_WEIGHTS)
        parts = [*code, *library_versions().values(), str(self.seed), weights]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def samples_of(prompts: Sequence[str], images_per_prompt: int) -> list[Sample]:
    """`images_per_prompt` in a row of each prompt."""
    return [Sample(prompt, copy) for prompt in prompts for copy in range(images_per_prompt)]


def tuned_runs(runs: Sequence[str | Path]) -> Mapping[str, Path]:
    """Exports of some fine-tuning runs by what tables call the runs, as the page that compares them does.

    None is called `base`, which is the model that all are compared with.

    Raises:
        ValueError: One is no finished fine-tuning run, or named twice.
    """
    paths = [Path(run).expanduser() for run in runs]
    for path in paths:
        if not (path / "export" / LORA_WEIGHTS).is_file() or not (path / "summary.json").is_file():
            raise ValueError(f"{path} is no finished fine-tuning run: summary.json or export/{LORA_WEIGHTS} is missing")
    places = [Path(os.path.abspath(path)) for path in paths]
    if len(set(places)) < len(places):
        raise ValueError("a run is named twice")
    *names, _ = short_names([*places, Path("base")])
    return {name: path / "export" for name, path in zip(names, paths, strict=True)}
