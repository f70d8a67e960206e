"""Folders of images to annotate."""

import json
from pathlib import Path

from t2ifb.annotation.answers import AnswerLog
from t2ifb.annotation.items import Item, read_items
from t2ifb.annotation.queues import Queues
from tests.data.parts import encoded_picture

EVIL = "<img src=x onerror=document.title='owned'> “</script>” \\ {{7*7}}"
"""A prompt that is harmful where it is not treated as text."""


def write_generated(
    folder: Path, prompts: int = 3, copies: int = 2, models: tuple[str, ...] = ("base", "tuned")
) -> Path:
    """Output of `python -m t2ifb.generate`; the first prompt is hostile."""
    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for number in range(prompts):
        names: dict[str, list[str]] = {}
        for place, model in enumerate(models):
            for copy in range(copies):
                name = f"{number:04d}_{copy}_{model}.png"
                (folder / name).write_bytes(encoded_picture(100 * number + 10 * copy + place, "PNG"))
                names.setdefault(model, []).append(name)
        index.append({"prompt": EVIL if number == 0 else f"prompt {number}", "images": names})
    (folder / "prompts.json").write_text(json.dumps(index))
    return folder


def make_queues(folder: Path, prompts: int = 3, **settings: object) -> Queues:
    items = read_items(write_generated(folder, prompts))
    return Queues(items, AnswerLog(folder / "annotations", items), **settings)  # type: ignore[arg-type]


def best_first(item: Item) -> list[int]:
    """Ranks by file name."""
    order = sorted(item.images)
    return [order.index(image) + 1 for image in item.images]
