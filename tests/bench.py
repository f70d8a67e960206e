"""`make bench`: speed as ratios, each measured side by side in one run. Nothing here passes or fails."""

import io
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import logsigmoid

from t2ifb.data.datamodules import RewardBatch, RewardDataModule
from t2ifb.reward_learning.module import RewardModule
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.weights import CLIP
from tests import bench_tuning
from tests.bench_parts import fit_seconds

PROMPTS, COMPARISONS, WIDTH = 8_878, 136_892, 768
"""ImageRewardDB's training set and the width of CLIP ViT-L/14's embeddings."""
ROUNDS, FILLED, SCORED = 5, 3000, 256
"""Measurements of a ratio; images that go into the cache, and through each scorer."""


@dataclass
class RandomRankings:
    """Rankings of random embeddings, in the place of a data set; 4 to 9 images a prompt, as in ImageRewardDB."""

    images_per_prompt: tuple[int, int] = (4, 9)

    def module(self, grouping: str) -> RewardDataModule:
        """The datamodule over embeddings in memory."""
        from t2ifb.data.batches import EncodedRankings
        from t2ifb.data.embeddings import Embeddings

        rng = np.random.default_rng(0)
        counts = rng.integers(self.images_per_prompt[0], self.images_per_prompt[1] + 1, PROMPTS)
        first = np.cumsum(counts) - counts
        images = rng.standard_normal((counts.sum(), WIDTH), np.float32)
        prompt_of_image = torch.from_numpy(np.repeat(np.arange(PROMPTS), counts))
        every = [np.stack(np.triu_indices(k, 1), 1) + start for k, start in zip(counts, first, strict=True)]
        pairs = np.concatenate(every)
        kept = np.sort(rng.choice(len(pairs), COMPARISONS, replace=False))  # the others are ties
        module = RewardDataModule(None, None, grouping, 256)  # type: ignore[arg-type]
        module._encoded["train"] = EncodedRankings(
            images=Embeddings(images, np.arange(len(images)), "fp32"),
            prompts=Embeddings(rng.standard_normal((PROMPTS, WIDTH), np.float32), np.arange(PROMPTS), "fp32"),
            prompt_ids=tuple(map(str, range(PROMPTS))),
            ranks=torch.arange(len(images)),
            better=torch.from_numpy(pairs[kept, 0].copy()),
            worse=torch.from_numpy(pairs[kept, 1].copy()),
            prompt_of_image=prompt_of_image,
            prompt_of_comparison=prompt_of_image[pairs[kept, 0]],
        )
        return module


def timed(task: Callable[[], Any]) -> Callable[[], float]:
    """Makes what calls a task and gives its wall-clock seconds."""

    def call() -> float:
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    return call


def train(data: RewardDataModule, steps: int) -> float:
    """Some steps through Lightning with the callbacks of the reward run; seconds from the first step to the last."""
    module = RewardModule(MLPHead(WIDTH), partial(torch.optim.Adam, lr=1e-5, fused=True), 0)
    return fit_seconds(module, data.train_dataloader(), steps)


def bare(batches: list[RewardBatch]) -> None:
    """The necessary arithmetic on ready batches: forward, loss, backward, update."""
    head = MLPHead(WIDTH)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-5, fused=True)
    for batch in batches:
        rewards = head(batch.images, batch.prompts)
        loss = -logsigmoid(rewards[batch.better] - rewards[batch.worse]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ratios(ours: Callable[[], float], against: Callable[[], float]) -> list[float]:
    """Seconds of one over seconds of the other, in turns, so that what the machine does besides meets both."""
    return [ours() / against() for _ in range(ROUNDS)]


def main() -> None:
    """Print the ratios."""
    table = Table(title="ratios, measured in turns")
    for column in ("what", "against", "median", "from", "to", "target"):
        table.add_column(column)

    def row(what: str, against: str, measured: list[float], target: str) -> None:
        figures = [f"{figure:.2f}" for figure in (median(measured), min(measured), max(measured))]
        print(what, *figures)  # at once, as a later row may fail
        table.add_row(what, against, *figures, target)

    by_prompt, by_comparison = RandomRankings().module("prompt"), RandomRankings().module("comparison")
    steps = by_prompt.steps_per_epoch
    train(by_prompt, 20)  # warm up
    batches = [by_prompt.train_batch(position) for position in range(steps)]
    epoch = partial(train, by_prompt, steps)
    row("a training epoch", "a bare PyTorch loop", ratios(epoch, timed(lambda: bare(batches))), "at most 1.2")
    naive = partial(train, by_comparison, by_comparison.steps_per_epoch)
    row("grouping=comparison", "grouping=prompt", ratios(naive, epoch), "at least 3")
    row("filling the cache, images a second", "the bare encoder", _filling(), "at least 0.85")
    for name, measured in _scoring():
        row(f"{name}, images a second", "its bare network", measured, "")
    for what, against, measured, target in itertools.chain(bench_tuning.rows(ratios), bench_tuning.saved_rows()):
        row(what, against, measured, target)
    row("table 1 from warm caches", "reading them", _warm_table(), "")
    hydra = partial(_run, "-c", "import hydra")
    hydra()
    for flags in (["--help"], ["+experiment=reward_mlp", "--cfg", "job"]):
        answer = partial(_run, "-m", "t2ifb.train", *flags)
        row(f"t2ifb.train {' '.join(flags)}", "import hydra", ratios(timed(answer), timed(hydra)), "at most 5")
    Console(width=120).print(table)


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _filling() -> list[float]:
    """Rates of filling the cache with shapes pictures over rates of the encoder on ready tensors."""
    from PIL import Image

    from t2ifb.data.embeddings import EmbeddingCache
    from t2ifb.shapes.training.loop import rendered

    source = CLIPSource(f"local-dir:{CLIP}")
    encoder = source.load()
    pixels = rendered("train", FILLED, seed=0).images
    ready = [batch.float() / 255 for batch in pixels.split(64)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        paths = []
        for number, image in enumerate(pixels):
            paths.append(Path(folder) / f"{number}.webp")
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1], lossless=True)
        empty = (EmbeddingCache(Path(folder) / f"cache-{number}", source) for number in itertools.count())
        [encoder.encode_images(batch) for batch in ready[:4]]
        bare_encoder = timed(lambda: [encoder.encode_images(batch) for batch in ready])
        return ratios(bare_encoder, timed(lambda: next(empty).fill(paths, [])))


def _scoring() -> Iterator[tuple[str, list[float]]]:
    """Rates of the scorers of the embedded world over rates of their networks on prepared pixels and tokens."""
    from t2ifb.scorers import AestheticScore, BLIPScore, CLIPScore, ImageReward
    from t2ifb.scorers.preprocess import preprocess
    from t2ifb.shapes.training.loop import rendered
    from t2ifb.shapes.weights import AESTHETIC, BLIP, IMAGE_REWARD

    seen = rendered("test", SCORED, seed=0)
    prompts = [[scene.prompt for scene in seen.scenes[start : start + 64]] for start in range(0, SCORED, 64)]
    batches = list(zip((pixels.float() / 255 for pixels in seen.images.split(64)), prompts, strict=True))
    encoder = CLIPSource(f"local-dir:{CLIP}").load()
    clip: Any = encoder.model
    aesthetic = AestheticScore.from_pretrained(AESTHETIC, encoder)
    seen_by_clip = [preprocess(images, encoder.image_size, encoder._mean, encoder._std) for images, _ in batches]
    tokens = [encoder._tokenizer(texts) for _, texts in batches]
    networks: dict[Any, Callable[[], Any]] = {
        CLIPScore(encoder): lambda: [
            (clip.encode_image(pixels), clip.encode_text(ids)) for pixels, ids in zip(seen_by_clip, tokens, strict=True)
        ],
        aesthetic: lambda: [aesthetic.head(clip.encode_image(pixels)) for pixels in seen_by_clip],
    }
    for scorer in (BLIPScore.from_pretrained(BLIP), ImageReward.from_pretrained(IMAGE_REWARD)):
        ready = [(scorer.blip.to_pixels(images), *scorer.prompts(texts, images)) for images, texts in batches]
        networks[scorer] = lambda scorer=scorer, ready=ready: [scorer.score_tokens(*batch) for batch in ready]
    for scorer, network in networks.items():
        with torch.inference_mode():
            whole = timed(lambda scorer=scorer: [scorer(*batch) for batch in batches])
            yield scorer.name, ratios(timed(network), whole)


def _warm_table() -> list[float]:
    """Seconds of table 1 whose scores are all there over seconds of reading its rankings and scores."""
    from PIL import Image

    from t2ifb.data.datasets.imagereward_db import ImageRewardDB
    from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
    from t2ifb.evaluation.scorer_benchmark import ScorerBenchmark
    from t2ifb.scorers import AestheticScore, BLIPScore, CLIPScore, ImageReward
    from t2ifb.shapes.training.loop import rendered
    from t2ifb.shapes.weights import AESTHETIC, BLIP, IMAGE_REWARD

    seen = rendered("test", SCORED, seed=0)
    pixels = seen.images.permute(0, 2, 3, 1).numpy()
    records = [
        Record(
            str(number // 4), seen.scenes[4 * (number // 4)].prompt, "", Image.fromarray(image), 1 + number % 4, 4, 4, 4
        )
        for number, image in enumerate(pixels)
    ]
    clip = partial(CLIPSource, f"local-dir:{CLIP}")
    scorers = {
        "clip_score": partial(CLIPScore.from_pretrained, source=clip),
        "aesthetic_score": partial(AestheticScore.from_pretrained, source=str(AESTHETIC), encoder=clip),
        "blip_score": partial(BLIPScore.from_pretrained, source=str(BLIP)),
        "image_reward": partial(ImageReward.from_pretrained, source=str(IMAGE_REWARD)),
    }
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        write_imagereward_db(folder / "data", "test", records)
        table = ScorerBenchmark(ImageRewardDB(folder / "data"), scorers, folder / "scores", device="cpu")

        def read() -> None:
            rankings = table.dataset.rankings("test")
            images = [image for ranking in rankings for image in ranking.images]
            table.cache.fill(scorers, images, [ranking.prompt for ranking in rankings for _ in ranking.images])

        table.run(folder)
        return ratios(timed(lambda: table.run(folder)), timed(read))


if __name__ == "__main__":
    main()
