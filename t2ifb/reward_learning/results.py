"""Final results of a reward run: table, figures and model card."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.progress import Progress, track
from torch import Tensor, nn

from t2ifb.data.batches import ComparisonIndex, EncodedRankings
from t2ifb.data.datamodules import RewardDataModule
from t2ifb.data.images import pixel_batches
from t2ifb.data.rankings import open_image
from t2ifb.evaluation import plots
from t2ifb.evaluation.accuracy_table import AccuracyTable, display_names
from t2ifb.evaluation.metrics import calibration, evaluate_preference, ordered_pairs
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import CEILING, markdown, parts_table, screen_table, show, write_table
from t2ifb.reward_learning.module import RewardModule
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.pair_encoder import ImageRewardSource
from t2ifb.scorers.reward_model import RewardModel
from t2ifb.training.run_folder import RunFolder

SHEET = 8
"""Number of rankings in the figure and in the table of examples."""
MINE = "this model"
MARGIN = 0.02
"""Minimum difference for ordering two images by a component of the ground truth, on its scale (0 to 1)."""
BATCH = 64
"""Images per scorer call."""


class RewardResults:
    """Scores of one split's rankings by the trained head, the baselines and the ceiling.

    Attributes:
        split: Split of the rankings.
        rewards: Rewards (N,) of the split's images.
        results: Preference accuracy by scorer.
    """

    def __init__(
        self,
        data: RewardDataModule,
        split: str,
        head: nn.Module,
        embeddings: tuple[Tensor, Tensor],
        baselines: Mapping[str, nn.Module],
        ceiling: nn.Module | None,
        ceiling_parts: Sequence[str],
        published: Mapping[str, float],
        seed: int,
    ) -> None:
        """Score everything; see `RewardTrainer` for the arguments, and `embedded` for the embeddings."""
        self.split = split
        self.rankings, self.encoded = data.rankings(split), data.encoded(split)
        self.seed = seed
        self.embeddings_of = data.feed.embeddings_of
        self.images, self.prompts = embeddings
        with torch.no_grad():
            self.rewards = head(self.images, self.prompts).float()
            exact = getattr(data.feed, "storage", None) == "fp32"  # other precisions are rounded already
            self.flips = {name: self._flips(head, dtype) for name, dtype in _HALF.items()} if exact else None
        names = display_names(baselines)
        scores = {names[key]: self._baseline(scorer) for key, scorer in baselines.items()}
        scores[MINE] = self.rewards
        if ceiling is not None:
            scores[CEILING] = self._from_pixels(ceiling)
        index = ComparisonIndex.build(self.rankings)
        self.board = AccuracyTable(index, {name: score.numpy() for name, score in scores.items()}, published, seed)
        self.results = self.board.results
        self.by_part = {part: self._judge_by(ceiling, part) for part in ceiling_parts}
        self.calibration = calibration(self.rewards.numpy(), index.better, index.worse, seed=seed)

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Print and save the table; return the metrics for `summary.json`."""
        rows = self.board.rows()
        show(screen_table(rows, self.board.index.texts, self.split))
        write_table(rows, run.path, f"table_{self.split}")
        if self.by_part:
            show(parts_table(self.by_part, "Agreement with the order by each component of the ground truth"))
        mine = self.results[MINE]
        measured = {
            "accuracy": mine.accuracy.mean,
            "accuracy_interval": [mine.accuracy.low, mine.accuracy.high],
            "accuracy_by_prompt": mine.accuracy_by_prompt.mean,
            "ties": mine.ties,
            "comparisons": mine.comparisons,
            "calibration_error": self.calibration.error,
            "flipped_comparisons": self.flips,
            "table": {name: result.accuracy.mean for name, result in self.results.items()},
            "by_part": {part: {n: i.mean for n, i in scorers.items()} for part, scorers in self.by_part.items()},
        }
        return {f"{self.split}/{name}": value for name, value in measured.items()}

    def draw(self, run: RunFolder) -> None:
        """Draw the figures: reward by rank, calibration, and rankings with rewards."""
        ranks, prompts = self.encoded.ranks.numpy(), self.encoded.prompt_of_image.numpy()
        plots.reward_by_rank(self.rewards.numpy(), ranks, prompts, run.path / "reward_by_rank.png")
        plots.calibration_plot(self.calibration, run.path / "calibration.png")
        shown = [(r.prompt, [open_image(image) for image in r.images], r.ranks) for r in self.rankings[:SHEET]]
        plots.ranking_sheet(shown, self._by_ranking()[:SHEET], run.samples / "rankings.png")

    def card(self) -> str:
        """Metrics for the model card."""
        percent = {name: result.accuracy.scaled(100) for name, result in self.results.items()}
        lines = [[name, f"{each.mean:.2f}", f"{each.low:.2f} to {each.high:.2f}"] for name, each in percent.items()]
        table = markdown(["scorer", "preference accuracy %", "95 % interval"], lines)
        return f"Rankings of the split `{self.split}`:\n\n{table}\nSeed {self.seed}."

    def examples(self) -> list[dict[str, Any]]:
        """Example rankings, one row per image: prompt, image, rank, reward."""
        return [
            {"prompt": ranking.prompt, "image": open_image(image), "rank": rank, "reward": reward}
            for ranking, rewards in zip(self.rankings[:SHEET], self._by_ranking(), strict=False)
            for image, rank, reward in zip(ranking.images, ranking.ranks, rewards, strict=True)
        ]

    def _by_ranking(self) -> list[list[float]]:
        sizes = [len(ranking.images) for ranking in self.rankings]
        return [part.tolist() for part in self.rewards.split(sizes)]

    def _judge_by(self, ceiling: Any, part: str) -> dict[str, Interval]:
        """Accuracy of each scorer on the order of images by one component of the ground truth."""
        truth = self._from_pixels(lambda images, prompts: ceiling.parts(images, prompts)[part], part)
        pairs = ordered_pairs(truth.numpy(), self.encoded.prompt_of_image.numpy(), MARGIN)
        scores = self.board.scores
        return {name: evaluate_preference(score, *pairs, seed=self.seed).accuracy for name, score in scores.items()}

    def _baseline(self, scorer: nn.Module) -> Tensor:
        """Scores of a baseline: from cached embeddings if it uses the same encoder, otherwise from pixels."""
        source = getattr(scorer.encoder if isinstance(scorer, RewardModel) else scorer, "source", None)
        frozen = isinstance(source, (CLIPSource, ImageRewardSource)) and not source.trainable_layers
        same = frozen and source is not None and source.fingerprint() == self.embeddings_of
        if same and isinstance(scorer, CLIPScore):
            return scorer.score_embeddings(self.images, self.prompts)
        if same and isinstance(scorer, RewardModel):
            with torch.no_grad():
                scores: Tensor = scorer.head(self.images, self.prompts)
            return scores.float()
        return self._from_pixels(scorer)

    def _from_pixels(self, scorer: Callable[[Tensor, list[str]], Tensor], name: str | None = None) -> Tensor:
        images = [image for ranking in self.rankings for image in ranking.images]
        prompts = [ranking.prompt for ranking in self.rankings for _ in ranking.images]
        scores = torch.empty(len(images))
        with torch.no_grad(), Progress() as bar:
            task = bar.add_task(f"scoring with {name or type(scorer).__name__}", total=len(images))
            for numbers, pixels in pixel_batches(images, BATCH):
                scores[numbers] = scorer(pixels.float() / 255, [prompts[number] for number in numbers]).float().cpu()
                bar.update(task, advance=len(numbers))
        return scores

    def _flips(self, head: nn.Module, dtype: torch.dtype) -> int:
        """Number of test comparisons that change their result with a cache of this precision."""
        rounded = head(self.images.to(dtype).float(), self.prompts.to(dtype).float())
        decided = [(r[self.encoded.better] > r[self.encoded.worse]) for r in (self.rewards, rounded)]
        return int((decided[0] != decided[1]).sum())


@torch.no_grad()
def embedded(module: RewardModule, encoded: EncodedRankings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) of a split's images and of their prompts, on the CPU; computed on `device` if needed."""
    prompts = encoded.prompt_of_image.numpy()
    if module.encoder is None:
        return encoded.images.gather(), encoded.prompts.gather(prompts)
    module.to(device)
    images, texts = [], []
    for start in track(range(0, len(encoded.images), BATCH), "encoding with the tuned layers"):
        some = slice(start, start + BATCH)
        pixels, tokens = encoded.images.gather(some), encoded.prompts.gather(prompts[some])
        seen, read = module.embed(pixels.to(device), tokens.to(device))
        images.append(seen.cpu())
        texts.append(read.cpu())
    return torch.cat(images), torch.cat(texts)


_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
