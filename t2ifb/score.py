"""`python -m t2ifb.score`: score images for prompts with any scorer, to the screen, CSV or JSON."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError, missing_file
from t2ifb.config.instantiate import Components
from t2ifb.config.reward_source import resolve_scorer

if TYPE_CHECKING:
    from t2ifb.data.rankings import Image

FORMATS = (".csv", ".json")


def score(parts: Components) -> None:
    """Score the wished images and show or write `image, prompt, score`."""
    output = Path(parts.value("output")).expanduser() if parts.value("output") else None
    if output and output.suffix not in FORMATS:
        raise ConfigError([f"output={output}: the name has to end with {' or '.join(FORMATS)}"])
    pairs = _pairs(parts)
    resolve_scorer(parts, "scorer")
    scores = _scores(parts, pairs)
    rows = [(str(image), prompt, value) for (image, prompt), value in zip(pairs, scores, strict=True)]
    if output is None:
        _show(rows, parts.value("scorer")["_target_"])
    else:
        from t2ifb.utils.files import write_text

        write_text(output, _text(rows, output.suffix))
        print(f"{len(rows)} scores in {output}")


def _pairs(parts: Components) -> "list[tuple[Image, str]]":
    """What to score: images with one prompt, a table, or a split of the data set.

    Raises:
        ConfigError: None or more than one of the three is given, or a file is missing.
    """
    prompt, images = parts.value("prompt"), parts.value("images")
    table, split = parts.value("pairs"), parts.value("split")
    given = [bool(prompt or images), bool(table), bool(split)]
    if sum(given) != 1 or bool(prompt) != bool(images):
        raise ConfigError(["what to score: give prompt='\"…\"' and images=[…], or pairs=<table>, or split=<name>"])
    if split:
        from t2ifb.prepare import ready_dataset

        rankings = ready_dataset(parts, [split]).rankings(split)
        return [(image, ranked.prompt) for ranked in rankings for image in ranked.images]
    if table:
        return _read_pairs(Path(table).expanduser())
    files = [Path(image).expanduser() for image in images]
    if missing := [missing_file(file) for file in files if not file.is_file()]:
        raise ConfigError(missing)
    return [(file, prompt) for file in files]


def _read_pairs(path: Path) -> "list[tuple[Image, str]]":
    """Rows of a table with the columns `image` and `prompt`; relative images lie beside it."""
    from t2ifb.data.errors import BadRecord, listing
    from t2ifb.data.tables import locate, read_table

    if not path.is_file():
        raise ConfigError([f"pairs: {missing_file(path)}"])
    try:
        rows = read_table(path, ("image", "prompt"))
        images, errors = locate(rows, path.parent)
        errors += [BadRecord(row.place, "empty prompt") for row in rows if not row.text("prompt")]
        if errors:
            raise ValueError(f"{path} has errors:\n{listing(errors)}")
    except ValueError as error:
        raise ConfigError([f"pairs: {error}"]) from error
    return [(image, row.text("prompt")) for image, row in zip(images, rows, strict=True) if image is not None]


def _scores(parts: Components, pairs: "list[tuple[Image, str]]") -> list[float]:
    """One score per pair, in batches of images of one size."""
    import torch

    from t2ifb.data.embeddings import cut_prompts, report_cut
    from t2ifb.data.images import pixel_batches
    from t2ifb.evaluation.score_cache import checked_scores
    from t2ifb.utils.devices import device_of

    device = device_of(parts.value("device"))
    scorer = parts.build("scorer").to(device).eval()
    scores = [0.0] * len(pairs)
    with torch.inference_mode():
        for rows, pixels in pixel_batches([image for image, _ in pairs], parts.value("batch_size")):
            batch = scorer(pixels.to(device).float() / 255, [pairs[row][1] for row in rows])
            for row, value in zip(rows, checked_scores(batch, len(rows)).tolist(), strict=True):
                scores[row] = value
    prompts = [prompt for _, prompt in pairs]
    report_cut(cut_prompts(scorer, prompts), prompts, "the scorer")
    return scores


def _show(rows: list[tuple[str, str, float]], scorer: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from t2ifb.evaluation.tables import NUMBERS, TEXT, show

    table = Table(title=Text(scorer, "table.title"))
    table.add_column("score", **NUMBERS)
    table.add_column("image", **TEXT)
    table.add_column("prompt", **TEXT)
    for image, prompt, value in rows:  # `Text`: nothing in a prompt or a name is markup
        table.add_row(f"{value:.4f}", Text(image), Text(prompt))
    show(table)


def _text(rows: list[tuple[str, str, float]], suffix: str) -> str:
    from pandas import DataFrame

    fields = ("image", "prompt", "score")
    if suffix == ".json":
        return json.dumps([dict(zip(fields, row, strict=True)) for row in rows], indent=1, ensure_ascii=False) + "\n"
    return DataFrame(rows, columns=fields).to_csv(index=False, lineterminator="\r\n")


main = command("score", score)

if __name__ == "__main__":
    main()
