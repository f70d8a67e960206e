"""Table 1: how often each scorer prefers the image that people preferred (PAPER, table 1)."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2ifb.data.comparison_index import ComparisonIndex, rankings_hash
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.evaluation.figures import accuracy_bars, agreement_map
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.evaluation.score_store import Scores
from t2ifb.evaluation.scoreboard import Scoreboard, display_names
from t2ifb.evaluation.table_text import show
from t2ifb.evaluation.tables import CEILING, REFERENCE, order_table, screen_table, write_matrix, write_table
from t2ifb.evaluation.unbuilt import Unbuilt, owner


class Table1:
    """Scores the rankings of a split with every scorer and says how well each agrees with the annotators.

    Attributes:
        splits: What it needs of the data set.
        names: What tables call each scorer, by key, in the order of the rows.
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
        """Put the parts together; nothing is loaded yet.

        Args:
            dataset: Rankings.
            scorers: By key, unbuilt: see `t2ifb.evaluation.unbuilt`.
            cache_folder: Where scores are kept.
            split: Which rankings.
            batch_size: Images that a scorer gets at a time.
            device: What scorers run on; `auto` is the GPU if there is one.
            ceiling: Key of the scorer that knows the truth (`shapes`): no scorer can agree better with the annotators.
                Nothing when there is no such scorer.
            published: Published accuracies in per cent, by name; they are on the split `test` and shown with it only.
            seed: Of the bootstrap.

        Raises:
            ValueError: There are no scorers, or an argument is out of range.
        """
        if not scorers:
            raise ValueError("there are no scorers; add one by +scorer@scorers.<name>=<option>")
        self.dataset, self.split, self.splits = dataset, split, (split,)
        self.cache = ScoreCache(cache_folder, device, batch_size)
        self.published, self.seed = dict(published or {}) if split == "test" else {}, seed
        self.scorers = dict(scorers)
        self.names = display_names({key: owner(part) for key, part in scorers.items() if key != ceiling})
        self.names |= {ceiling: CEILING} if ceiling is not None and ceiling in scorers else {}

    def run(self, folder: Path) -> dict[str, Any]:
        """Score what is not scored yet; show the table and write it with its pictures into a folder.

        Returns:
            The figures, to be recorded.

        Raises:
            ValueError: The split is missing or empty, or a scorer gives NaN or infinity.
            UnusableScorers: Some scorers cannot be built; all of them are named, and nothing was scored.
        """
        started = time.monotonic()
        rankings = self.dataset.rankings(self.split)
        if not rankings:
            raise ValueError(f"the split {self.split!r} has no rankings left")
        images = [image for ranking in rankings for image in ranking.images]
        prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
        scores = self.cache.fill(self.scorers, images, prompts)
        scored = {name: scores.of(key) for key, name in self.names.items()}
        board = Scoreboard(ComparisonIndex.build(rankings), scored, self.published, self.seed)
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

    def _write(self, board: Scoreboard, scores: Scores, folder: Path) -> None:
        measured = {name: speed.per_second for key, name in self.names.items() if (speed := scores.speed(key))}
        rows = board.rows(with_tau=True, speeds=measured)
        names, matrix = board.agreement()
        title = f"Preference accuracy on {board.index.texts} {self.split} prompts"
        show(screen_table(rows, title, REFERENCE))
        show(order_table(rows, "Kendall's tau-b, mean over prompts"))
        write_table(rows, folder, "table1", REFERENCE)
        write_matrix(names, matrix, folder / "agreement.csv")
        accuracy_bars(rows, title, folder / "table1.png")
        agreement_map(names, matrix, folder / "agreement.png")
