"""Simulated annotators: rankings of the base model's own images, in ImageRewardDB's file layout."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from t2ifb.data.files import atomic_write, file_lock, sha256_file
from t2ifb.data.imagereward_db import Record, write_imagereward_db
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.grammar import SPLITS, Scene, scenes
from t2ifb.shapes.weights import PIPELINE, load_pipeline

SAMPLERS: tuple[tuple[int, float], ...] = ((20, 4.0), (14, 4.0), (14, 2.0), (10, 6.0), (10, 3.0), (8, 1.5))
"""Denoising steps and guidance scales that the ranked images are drawn with, all equally often."""
CHUNK = 50
"""Prompts whose images are generated and saved together: what an interruption loses at the most."""


@dataclass(frozen=True)
class WorldSettings:
    """What a built data set depends on; written beside it as `build.json`."""

    prompts: dict[str, int]
    images_per_prompt: tuple[int, int]
    noise: float
    tie_width: float
    seed: int
    weights: str


def build(
    folder: str | Path,
    prompts: dict[str, int] | None = None,
    images_per_prompt: tuple[int, int] = (4, 9),
    noise: float = 0.08,
    tie_width: float = 0.02,
    seed: int = 0,
) -> dict[str, float]:
    """Build the preference data of the shapes world, or check that it is already there.

    Images come from the base model, with varied guidance and numbers of steps. An annotator's opinion of an image
    is its gold score plus Gumbel noise, so that pairs follow a Bradley-Terry model (as rankings of people do,
    arXiv 2304.05977); images that are closer than `tie_width` share a rank.

    Args:
        folder: Where the data set goes. An interrupted build goes on where it stopped.
        prompts: How many prompts of each split.
        images_per_prompt: Fewest and most images of one prompt, both included.
        noise: Scale of the Gumbel noise, in units of gold (0 to 1).
        tie_width: Largest difference of opinion within one rank, in units of gold.
        seed: Of prompts, images and opinions.

    Returns:
        The measured agreement of two annotators on comparisons both decide (`annotator_agreement`), the share of
        tied pairs (`tie_share`), and the mean gold of the images with its parts.

    Raises:
        ValueError: If the folder holds a data set that was built with other settings.
    """
    folder = Path(folder)
    counts = dict(prompts or {"train": 1100, "validation": 120, "test": 240, "compositional": 120})
    if unknown := set(counts) - set(SPLITS):
        raise ValueError(f"Unknown split {', '.join(sorted(unknown))}; the shapes world has {', '.join(SPLITS)}.")
    low, high = images_per_prompt
    weights = sha256_file(PIPELINE / "unet" / "diffusion_pytorch_model.safetensors")[:16]
    settings = json.loads(json.dumps(asdict(WorldSettings(counts, (low, high), noise, tie_width, seed, weights))))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(folder.name + ".lock")):
        report = folder / "build.json"
        if report.exists():
            return _existing(report, settings)
        return _build(folder, settings)


def _existing(report: Path, settings: dict[str, object]) -> dict[str, float]:
    found = json.loads(report.read_text(encoding="utf-8"))
    if found["settings"] != settings:
        differing = [key for key in settings if settings[key] != found["settings"].get(key)]
        raise ValueError(
            f"{report.parent} was built with other {', '.join(differing)}: {[found['settings'].get(k) for k in differing]}"
            f" instead of {[settings[k] for k in differing]}. Delete that folder to build it anew, or name another one."
        )
    return dict(found["figures"])


def _build(folder: Path, settings: dict[str, object]) -> dict[str, float]:
    parts = folder.with_name(folder.name + ".parts")
    parts.mkdir(exist_ok=True)
    started = parts / "settings.json"
    if started.exists() and json.loads(started.read_text(encoding="utf-8")) != settings:
        shutil.rmtree(parts)
        parts.mkdir()
    with atomic_write(started) as file:
        file.write(json.dumps(settings).encode())
    seed, counts = int(str(settings["seed"])), settings["prompts"]
    assert isinstance(counts, dict)
    jobs = [job for split in SPLITS if split in counts for job in _chunks(split, counts[split], settings)]
    staging = folder.with_name(folder.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)
    with Progress() as bar:
        task = bar.add_task("generating and judging images", total=sum(len(job.noise_keys) for job in jobs))
        pipeline = None
        for job in jobs:
            path = parts / f"{job.split}_{job.number}.npz"
            if not path.exists():
                pipeline = pipeline or load_pipeline(torch.bfloat16)
                images = _generate(pipeline, job)
                gold = GoldScore().parts(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, job.image_prompts)
                with atomic_write(path) as file:
                    np.savez(file, images=images, **{key: value.numpy() for key, value in gold.items()})
            bar.update(task, advance=len(job.noise_keys))
    agreements: list[tuple[int, int, int, int]] = []
    gold_parts: dict[str, list[NDArray[np.float32]]] = {"gold": [], "alignment": [], "fidelity": []}
    for split in counts:
        records: list[Record] = []
        for job in (job for job in jobs if job.split == split):
            with np.load(parts / f"{job.split}_{job.number}.npz") as saved:
                for key in gold_parts:
                    gold_parts[key].append(saved[key])
                records += _annotate(job, saved["images"], {k: saved[k] for k in gold_parts}, settings, agreements)
        write_imagereward_db(staging, split, records, images_per_archive=4000)
    same, decided, ties, pairs = np.array(agreements).sum(0)
    figures = {"annotator_agreement": same / decided, "tie_share": ties / pairs}
    figures |= {key: float(np.concatenate(values).mean()) for key, values in gold_parts.items()}
    with atomic_write(staging / "build.json") as file:
        file.write(json.dumps({"settings": settings, "figures": figures, "seed": seed}, indent=2).encode())
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    shutil.rmtree(parts)
    return figures


@dataclass(frozen=True)
class _Chunk:
    """Some prompts of one split and the images to make for them."""

    split: str
    number: int
    scenes: list[Scene]
    counts: list[int]
    samplers: list[int]
    noise_keys: list[tuple[int, ...]]

    @property
    def image_prompts(self) -> list[str]:
        return [scene.prompt for scene, count in zip(self.scenes, self.counts, strict=True) for _ in range(count)]


def _chunks(split: str, prompts: int, settings: dict[str, object]) -> Iterator[_Chunk]:
    seed, (low, high) = int(str(settings["seed"])), settings["images_per_prompt"]  # type: ignore[misc]
    rng = np.random.default_rng([seed, SPLITS.index(split), 1])
    drawn = scenes(split, prompts, seed)
    for number, start in enumerate(range(0, prompts, CHUNK)):
        chunk = drawn[start : start + CHUNK]
        counts = [int(count) for count in rng.integers(low, high + 1, len(chunk))]
        keys = [(seed, SPLITS.index(split), start + i, j) for i, count in enumerate(counts) for j in range(count)]
        samplers = [int(sampler) for sampler in rng.integers(len(SAMPLERS), size=len(keys))]
        yield _Chunk(split, number, chunk, counts, samplers, keys)


@torch.no_grad()
def _generate(pipeline: object, job: _Chunk, batch: int = 64) -> NDArray[np.uint8]:
    """Images (N, 64, 64, 3) of a chunk; those with the same sampler are denoised together."""
    images = np.empty((len(job.noise_keys), 64, 64, 3), np.uint8)
    prompts = job.image_prompts
    for sampler, (steps, guidance) in enumerate(SAMPLERS):
        rows = [row for row, chosen in enumerate(job.samplers) if chosen == sampler]
        for start in range(0, len(rows), batch):
            picked = rows[start : start + batch]
            noise = [np.random.default_rng(job.noise_keys[row]).standard_normal((4, 16, 16)) for row in picked]
            output = pipeline(  # type: ignore[operator]
                [prompts[row] for row in picked],
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=torch.from_numpy(np.stack(noise)).to(torch.bfloat16),
                output_type="np",
            )
            images[picked] = (output.images * 255).round().astype(np.uint8)
    return images


def opinions(gold: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """One annotator's opinion of each image: gold plus Gumbel noise (Luce's choice model)."""
    return gold + rng.gumbel(0, noise, len(gold))


def rank(opinion: NDArray[np.float64], tie_width: float) -> list[int]:
    """Ranks, 1 is best; an image shares the rank of the best one that is at most `tie_width` above it."""
    ranks = [0] * len(opinion)
    current, leader = 0, np.inf
    for index in np.argsort(-opinion, kind="stable"):
        if leader - opinion[index] > tie_width:
            current, leader = current + 1, opinion[index]
        ranks[index] = current
    return ranks


def _annotate(
    job: _Chunk,
    images: NDArray[np.uint8],
    gold: dict[str, NDArray[np.float32]],
    settings: dict[str, object],
    agreements: list[tuple[int, int, int, int]],
) -> Iterator[Record]:
    noise, tie_width = float(str(settings["noise"])), float(str(settings["tie_width"]))
    start = 0
    for scene, count in zip(job.scenes, job.counts, strict=True):
        rows = slice(start, start + count)
        rng = np.random.default_rng([*job.noise_keys[start], 2])
        opinion = opinions(gold["gold"][rows], noise, rng)
        ranks, second = (np.array(rank(o, tie_width)) for o in (opinion, opinions(gold["gold"][rows], noise, rng)))
        one, other = (np.sign(r[:, None] - r[None])[np.triu_indices(count, 1)] for r in (ranks, second))
        both = (one != 0) & (other != 0)
        agreements.append((int((one == other)[both].sum()), int(both.sum()), int((one == 0).sum()), len(one)))
        parts = {key: gold[key][rows] + rng.normal(0, noise, count) for key in ("alignment", "fidelity")}
        key = f"{job.split}-{job.noise_keys[start][2]:06d}"
        for index in range(count):
            yield Record(
                prompt_id=key,
                prompt=scene.prompt,
                classification=_family(scene),
                image=Image.fromarray(images[start + index]),
                rank=int(ranks[index]),
                overall_rating=_rating(opinion[index]),
                image_text_alignment_rating=_rating(parts["alignment"][index]),
                fidelity_rating=_rating(parts["fidelity"][index]),
            )
        start += count


def _rating(value: float) -> int:
    """From [0, 1] to ImageRewardDB's scale of 1 to 7."""
    return int(np.clip(round(1 + 6 * value), 1, 7))


def _family(scene: Scene) -> str:
    distinct = len(set(scene.things))
    if scene.relation:
        return "relation"
    if distinct == 1:
        return "one" if len(scene.things) == 1 else "count"
    return {2: "pair" if len(scene.things) == 2 else "count_and_one", 3: "trio"}[distinct]
