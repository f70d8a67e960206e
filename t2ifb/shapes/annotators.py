"""Simulated annotators: rankings of the base model's own images, in ImageRewardDB's file layout."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from t2ifb.data.datasets.imagereward_db import Record, write_imagereward_db
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.grammar import SPLITS, scenes
from t2ifb.shapes.samples import SAMPLERS, Chunk, chunks, make_images
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.devices import fast_cpu_dtype
from t2ifb.utils.files import file_lock, make_folder, sha256_file, write_json

REPORT = "build.json"
"""File with the build settings and measurements. It exists only for a complete data set."""
GOLD_PARTS = ("gold", "alignment", "fidelity")
NOISE, TIE_WIDTH = 0.105, 0.02
"""Annotator noise scale and tie width, in units of gold. Two annotators agree on 77 % of pairs."""
PROMPTS = {"train": 1200, "validation": 100, "test": 200, "compositional": 100}
"""Number of ranked prompts per split."""
SIZES = {
    "small": {"train": 300, "validation": 50, "test": 100, "compositional": 50},
    "full": PROMPTS,
    "large": PROMPTS | {"train": 4800},
}
"""Sizes of the data set. Smaller ones have the first prompts of larger ones."""
JUDGES_PROMPTS, JUDGES_SEED = {"train": 1200, "validation": 200}, 1000
"""Number of prompts per split that are ranked for the judges (validation only for the metrics of their cards), and the
seed of the draw."""
IMAGES_PER_PROMPT = (4, 9)
"""Minimum and maximum images per prompt, inclusive."""
VERSION = 2
"""Version of gold and the annotators. Data sets of other versions are not reused."""


@dataclass(frozen=True)
class WorldSettings:
    """Settings that determine a data set; stored with it as `build.json`."""

    prompts: dict[str, int]
    images_per_prompt: tuple[int, int]
    noise: float
    tie_width: float
    seed: int
    samplers: tuple[tuple[int, float], ...] = SAMPLERS
    version: int = VERSION
    weights: str = field(default_factory=lambda: _hash_of(PIPELINE))

    def to_json(self) -> dict[str, Any]:
        """The settings as they are read back from JSON."""
        return dict(json.loads(json.dumps(asdict(self))))


def build(
    folder: str | Path,
    prompts: dict[str, int] | None = None,
    size: str = "full",
    images_per_prompt: tuple[int, int] = IMAGES_PER_PROMPT,
    noise: float = NOISE,
    tie_width: float = TIE_WIDTH,
    seed: int = 0,
) -> dict[str, float]:
    """Build the preference data of the `shapes` domain, or check that it exists.

    Images are sampled from the base model with varied guidance and numbers of steps. An annotator's opinion of an image
    is its gold score plus Gumbel noise, so that pairs follow a Bradley-Terry model, as human rankings do (arXiv
    2304.05977). Images that are closer than `tie_width` share a rank.

    Args:
        folder: Target folder. An interrupted build continues where it stopped.
        prompts: Number of prompts per split; by default those of `size`.
        size: One of `SIZES`.
        images_per_prompt: Minimum and maximum images per prompt, inclusive.
        noise: Scale of the Gumbel noise, in units of gold (0 to 1).
        tie_width: Maximum difference of opinion within one rank, in units of gold.
        seed: Seed of prompts, images and opinions.

    Returns:
        The agreement of two annotators on comparisons that both decide (`annotator_agreement`), the share of tied pairs
        (`tie_share`), and the mean gold of the images with its components. Empty for a folder whose data were not built
        here; it is left unchanged.

    Raises:
        ValueError: The size is unknown, or the folder contains a data set built with other settings.
    """
    if size not in SIZES:
        raise ValueError(f"size={size} must be one of {', '.join(SIZES)}")
    folder = Path(folder).expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT).exists():
        return {}
    counts = dict(prompts or SIZES[size])
    if unknown := set(counts) - set(SPLITS):
        raise ValueError(f"Unknown split {', '.join(sorted(unknown))}; the splits are {', '.join(SPLITS)}.")
    low, high = images_per_prompt
    settings = WorldSettings(counts, (low, high), noise, tie_width, seed)
    with file_lock(folder.with_name(folder.name + ".lock")):
        report = folder / REPORT
        if report.exists():
            return _existing(report, settings)
        return _build(folder, settings)


def _hash_of(folder: Path) -> str:
    """Hash of all weights in a folder."""
    hashes = [sha256_file(file) for file in sorted(folder.rglob("*.safetensors"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _existing(report: Path, settings: WorldSettings) -> dict[str, float]:
    """Measurements of an existing data set.

    Raises:
        ValueError: The data set was built with other settings.
    """
    found, asked = json.loads(report.read_text(encoding="utf-8")), settings.to_json()
    there = found["settings"]
    if differing := [f"{key}={there.get(key)}, not {asked[key]}" for key in asked if there.get(key) != asked[key]]:
        raise ValueError(
            f"{report.parent} was built with {'; '.join(differing)}. Delete that folder to rebuild it, or set "
            "another one with dataset.source."
        )
    return dict(found["figures"])


def _build(folder: Path, settings: WorldSettings) -> dict[str, float]:
    parts, staging = (folder.with_name(folder.name + ending) for ending in (".parts", ".staging"))
    _begin(parts, settings)
    shutil.rmtree(staging, ignore_errors=True)
    jobs = jobs_of(settings.prompts, settings.images_per_prompt, settings.seed)
    make_images([job for some in jobs.values() for job in some], parts)
    tally = Tally()
    for split, some in jobs.items():
        records = [record for job in some for record in annotate(job, parts, settings, tally)]
        write_imagereward_db(staging, split, records, images_per_archive=4000)
    figures = tally.figures()
    write_json(staging / REPORT, {"settings": settings.to_json(), "figures": figures})
    staging.rename(folder)  # which is missing or empty
    shutil.rmtree(parts)
    return figures


def judges_prompts(split: str, seed: int = 0) -> frozenset[str]:
    """Training prompts of the judges with this seed. They are disjoint from the data set's `PROMPTS`."""
    return frozenset(scene.prompt for job in judges_jobs(split, seed) for scene in job.scenes)


def judges_jobs(split: str, seed: int = 0) -> list[Chunk]:
    """Chunks to sample for the judges; empty for splits that they do not use."""
    count = JUDGES_PROMPTS.get(split, 0)
    usual = frozenset(scene.prompt for scene in scenes(split, PROMPTS[split], seed=0))
    return list(chunks(split, count, IMAGES_PER_PROMPT, JUDGES_SEED + seed, exclude=usual))


def jobs_of(prompts: dict[str, int], images_per_prompt: tuple[int, int], seed: int) -> dict[str, list[Chunk]]:
    """Chunks to sample for each split.

    If a split is larger than the default or has another seed, the prompts of the shipped judges are excluded from it,
    so that the judges stay independent. Other prompts with the same meaning may occur.
    """
    usual = {s for s, count in prompts.items() if count <= PROMPTS[s] and seed == 0}
    kept_out = {s: frozenset() if s in usual else judges_prompts(s) for s in prompts}
    return {s: list(chunks(s, count, images_per_prompt, seed, kept_out[s])) for s, count in prompts.items()}


def _begin(parts: Path, settings: WorldSettings) -> None:
    """Keep the images of an interrupted build with the same settings; delete others."""
    started, here = parts / "settings.json", settings.to_json() | {"precision": str(fast_cpu_dtype())}
    if started.exists() and json.loads(started.read_text(encoding="utf-8")) != here:
        shutil.rmtree(parts)
    make_folder(parts)
    write_json(started, here)


@dataclass
class Tally:
    """Counters of the annotation."""

    same: int = 0
    decided: int = 0
    ties: int = 0
    pairs: int = 0
    gold: dict[str, list[NDArray[np.float32]]] = field(default_factory=lambda: {name: [] for name in GOLD_PARTS})

    def compare(self, ranks: list[int], others: list[int]) -> None:
        """Count agreements of two annotators on a prompt, among pairs that both decide."""
        upper = np.triu_indices(len(ranks), 1)
        one, other = (np.sign(np.subtract.outer(r, r))[upper] for r in (ranks, others))
        both = (one != 0) & (other != 0)
        self.same += int((one == other)[both].sum())
        self.decided += int(both.sum())
        self.ties += int((one == 0).sum())
        self.pairs += len(one)

    def figures(self) -> dict[str, float]:
        """Agreement, share of ties, and means of gold and its components."""
        shares = {
            "annotator_agreement": self.same / max(1, self.decided),
            "tie_share": self.ties / max(1, self.pairs),
        }
        return shares | {name: float(np.concatenate(values).mean()) for name, values in self.gold.items()}


def opinions(gold: NDArray[np.float32], noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """One annotator's opinion of each image: gold plus Gumbel noise (Luce's choice model)."""
    return gold + rng.gumbel(0, noise, len(gold))


def rank(opinion: NDArray[np.float64], tie_width: float) -> list[int]:
    """Ranks, 1 is best. An image shares the rank of the best image at most `tie_width` above it."""
    ranks = [0] * len(opinion)
    current, leader = 0, np.inf
    for index in np.argsort(-opinion, kind="stable"):
        if leader - opinion[index] > tie_width:
            current, leader = current + 1, opinion[index]
        ranks[index] = current
    return ranks


class SimulatedAnnotator:
    """Ranks images of the domain: gold with noise and ties, as in the data set.

    The noise is a function of the seed, the prompt and the images, so that an interrupted session can be continued.
    """

    def __init__(self, noise: float = NOISE, tie_width: float = TIE_WIDTH, seed: int = 0) -> None:
        """Store the settings; see `build`. Annotators with different seeds have different opinions."""
        self.gold, self.noise, self.tie_width, self.seed = GoldScore(), noise, tie_width, seed

    def __call__(self, images: Sequence[Image.Image], prompt: str) -> list[int]:
        """Ranks of images of 64 x 64 pixels for a prompt; 1 is best, ties allowed.

        Raises:
            ValueError: The prompt is not in the grammar, or an image has another size.
        """
        shown = np.stack([np.array(image) for image in images])
        gold = self.gold(torch.from_numpy(shown).permute(0, 3, 1, 2) / 255, [prompt] * len(images)).numpy()
        question = hashlib.sha256(prompt.encode() + shown.tobytes()).digest()
        rng = np.random.default_rng([self.seed, 3, *question])
        return rank(opinions(gold, self.noise, rng), self.tie_width)


def annotate(job: Chunk, parts: Path, settings: WorldSettings, tally: Tally) -> Iterator[Record]:
    """Rank and rate the images of a chunk."""
    with np.load(job.file(parts)) as saved:
        images, gold = saved["images"], {name: saved[name] for name in GOLD_PARTS}
    for name in GOLD_PARTS:
        tally.gold[name].append(gold[name])
    start = 0
    for scene, count in zip(job.scenes, job.counts, strict=True):
        rows = slice(start, start + count)
        rng = np.random.default_rng([*job.noise_keys[start], 2])
        opinion, second = (opinions(gold["gold"][rows], settings.noise, rng) for _ in range(2))
        ranks = rank(opinion, settings.tie_width)
        tally.compare(ranks, rank(second, settings.tie_width))
        alignment, fidelity = (gold[name][rows] + rng.normal(0, settings.noise, count) for name in GOLD_PARTS[1:])
        for index in range(count):
            yield Record(
                prompt_id=f"{job.split}-{job.noise_keys[start][2]:06d}",
                prompt=scene.prompt,
                classification=scene.family,
                image=Image.fromarray(images[start + index]),
                rank=ranks[index],
                overall_rating=_rating(opinion[index]),
                image_text_alignment_rating=_rating(alignment[index]),
                fidelity_rating=_rating(fidelity[index]),
            )
        start += count


def _rating(value: float) -> int:
    """Map [0, 1] to ImageRewardDB's scale of 1 to 7."""
    return int(np.clip(round(1 + 6 * value), 1, 7))
