"""Table 1: preference accuracy of each scorer (PAPER, table 1)."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.data.batches import ComparisonIndex, rankings_hash
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.evaluation.accuracy_table import AccuracyTable, display_names
from t2ifb.evaluation.lazy import Unbuilt, owner
from t2ifb.evaluation.plots import accuracy_bars, agreement_map
from t2ifb.evaluation.score_cache import ScoreCache, Scores
from t2ifb.evaluation.tables import CEILING, order_table, screen_table, show, write_matrix, write_table


class ScorerBenchmark:
    """Score the rankings of a split with every scorer and compare each with the annotators.

    Attributes:
        splits: Needed splits of the data set.
        names: Names of the scorers in tables, by key, in row order.
    """

    def __init__(
        self,
        dataset: PreferenceDataset,
        scorers: Mapping[str, Unbuilt],
        cache_folder: str | Path,
        split: str = "test",
        batch_size: int = 32,
        device: str = "auto",
        ceiling: str | None = None,
        published: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """Store the settings. Nothing is loaded yet.

        Args:
            dataset: Source of the rankings.
            scorers: Unbuilt scorers by key; see `t2ifb.evaluation.lazy`.
            cache_folder: Folder of the score cache.
            split: Split of the rankings.
            batch_size: Images per scorer call.
            device: Device; `auto` is the GPU if one exists.
            ceiling: Key of the ground-truth scorer (`shapes`), the upper limit of agreement with the annotators; None
                if there is none.
            published: Published accuracies in per cent, by name. They refer to the split `test` and are shown only for
                it.
            seed: Seed of the bootstrap.

        Raises:
            ValueError: No scorers are given, or an argument is out of range.
        """
        if not scorers:
            raise ValueError("scorers={}: expected at least one scorer")
        self.dataset, self.split, self.splits = dataset, split, (split,)
        self.cache = ScoreCache(cache_folder, device, batch_size)
        self.published, self.seed = dict(published or {}) if split == "test" else {}, seed
        self.scorers = dict(scorers)
        self.names = display_names({key: owner(part) for key, part in scorers.items() if key != ceiling})
        self.names |= {ceiling: CEILING} if ceiling is not None and ceiling in scorers else {}

    def run(self, folder: Path) -> dict[str, Any]:
        """Compute missing scores, print the table and write it with its figures to a folder.

        Returns:
            The results, for `summary.json`.

        Raises:
            ValueError: The split is missing or empty, or a scorer gives NaN or infinity.
            UnusableScorers: Some scorers cannot be built; all are named, and nothing was scored.
        """
        started = time.monotonic()
        rankings = self.dataset.rankings(self.split)
        if not rankings:
            raise ValueError(f"the split {self.split!r} has no usable rankings")
        images = [image for ranking in rankings for image in ranking.images]
        prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
        scores = self.cache.fill(self.scorers, images, prompts)
        scored = {name: scores.of(key) for key, name in self.names.items()}
        board = AccuracyTable(ComparisonIndex.build(rankings), scored, self.published, self.seed)
        self._write(board, scores, folder)
        return {
            "split": self.split,
            "prompts": board.index.texts,
            "rankings": len(rankings),
            "images": len(images),
            "comparisons": len(board.index.better),
            "data": rankings_hash(rankings),
            "table": {name: result.accuracy.mean for name, result in board.results.items()},
            "kendall_tau": {name: tau.mean for name, tau in board.taus.items()},
            "scorers": {key: {"name": name} | scores.identity(key) for key, name in self.names.items()},
            "seed": self.seed,
            "wall_seconds": round(time.monotonic() - started, 1),
        }

    def _write(self, board: AccuracyTable, scores: Scores, folder: Path) -> None:
        measured = {name: speed.per_second for key, name in self.names.items() if (speed := scores.speed(key))}
        rows = board.rows(with_tau=True, speeds=measured)
        names, matrix = board.agreement()
        title = f"Preference accuracy on {board.index.texts} {self.split} prompts"
        show(screen_table(rows, board.index.texts, self.split))
        show(order_table(rows, "Kendall's tau-b, mean over prompts"))
        write_table(rows, folder, "table1")
        write_matrix(names, matrix, folder / "agreement.csv")
        accuracy_bars(rows, title, folder / "table1.png")
        agreement_map(names, matrix, folder / "agreement.png")
