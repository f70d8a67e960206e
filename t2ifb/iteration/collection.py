"""One round's images, and the rankings of them by people or programs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from t2ifb.annotation.answers import FILE, Answer, AnswerLog, read_lines
from t2ifb.annotation.items import Item, read_items
from t2ifb.annotation.results import score_items, summarise
from t2ifb.data.drawn import INDEX, file_name, write_image, write_index
from t2ifb.data.prompts import hash_fraction, spelled_alike
from t2ifb.data.rankings import open_image
from t2ifb.diffusion.lora import load_lora
from t2ifb.diffusion.model import ModelSource, load_for_sampling
from t2ifb.diffusion.sampling import Sampler, generate
from t2ifb.scorers.reward_model import RewardModel
from t2ifb.utils.files import make_folder, write_json, write_text
from t2ifb.utils.random_streams import Stream, generator

Judge: TypeAlias = Callable[[Sequence[Image.Image], str], list[int]]
"""Ranks of images for a prompt; 1 is best, ties allowed. Equal images and prompts must give equal ranks."""
ANSWERS = "annotations"
"""Subfolder with the answers as they come in; the default of `python -m t2ifb.annotate`."""
COLLECTED = "collected"
"""Subfolder with the rankings that the round is trained on. Later answers do not change them."""
SUMMARY = "summary.json"


class RankingsNeeded(RuntimeError):
    """People have to rank images before the next step.

    Attributes:
        images: Folder of the images.
        missing: Number of prompts without an answer.
        prompts: Number of prompts.
    """

    def __init__(self, images: Path, missing: int, prompts: int) -> None:
        self.images, self.missing, self.prompts = images, missing, prompts
        super().__init__(
            f"{missing} of {prompts} prompts have no answer yet. Rank their images with `python -m t2ifb.annotate "
            f"source={images}`, end it with Ctrl-C, and continue this run with resume=True"
        )

    def __reduce__(self) -> tuple[type, tuple[Path, int, int]]:
        """Make the exception picklable."""
        return type(self), (self.images, self.missing, self.prompts)


def prompts_of_rounds(prompts: Sequence[str], rounds: int, count: int, seed: int) -> list[list[str]]:
    """Random prompts for each round; no prompt appears twice, ignoring case and spacing.

    Args:
        prompts: The prompts to draw from.
        rounds: Number of rounds.
        count: Prompts per round.
        seed: Seed of the draw.

    Raises:
        ValueError: There are fewer distinct prompts.
    """
    distinct = list({spelled_alike(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]
    if len(distinct) < rounds * count:
        raise ValueError(
            f"rounds={rounds} with prompts_per_round={count} need {rounds * count} distinct training prompts; there "
            f"are {len(distinct)}"
        )
    order = generator(Stream.COLLECTION, seed).permutation(len(distinct))
    return [[distinct[place] for place in order[n * count : (n + 1) * count]] for n in range(rounds)]


def draw(
    folder: Path,
    source: ModelSource,
    adapters: Path | None,
    sampler: Sampler,
    prompts: Sequence[str],
    images_per_prompt: int,
    key: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> None:
    """Draw images of prompts in the layout of `python -m t2ifb.generate`. An interrupted call continues.

    Args:
        folder: Folder of the images. A complete one is left unchanged.
        source: The base model.
        adapters: Run folder or export of the adapters; None for the base model.
        sampler: Settings of the sampling.
        prompts: N prompts.
        images_per_prompt: K.
        key: Identifies the noise, together with the number of the image.
        batch_size: Images per batch. Batches whose files exist are skipped.
        device: Device of the model.
    """
    if (folder / INDEX).is_file():
        return
    model = load_for_sampling(source, prompts, device)
    if adapters is not None:
        load_lora(model, adapters)
    name, k = "base" if adapters is None else "tuned", images_per_prompt
    files = [make_folder(folder) / file_name(number, copy, name) for number in range(len(prompts)) for copy in range(k)]
    for start in track(range(0, len(files), batch_size), f"drawing with the {name} model"):
        rows = range(start, min(start + batch_size, len(files)))
        if all(files[row].is_file() for row in rows):
            continue
        keys = [(Stream.COLLECTION, *key, row) for row in rows]
        (images,) = generate(model, sampler, [prompts[row // k] for row in rows], keys, batch_size)
        for row, image in zip(rows, images, strict=True):
            write_image(files[row], image)
    names = np.reshape([file.name for file in files], (-1, k)).tolist()
    write_index(folder, [{"prompt": p, "images": {name: some}} for p, some in zip(prompts, names, strict=True)])


def collect(
    folder: Path,
    annotators: Mapping[str, Judge] | None,
    answered: float,
    held_out: float,
    reward: Path | None,
    device: torch.device,
    seed: int,
) -> dict[str, Any]:
    """Rankings of a folder of images, from programs or as far as people have given them.

    They are copied to `COLLECTED`, with a column `split`, as soon as there are enough.

    Args:
        folder: Folder of images, complete.
        annotators: Programs that rank, by name; each ranks all images. None for people.
        answered: Share of the prompts that people must have answered. A skip is an answer.
        held_out: Share of the prompts for validation, and for test; see `divide`.
        reward: Run of a reward whose agreement with the annotators is measured.
        device: Device of that reward.
        seed: Seed of orders, of the split and of intervals.

    Returns:
        Content of `summary.json`: `prompts`, `rankings` (one per prompt and annotator), the shares `agreement` of
        annotators and `reward_agreement` with intervals or None, and `counts` of answers.

    Raises:
        RankingsNeeded: People have not answered enough.
        ValueError: Another process collects answers in the folder, or too few answers are rankings.
    """
    items = read_items(folder, seed=seed)
    log = AnswerLog(folder / ANSWERS, items)
    try:
        for name, judge in (annotators or {}).items():
            ask(items, log, name, judge)
        answers = log.current()
    finally:
        log.close()
    prompts, rows = {item.key: item.prompt for item in items}, read_lines(folder / ANSWERS / FILE)
    # Answers to other questions about the same prompts, such as pairs of images, count too.
    others = [row for row in rows if row["prompt_id"] not in prompts and row["answer"] != "undone"]
    seen = {prompts[key] for _, key in answers} | {row["prompt"] for row in others} & {*prompts.values()}
    if len(seen) < answered * len(items):
        raise RankingsNeeded(folder, len(items) - len(seen), len(items))
    # A ranking in which all images are equal says nothing in validation and test.
    ranked = {prompts[key] for (_, key), answer in answers.items() if len(set(answer.ranks)) > 1}
    ranked |= {row["prompt"] for row in others if len(set(row["ranks"] or ())) > 1} & seen
    splits = divide([item.prompt for item in items if item.prompt in ranked], held_out, seed)
    rows = [row | {"split": splits.get(row["prompt"], "train")} for row in rows]
    write_text(folder / COLLECTED / FILE, "".join(json.dumps(row) + "\n" for row in rows))
    scores = None
    if reward is not None:
        scores = score_items(RewardModel.from_pretrained(reward).to(device).eval(), items, device)
    results = summarise(answers, items, scores, seed).to_json()
    rankings = sum(answer.kind == "ranks" for answer in answers.values())
    figures = {"prompts": len(items), "rankings": rankings, **results}
    write_json(folder / SUMMARY, figures)
    return figures


def ask(items: Sequence[Item], log: AnswerLog, name: str, judge: Judge) -> None:
    """Append a program's ranking of every question that it has not answered yet.

    Args:
        items: The questions.
        log: Answers so far.
        name: Name of the annotator.
        judge: The program.
    """
    done = {key for annotator, key in log.current() if annotator == name}
    for item in items:
        if item.key not in done:
            ranks = judge([open_image(image) for image in item.images], item.prompt)
            log.append(Answer.checked(item, name, "ranks", ranks, None, 0.0))


def divide(prompts: Sequence[str], held_out: float, seed: int) -> dict[str, str]:
    """Split of each prompt: `train`, `validation` or `test`, in the order of a hash.

    Args:
        prompts: Prompts with rankings.
        held_out: Share of the prompts for validation, and for test, at least one each; 0 leaves all to `train`.
        seed: Seed of the hash.

    Raises:
        ValueError: No prompt would be left for `train`.
    """
    ordered = sorted(set(prompts), key=lambda prompt: (hash_fraction(prompt, seed), prompt))
    few = held_out_count(len(ordered), held_out)
    if len(ordered) <= 2 * few:
        raise ValueError(
            f"{len(ordered)} prompts have a ranking; expected more than {2 * few}, {few} each for validation and test"
        )
    names = ["validation"] * few + ["test"] * few + ["train"] * (len(ordered) - 2 * few)
    return dict(zip(ordered, names, strict=True))


def held_out_count(prompts: int, share: float) -> int:
    """Number of prompts for validation, and for test: a share of all, and at least one; none without a share."""
    return max(1, round(share * prompts)) if share else 0
