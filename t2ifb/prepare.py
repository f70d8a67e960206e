"""`python -m t2ifb.prepare`: download or build a data set, check it, count it, and encode it once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2ifb.config.command import command
from t2ifb.config.instantiate import Components

if TYPE_CHECKING:
    from rich.table import Table

    from t2ifb.data.rankings import BadRecord, PreferenceDataset, RankedPrompt


def prepare(parts: Components) -> None:
    """Make the data of the wished splits ready and report what they hold."""
    from t2ifb.evaluation.tables import show

    own = getattr(parts.build("dataset"), "test_splits", ("test",))
    splits: list[str] = parts.value("splits") or ["train", "validation", *own]
    dataset = ready_dataset(parts, splits, download=True)
    rankings = {split: dataset.rankings(split) for split in splits}  # checks every image
    errors: dict[str, list[BadRecord]] = getattr(dataset, "errors", {})
    show(_table(rankings, {split: len(errors.get(split, [])) for split in splits}))
    if ties := [split for split, ranked in rankings.items() if not any(each.comparisons() for each in ranked)]:
        print(f"nothing can be learned from {', '.join(ties)}: all images of a prompt have the same rank")
    if parts.value("embed"):
        _embed(parts, [ranked for split in splits for ranked in rankings[split]])


def ready_dataset(parts: Components, splits: Sequence[str], *, download: bool = False) -> "PreferenceDataset":
    """The data set with the wished splits on this machine.

    Args:
        parts: With `dataset`, and `build` when the data set can be made here.
        splits: Which splits have to be there.
        download: Fetch what is missing. `train` does not: a download of many gigabytes is asked for by name.

    Raises:
        FileNotFoundError: A split is missing and may not or cannot be made.
    """
    build = parts.build("build")
    figures: dict[str, float] = build() if build is not None else {}  # finds out by itself that all is there
    if figures:
        print("made here: " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items()))
    dataset: PreferenceDataset = parts.build("dataset")
    missing = [split for split in splits if not dataset.available(split)]
    if missing and download and hasattr(dataset, "download"):
        dataset.download(missing)
        missing = [split for split in splits if not dataset.available(split)]
    if missing:
        names = ", ".join(missing)
        raise FileNotFoundError(f"no data for {names}: {getattr(dataset, 'missing_message', 'see dataset.source')}")
    return dataset


def _table(rankings: "dict[str, list[RankedPrompt]]", errors: dict[str, int]) -> "Table":
    """The counts of each split for the screen."""
    from rich.table import Table

    from t2ifb.evaluation.tables import NUMBERS, TEXT

    table = Table(title="rankings")
    for column in ("split", "prompts", "images", "comparisons", "ties", "errors"):
        table.add_column(column, **(TEXT if column == "split" else NUMBERS))
    for split, ranked in rankings.items():
        images = [len(each.images) for each in ranked]
        comparisons = sum(len(each.comparisons()) for each in ranked)
        ties = sum(k * (k - 1) // 2 for k in images) - comparisons
        counts = (len(ranked), sum(images), comparisons, ties, errors[split])
        table.add_row(split, *(f"{count:,}" for count in counts))
    return table


def _embed(parts: Components, rankings: "list[RankedPrompt]") -> None:
    """Fill the embedding cache with every image and prompt."""
    from t2ifb.data.embeddings import EmbeddingCache, report_cut
    from t2ifb.reward_learning.warm_start import warm_start

    encoder = parts.build("encoder")
    start = warm_start(encoder)
    source = encoder if start is None else start.encoder
    cache = EmbeddingCache(Path(parts.value("cache_folder")), source, parts.value("cache_storage"))
    prompts = [ranked.prompt for ranked in rankings for _ in ranked.images]
    report = cache.fill([image for ranked in rankings for image in ranked.images], prompts)
    report_cut(report.cut, prompts, "the encoder")
    print(f"embeddings: {report.encoded:,} encoded, {report.reused:,} reused, in {report.seconds:.1f} s")


main = command("prepare", prepare)

if __name__ == "__main__":
    main()
