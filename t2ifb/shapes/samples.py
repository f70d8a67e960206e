"""Images of the base model for the annotators, with varied guidance and steps, one process per core."""

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import RLock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tqdm import tqdm  # type: ignore[import-untyped]

from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.grammar import SPLITS, Scene, scenes
from t2ifb.shapes.weights import load_pipeline
from t2ifb.utils.devices import fast_cpu_dtype
from t2ifb.utils.files import atomic_write

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SAMPLERS: tuple[tuple[int, float], ...] = ((8, 4.0), (6, 10.0), (4, 8.0), (5, 1.0), (3, 1.0))
"""Denoising steps and guidance scales of the ranked images, all equally often: the base model at its best, too much
guidance (aligned, but stained and merged), none (off the prompt), and too few steps."""
CHUNK = 50
"""Prompts whose images are generated and saved together; an interruption loses at most these."""


@dataclass(frozen=True)
class Chunk:
    """Prompts of one split and the images to sample for them."""

    split: str
    number: int
    scenes: list[Scene]
    counts: list[int]
    samplers: list[int]
    noise_keys: list[tuple[int, int, int, int]]

    @property
    def image_prompts(self) -> list[str]:
        """The prompt of each image."""
        return [scene.prompt for scene, count in zip(self.scenes, self.counts, strict=True) for _ in range(count)]

    def file(self, folder: Path) -> Path:
        """Temporary file of the images and their gold scores during a build."""
        return folder / f"{self.split}_{self.number}.npz"


def chunks(
    split: str,
    prompts: int,
    images_per_prompt: tuple[int, int],
    seed: int,
    exclude: frozenset[str] = frozenset(),
) -> Iterator[Chunk]:
    """Draw prompts of a split except `exclude`, the number of images of each, and their sampler settings."""
    rng = np.random.default_rng([seed, SPLITS.index(split), 1])
    drawn = scenes(split, prompts, seed, exclude)
    low, high = images_per_prompt
    for number, start in enumerate(range(0, prompts, CHUNK)):
        some = drawn[start : start + CHUNK]
        counts = [low + int(more) for more in rng.binomial(high - low, 0.3, len(some))]  # mostly few, as in real data
        keys = [(seed, SPLITS.index(split), start + i, j) for i, count in enumerate(counts) for j in range(count)]
        samplers = [int(sampler) for sampler in rng.integers(len(SAMPLERS), size=len(keys))]
        yield Chunk(split, number, some, counts, samplers, keys)


def make_images(jobs: list[Chunk], parts: Path) -> None:
    """Generate and score the images of all missing chunks, one process per core."""
    missing = [job for job in jobs if not job.file(parts).exists()]
    total = sum(len(job.noise_keys) for job in jobs)
    workers = min(len(missing), os.cpu_count() or 1)
    with _progress() as bar:
        done = total - sum(len(job.noise_keys) for job in missing)
        task = bar.add_task("generating and scoring images", total=total, completed=done)
        if not missing:
            return
        # Small convolutions run faster with several processes than with several threads.
        others = set(active_children())
        with ProcessPoolExecutor(workers, get_context("spawn"), _set_up_worker, (missing,)) as pool:
            try:
                with _ctrl_c_held_back():  # permanently in the workers, which this process ends
                    running = {pool.submit(_make_chunk, n, job.file(parts)): job for n, job in enumerate(missing)}
                for future in as_completed(running):
                    future.result()
                    bar.update(task, advance=len(running[future].noise_keys))
            except BaseException:
                for worker in set(active_children()) - others:
                    worker.terminate()  # unsaved chunks are regenerated next time
                raise


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Defer Ctrl-C until the end of the block. Processes started inside never receive it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


_chunks: list[Chunk] = []
"""A worker's chunks, passed once, because a full queue of large items may block after the workers end."""


def _set_up_worker(missing: list[Chunk]) -> None:
    """Use one thread and end with the parent, so that no worker writes after a killed build."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    # The usual lock of several processes would be left behind, with a warning, by a worker that is ended.
    tqdm.set_lock(RLock())
    _chunks.extend(missing)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make_chunk(number: int, path: Path) -> None:
    job = _chunks[number]
    images = _generate(_pipeline(), job)
    gold = GoldScore().parts(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, job.image_prompts)
    with atomic_write(path) as file:
        arrays: dict[str, Any] = {key: value.numpy() for key, value in gold.items()}
        np.savez(file, images=images, **arrays)


@cache
def _pipeline() -> "StableDiffusionPipeline":
    return load_pipeline(fast_cpu_dtype())


@torch.no_grad()
def _generate(pipeline: "StableDiffusionPipeline", job: Chunk, batch: int = 64) -> NDArray[np.uint8]:
    """Images (N, 64, 64, 3) of a chunk; images with the same sampler settings are denoised together."""
    images = np.empty((len(job.noise_keys), 64, 64, 3), np.uint8)
    prompts = job.image_prompts
    for sampler, (steps, guidance) in enumerate(SAMPLERS):
        rows = [row for row, chosen in enumerate(job.samplers) if chosen == sampler]
        for start in range(0, len(rows), batch):
            picked = rows[start : start + batch]
            noise = [np.random.default_rng(job.noise_keys[row]).standard_normal((4, 16, 16)) for row in picked]
            output = pipeline(
                [prompts[row] for row in picked],
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=torch.from_numpy(np.stack(noise)).to(pipeline.unet.dtype),
                output_type="np",
            )
            images[picked] = (output.images * 255).round().astype(np.uint8)
    return images
