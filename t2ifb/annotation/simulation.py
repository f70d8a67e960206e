"""Annotators that are programs: they use the page's own interface, as a browser does."""

import io
from collections.abc import Callable, Sequence
from threading import Thread

import httpx2
from PIL import Image

from t2ifb.data.decoding import to_rgb

Judge = Callable[[Sequence[Image.Image], str], list[int]]
"""Ranks of images for a prompt; 1 is best, ties allowed."""


def simulate(address: str, judges: dict[str, Judge], token: str | None = None) -> int:
    """Answer every question by simulated annotators, all at once.

    Args:
        address: Address of the page, such as `http://127.0.0.1:8765`.
        judges: Annotators by name.
        token: Token of the page, if it needs one.

    Returns:
        The number of answers.

    Raises:
        ValueError: The page refused an answer; the first error of an annotator.
    """
    counts: list[int] = []
    errors: list[Exception] = []

    def work(name: str, judge: Judge) -> None:
        try:
            counts.append(_annotate(address, name, judge, token))
        except Exception as error:  # raised again below, in the caller's thread
            errors.append(error)

    threads = [Thread(target=work, args=each, daemon=True) for each in judges.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ValueError(f"a simulated annotator failed: {errors[0]}") from errors[0]
    return sum(counts)


def _annotate(address: str, name: str, judge: Judge, token: str | None) -> int:
    """Answer all questions of one annotator."""
    answers = 0
    with httpx2.Client(base_url=address, timeout=60, follow_redirects=True, trust_env=False) as client:
        if token is not None:
            client.get("/", params={"token": token}).raise_for_status()
        state = client.get("/api/next", params={"annotator": name}).raise_for_status().json()
        while (item := state["item"]) is not None:
            shown = sorted(item["images"], key=lambda image: image["place"])
            pictures = [_picture(client.get(f"/{image['url']}").raise_for_status().content) for image in shown]
            answer = {"answer": "ranks", "ranks": judge(pictures, item["prompt"]), "seconds": 1.0}
            reply = client.post("/api/answer", json={"annotator": name, "item": item["key"], **answer})
            if reply.status_code == 409:  # another annotator was faster
                reply = client.get("/api/next", params={"annotator": name})
            else:
                answers += 1
            state = reply.raise_for_status().json()
    return answers


def _picture(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return to_rgb(picture)
