"""Exchange with external scorers: JSON with prompts and PNG images, and scores in return.

A request is one JSON object,

    {"prompts": ["a red circle", ...], "images": ["<a PNG file in base64>", ...]}

with as many images as prompts. The answer is one JSON object, `{"scores": [0.3, ...]}` with one finite number for each
image, or `{"error": "what went wrong"}`. Requests of `CommandScore` also have an `id`, a number, which an answer may
repeat.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ifb.data.errors import brief
from t2ifb.scorers.preprocess import check_counts

MOST = torch.finfo(torch.float32).max
"""The largest score."""


class ExternalFailure(ValueError):
    """An external scorer could not be reached, stopped, or took too long; a later try may succeed."""


def encode_request(images: Tensor, prompts: Sequence[str]) -> str:
    """The request for B images (B, 3, H, W) in [0, 1] and B prompts, on one line. Pixels are rounded to 8 bits."""
    pixels = images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return json.dumps({"prompts": list(prompts), "images": [_png(image) for image in pixels]})


def decode_answer(text: str | bytes, count: int, name: str, request_id: int | None = None) -> list[float]:
    """Scores of an answer.

    Args:
        text: The answer.
        count: Number of images in the request.
        name: The scorer, for messages.
        request_id: The request's id; an answer may repeat it as `id`.

    Raises:
        ValueError: The answer reports an error, is not one, has another id or number of scores, or a score that is no
            finite float32 number.
    """
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} answered {brief_text(text)!r}, which is not JSON") from error
    if isinstance(answer, dict) and request_id is not None and answer.get("id", request_id) != request_id:
        found = brief_text(repr(answer["id"]))
        raise ValueError(f"{name} answered request {found}; expected the answer to request {request_id}")
    if isinstance(answer, dict) and answer.get("error"):
        raise ValueError(f"{name} reports: {brief_text(str(answer['error']))}")
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise ValueError(f'{name} answered {brief_text(text)!r}; expected {{"scores": [one number for each image]}}')
    if len(scores) != count:
        raise ValueError(f"{name} returned {len(scores)} scores for {count} images")
    for number, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) <= MOST:  # also NaN
            found = brief_text(repr(score))
            raise ValueError(
                f"{name} returned {found} for image {number} of {count}; expected a finite number of float32"
            )
    return [float(score) for score in scores]


def score_in_batches(
    images: Tensor, prompts: list[str], batch_size: int, ask: Callable[[str, int], list[float]]
) -> Tensor:
    """Scores (B,) float32, without gradient, on the device of the images.

    Args:
        images: (B, 3, H, W) in [0, 1]; images on the `meta` device score 0 without a request.
        prompts: B strings.
        batch_size: Maximum number of images in a request.
        ask: Sends a request for a number of images and returns the scores.
    """
    check_counts(images, prompts)
    if images.is_meta:
        return torch.zeros(len(prompts), device=images.device)
    scores: list[float] = []
    for start in range(0, len(prompts), batch_size):
        some = slice(start, start + batch_size)
        scores += ask(encode_request(images[some], prompts[some]), len(prompts[some]))
    return torch.tensor(scores, dtype=torch.float32, device=images.device)


def check_limits(batch_size: int, time_limit: float, retries: int) -> None:
    """Check the settings of an external scorer.

    Raises:
        ValueError: One is out of range.
    """
    if batch_size < 1 or time_limit <= 0 or retries < 0:
        raise ValueError(
            "expected batch_size of at least 1, time_limit above 0 and retries of at least 0, got "
            f"batch_size={batch_size}, time_limit={time_limit}, retries={retries}"
        )


def brief_text(text: str | bytes) -> str:
    """The beginning of a text on one line."""
    return brief(text.decode("utf-8", "replace") if isinstance(text, bytes) else text, 200)


def _png(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
