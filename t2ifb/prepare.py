"""`python -m t2ifb.prepare`: download or build a data set, check it, count it, and encode it once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2ifb.config.build import Parts
from t2ifb.config.command import command

if TYPE_CHECKING:
    from t2ifb.data.rankings import Fault, PreferenceDataset, RankedPrompt

SHOWN_FAULTS = 20


def prepare(parts: Parts) -> None:
    """Make the data of the wished splits ready and report what they hold."""
    from rich.console import Console
    from rich.markup import escape

    from t2ifb.data.rankings import check_rankings

    splits: list[str] = parts.value("splits")
    dataset = ready_dataset(parts, splits, download=True)
    checked: dict[str, tuple[list[RankedPrompt], list[Fault]]] = {}
    for split in splits:
        checked[split] = check_rankings(dataset.rankings(split), on_fault="skip", decode=True, place=split)
    console = Console()
    console.print(_table(checked))
    faults = [fault for _, found in checked.values() for fault in found]
    for fault in faults[:SHOWN_FAULTS]:
        console.print(escape(f"  {fault.place}: {fault.what}"))
    if len(faults) > SHOWN_FAULTS:
        console.print(f"  … and {len(faults) - SHOWN_FAULTS} more")
    if parts.value("embed"):
        _embed(parts, [ranked for rankings, _ in checked.values() for ranked in rankings])


def ready_dataset(parts: Parts, splits: Sequence[str], *, download: bool = False) -> "PreferenceDataset":
    """The data set with the wished splits on this machine.

    Args:
        parts: With `dataset`, and `build` when the data set can be made here.
        splits: Which splits have to be there.
        download: Fetch what is missing. `train` does not: a download of many gigabytes is asked for by name.

    Raises:
        FileNotFoundError: A split is missing and may not or cannot be made.
    """
    build = parts.build("build")
    if build is not None:
        build()  # finds out by itself that all is there
    dataset: PreferenceDataset = parts.build("dataset")
    missing = [split for split in splits if not dataset.available(split)]
    if missing and download and hasattr(dataset, "download"):
        dataset.download(missing)
        missing = [split for split in splits if not dataset.available(split)]
    if missing:
        what = getattr(dataset, "missing_message", f"there is no split {', '.join(missing)}")
        raise FileNotFoundError(f"{what} `python -m t2ifb.prepare` with the same domain and dataset fetches it.")
    return dataset


def _table(checked: "dict[str, tuple[list[RankedPrompt], list[Fault]]]") -> object:
    """The counts of each split as a table for the screen."""
    from rich.table import Table

    table = Table(title="rankings")
    for column in ("split", "prompts", "images", "comparisons", "ties", "faults"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, (rankings, faults) in checked.items():
        comparisons = sum(len(ranked.comparisons()) for ranked in rankings)
        pairs = sum(len(ranked.images) * (len(ranked.images) - 1) // 2 for ranked in rankings)
        images = sum(len(ranked.images) for ranked in rankings)
        counts = (len(rankings), images, comparisons, pairs - comparisons, len(faults))
        table.add_row(split, *(f"{count:,}" for count in counts))
    return table


def _embed(parts: Parts, rankings: "list[RankedPrompt]") -> None:
    """Fill the embedding cache with every image and prompt."""
    from t2ifb.data.embedding_cache import EmbeddingCache

    cache = EmbeddingCache(Path(parts.value("cache_folder")), parts.build("encoder"), parts.value("cache_storage"))
    report = cache.fill(
        [image for ranked in rankings for image in ranked.images], [ranked.prompt for ranked in rankings]
    )
    print(f"embeddings: {report.encoded:,} encoded, {report.reused:,} reused, in {report.seconds:.1f} s")


main = command("prepare", prepare)

if __name__ == "__main__":
    main()
