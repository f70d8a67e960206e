"""The verdict at the end of a reward run: the table, the pictures, and what the model card says."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich
import torch
from rich.progress import Progress
from torch import Tensor, nn

from t2ifb.data.comparisons import RewardDataModule
from t2ifb.data.images import pixel_batches
from t2ifb.data.rankings import open_image
from t2ifb.evaluation import figures
from t2ifb.evaluation.preference import PreferenceResult, calibration, evaluate_preference, ordered_pairs
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import Row, parts_table, screen_table, write_table
from t2ifb.learning.run_folder import RunFolder
from t2ifb.scorers.clip_score import CLIPScore

SHEET = 8
"""Rankings in the picture and in the table of examples."""
REFERENCE = "CLIP Score"
MARGIN = 0.02
"""Difference of two grades from which the parts of a truth order two images, in units of the grade (0 to 1)."""
BATCH = 64
"""Images that a scorer gets at a time."""


class RewardVerdict:
    """Scores one split's rankings with the trained head, the baselines and the ceiling.

    Attributes:
        split: Which rankings.
        rewards: (N,) of the split's images.
        results: Preference accuracy by scorer.
    """

    def __init__(
        self,
        data: RewardDataModule,
        split: str,
        head: nn.Module,
        baselines: Mapping[str, nn.Module],
        ceiling: nn.Module | None,
        ceiling_parts: Sequence[str],
        published: Mapping[str, float],
        seed: int,
    ) -> None:
        """Score everything; see `RewardTraining` for the arguments."""
        self.split = split
        self.rankings, self.encoded = data.rankings(split), data.encoded(split)
        self.seed, self.published = seed, dict(published)
        self.fingerprint = data.cache.source.fingerprint()
        self.images = self.encoded.images.gather()
        self.prompts = self.encoded.prompts.gather(self.encoded.prompt_of_image.numpy())
        with torch.no_grad():
            self.rewards = head(self.images, self.prompts).float()
            exact = data.cache.storage == "fp32"  # otherwise what would be rounded is rounded already
            self.flips = {name: self._flips(head, dtype) for name, dtype in _HALF.items()} if exact else None
        noise = torch.rand(len(self.images), generator=torch.Generator().manual_seed(seed))
        scores = {"random": noise}
        for key, scorer in baselines.items():
            name = getattr(scorer, "name", key)
            scores[key if name in scores else name] = self._baseline(scorer)
        scores["this model"] = self.rewards
        if ceiling is not None:
            scores["annotator ceiling"] = self._from_pixels(ceiling)
        self.results = {name: self._judge(score) for name, score in scores.items()}
        self.by_part = {part: self._judge_by(ceiling, part, scores) for part in ceiling_parts}
        better, worse = self.encoded.better.numpy(), self.encoded.worse.numpy()
        self.calibration = calibration(self.rewards.numpy(), better, worse, seed=seed)

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Print and save the table; give the figures for `summary.json`."""
        rows = self.rows()
        rich.print(screen_table(rows, f"Preference accuracy on {len(self.rankings)} {self.split} prompts", REFERENCE))
        write_table(rows, run.path, f"table_{self.split}", REFERENCE)
        if self.by_part:
            rich.print(parts_table(self.by_part, "Agreement with the order by each part of the truth"))
        mine = self.results["this model"]
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
        """Draw reward by rank, calibration, and a sheet of rankings with their rewards."""
        ranks, prompts = self.encoded.ranks.numpy(), self.encoded.prompt_of_image.numpy()
        figures.reward_by_rank(self.rewards.numpy(), ranks, prompts, run.path / "reward_by_rank.png")
        figures.calibration_plot(self.calibration, run.path / "calibration.png")
        shown = [(r.prompt, [open_image(image) for image in r.images], r.ranks) for r in self.rankings[:SHEET]]
        figures.ranking_sheet(shown, self._by_ranking()[:SHEET], run.samples / "rankings.png")

    def rows(self) -> list[Row]:
        """The table: what was measured, then what was published."""
        reference = self.results.get(REFERENCE)
        measured = [
            Row(
                name=name,
                accuracy=result.accuracy,
                by_prompt=result.accuracy_by_prompt,
                ties=result.ties,
                comparisons=result.comparisons,
                against=result.difference(reference, self.seed) if reference and result is not reference else None,
                published=self.published.get(name),
            )
            for name, result in self.results.items()
        ]
        return measured + [Row(name, published=v) for name, v in self.published.items() if name not in self.results]

    def card(self) -> str:
        """The figures for the model card."""
        lines = [
            f"| {name} | {100 * result.accuracy.mean:.2f} | {100 * result.accuracy.low:.2f} to "
            f"{100 * result.accuracy.high:.2f} |"
            for name, result in self.results.items()
        ]
        heading = "| scorer | preference accuracy % | 95 % interval |\n|---|---|---|"
        return "\n".join([f"Rankings of the split `{self.split}`:", "", heading, *lines, "", f"Seed {self.seed}."])

    def examples(self) -> list[dict[str, Any]]:
        """Some rankings, an image a row: prompt, image, rank, reward."""
        return [
            {"prompt": ranking.prompt, "image": open_image(image), "rank": rank, "reward": reward}
            for ranking, rewards in zip(self.rankings[:SHEET], self._by_ranking(), strict=False)
            for image, rank, reward in zip(ranking.images, ranking.ranks, rewards, strict=True)
        ]

    def _by_ranking(self) -> list[list[float]]:
        sizes = [len(ranking.images) for ranking in self.rankings]
        return [part.tolist() for part in self.rewards.split(sizes)]

    def _judge(self, scores: Tensor) -> PreferenceResult:
        e = self.encoded
        better, worse, prompts = e.better.numpy(), e.worse.numpy(), e.prompt_of_comparison.numpy()
        return evaluate_preference(scores.numpy(), better, worse, prompts, seed=self.seed)

    def _judge_by(self, ceiling: Any, part: str, scores: Mapping[str, Tensor]) -> dict[str, Interval]:
        """How often each scorer orders two images of a prompt as one part of the truth does."""
        truth = self._from_pixels(lambda images, prompts: ceiling.parts(images, prompts)[part], part)
        pairs = ordered_pairs(truth.numpy(), self.encoded.prompt_of_image.numpy(), MARGIN)
        return {
            name: evaluate_preference(score.numpy(), *pairs, seed=self.seed).accuracy for name, score in scores.items()
        }

    def _baseline(self, scorer: nn.Module) -> Tensor:
        """From the cached embeddings if the scorer is on the same encoder, otherwise from pixels."""
        source = getattr(scorer, "source", None)
        if isinstance(scorer, CLIPScore) and source is not None and source.fingerprint() == self.fingerprint:
            return scorer.score_embeddings(self.images, self.prompts)
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
        """How many test comparisons a cache of this precision decides otherwise."""
        rounded = head(self.images.to(dtype).float(), self.prompts.to(dtype).float())
        decided = [(r[self.encoded.better] > r[self.encoded.worse]) for r in (self.rewards, rounded)]
        return int((decided[0] != decided[1]).sum())


_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
