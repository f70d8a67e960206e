"""Images of a base model and of tuned ones, drawn for the people who rank them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ifb.annotation.results import BASE
from t2ifb.data.drawn import INDEX, write_index
from t2ifb.evaluation.image_cache import Generations, exported_adapters, samples_of
from t2ifb.evaluation.lazy import Unbuilt
from t2ifb.utils.files import read_json_list, write_json
from t2ifb.utils.fingerprints import FileHashes, fingerprint

RECORD = "drawn.json"
"""File with what the images depend on."""


def draw(
    folder: Path,
    diffusion: Unbuilt,
    sampling: Unbuilt,
    runs: Sequence[str],
    prompts: Sequence[str],
    images_per_prompt: int,
    settings: Mapping[str, Any],
    batch_size: int = 16,
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Draw images of the base model and of tuned ones from the same noise, unless they are in the folder.

    An interrupted drawing continues. Images that are there stay, also after an update of the code, as long as settings,
    weights, prompts and seed are the same: people may have ranked them.

    Args:
        folder: Where the images are written, with `prompts.json` as `python -m t2ifb.generate` writes it.
        diffusion: A `ModelSource`, unbuilt.
        sampling: A `Sampler`, unbuilt.
        runs: Fine-tuning runs or exported adapters; none draws with the base model alone.
        prompts: The texts; each is used once.
        images_per_prompt: Number of images per prompt and model.
        settings: Plain values that stand for `diffusion` and `sampling`.
        batch_size: Images per batch.
        device: Device; `auto` is the GPU if one exists.
        seed: Seed of the noise.

    Returns:
        The folder, a source of `read_items`.

    Raises:
        ValueError: A model cannot be loaded, a run has no adapters or is given twice, or no questions would arise.
    """
    if images_per_prompt < 1 or (images_per_prompt < 2 and not runs):
        raise ValueError(
            f"images_per_prompt={images_per_prompt}: expected at least {1 if runs else 2}, so that there is something "
            "to compare"
        )
    texts, models = list(dict.fromkeys(prompts)), exported_adapters(runs)
    hash_file = FileHashes(folder / "file_keys.npy")
    record = {"depends_on": fingerprint(settings, models, seed, hash_file=hash_file)}
    if _are_there(folder, record, texts, [BASE, *models], images_per_prompt):
        return folder
    samples = samples_of(texts, images_per_prompt)
    generations = Generations(folder, diffusion, sampling, batch_size, device, seed)
    files = {BASE: generations.fill("the base model", None, samples)}
    files |= {name: generations.fill(name, export, samples) for name, export in models.items()}
    names = {model: [file.relative_to(folder).as_posix() for file in some] for model, some in files.items()}
    starts = range(0, len(samples), images_per_prompt)
    index = [
        {"prompt": text, "images": {model: some[start : start + images_per_prompt] for model, some in names.items()}}
        for text, start in zip(texts, starts, strict=True)
    ]
    write_index(folder, index)
    write_json(folder / RECORD, [record])
    return folder


def _are_there(
    folder: Path, record: Mapping[str, str], prompts: Sequence[str], models: Sequence[str], images_per_prompt: int
) -> bool:
    """Whether the folder has all images, and nothing that they depend on has changed."""
    if not (folder / RECORD).is_file() or not (folder / INDEX).is_file():
        return False
    index = read_json_list(folder / INDEX)
    if read_json_list(folder / RECORD) != [record] or [entry["prompt"] for entry in index] != list(prompts):
        return False
    counts = {model: images_per_prompt for model in models}
    return all(
        {model: len(names) for model, names in entry["images"].items()} == counts
        and all((folder / name).is_file() for names in entry["images"].values() for name in names)
        for entry in index
    )
