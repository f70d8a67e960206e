"""Requests and answers of external scorers."""

import json

import pytest
import torch

from t2ifb.scorers.protocol import check_limits, decode_answer, encode_request, score_in_batches
from tests.scorers.parts import requested


def test_images_and_prompts_arrive_as_they_were_sent() -> None:
    pixels = torch.randint(0, 256, (3, 3, 5, 7), generator=torch.Generator().manual_seed(0))
    prompts = ["a “red” circle\n{}", "", "…"]
    request = encode_request(pixels / 255, prompts)
    assert "\n" not in request
    assert request.count("iVBORw0KGgo") == 3  # PNG files in base64
    images, texts = requested(request)
    assert torch.equal((images * 255).round().long(), pixels)
    assert texts == prompts


WRONG = [
    ("<html>", "answered '<html>', which is not JSON"),
    ('{"error": "out of memory"}', "judge reports: out of memory"),
    ("[1, 2]", r"expected \{\"scores\": "),
    ('{"score": [1, 2]}', r"expected \{\"scores\": "),
    ('{"scores": [1]}', "returned 1 scores for 2 images"),
    ('{"scores": [1, NaN]}', "returned nan for image 1 of 2; expected a finite number"),
    ('{"scores": [1, -Infinity]}', "returned -inf for image 1"),
    ('{"scores": [1, 1e300]}', r"returned 1e\+300 for image 1 of 2; expected a finite number"),
    (f'{{"scores": [1, {"9" * 400}]}}', "returned 9+… for image 1 of 2; expected a finite number"),
    ("[" * 100_000, "which is not JSON"),
    ('{"scores": [null, 1]}', "returned None for image 0"),
    ('{"scores": [true, 1]}', "returned True for image 0"),
    ('{"scores": ["1", 1]}', "returned '1' for image 0"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_answers_are_described(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_answer(text, 2, "judge")


def test_an_answer_may_repeat_the_id() -> None:
    assert decode_answer('{"scores": [1]}', 1, "judge", 7) == decode_answer('{"scores": [1], "id": 7}', 1, "judge", 7)
    with pytest.raises(ValueError, match="judge answered request 6; expected the answer to request 7"):
        decode_answer('{"scores": [1], "id": 6}', 1, "judge", 7)


def test_scores_are_asked_for_in_batches() -> None:
    asked = []

    def ask(request: str, count: int) -> list[float]:
        asked.append(count)
        return [float(prompt) for prompt in json.loads(request)["prompts"]]

    scores = score_in_batches(torch.rand(5, 3, 4, 4, requires_grad=True), list("01234"), 2, ask)
    assert scores.tolist() == [0, 1, 2, 3, 4]
    assert not scores.requires_grad and scores.dtype == torch.float32
    assert asked == [2, 2, 1]
    meta = score_in_batches(torch.empty(2, 3, 4, 4, device="meta"), ["a", "b"], 2, ask)
    assert meta.shape == (2,) and len(asked) == 3


@pytest.mark.parametrize("limits", [(0, 1.0, 0), (1, 0.0, 0), (1, 1.0, -1)])
def test_limits_are_checked(limits: tuple[int, float, int]) -> None:
    with pytest.raises(ValueError, match="expected batch_size of at least 1"):
        check_limits(*limits)
