"""Text encoders run once per distinct prompt, and leave memory when all prompts are encoded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ifb.diffusion import text
from t2ifb.diffusion.model import Conditioning
from t2ifb.diffusion.text import TextEncoders


class Letters:
    """A token per letter."""

    model_max_length = 4

    def __call__(self, texts: list[str], padding: Any = False, max_length: int = 4, **_: Any) -> Any:
        rows = [[ord(letter) % 50 for letter in each] for each in texts]
        if not padding:
            return SimpleNamespace(input_ids=rows)
        return SimpleNamespace(input_ids=torch.tensor([(row + [0] * max_length)[:max_length] for row in rows]))


class Encoder(nn.Embedding):
    calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(ids)


def states(encoders: Any, tokens: Any, settings: Any) -> Conditioning:
    return Conditioning({name: encoder(tokens[name]) for name, encoder in encoders.items()})


def make(folder: Path | None = None, seed: int = 0, **options: Any) -> TextEncoders:
    torch.manual_seed(seed)
    Encoder.calls = 0
    return TextEncoders({"one": Encoder(50, 2)}, {"one": Letters()}, states, folder=folder, **options)


def test_a_prompt_is_encoded_once() -> None:
    encoders = make()
    found = encoders.encode(["a", "b", "a"])["one"]
    assert found.shape == (3, 4, 2) and torch.equal(found[0], found[2]) and Encoder.calls == 2
    assert torch.equal(encoders.encode(["b"])["one"][0], found[1]) and Encoder.calls == 2
    assert not found.requires_grad


def test_the_oldest_prompts_leave_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "REMEMBERED_BYTES", 2 * 4 * 2 * 4)
    encoders = make()
    encoders.encode(["a", "b"])
    encoders.encode(["a", "c", "a", "b"])
    assert Encoder.calls == 4  # b was the oldest when c came


def test_encoders_are_released_and_their_output_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make().encode(["", "a", "b"])["one"]
    encoders = make(tmp_path)
    encoders.encode_ahead(["a", "b", "a"], "cpu")
    assert Encoder.calls == 3 and not list(encoders.parameters())
    monkeypatch.setattr(text, "REMEMBERED_BYTES", 0)
    assert torch.equal(encoders.encode(["", "a", "b"])["one"], expected)
    with pytest.raises(ValueError, match="released before 'c' was encoded; load the model again"):
        encoders.encode(["c"])
    make(tmp_path).encode_ahead(["b", "a"], "cpu")
    assert Encoder.calls == 0
    make(tmp_path, seed=1).encode_ahead(["b", "a"], "cpu")  # other weights
    assert Encoder.calls == 3


def test_without_a_folder_encoders_stay() -> None:
    encoders = make()
    encoders.encode_ahead(["a"], "cpu")
    assert Encoder.calls == 0 and len(encoders.encoders) == 1
    assert encoders.encode(["c"])["one"].any()


def test_the_empty_prompt_may_be_zeros(tmp_path: Path) -> None:
    encoders = make(zeros_for_empty=True)
    assert not encoders.encode([""])["one"].any() and encoders.encode(["a"])["one"].any()
    make(tmp_path, zeros_for_empty=True).encode_ahead([""], "cpu")
    other = make(tmp_path)  # the same encoders in a pipeline that encodes the empty prompt
    other.encode_ahead([""], "cpu")
    assert Encoder.calls == 0 and other.encode([""])["one"].any()


def test_prompts_are_as_long_as_the_settings_say() -> None:
    encoders = make(settings=SimpleNamespace(lengths={"one": 6, "absent": 9}))
    assert encoders.encode(["a"])["one"].shape == (1, 6, 2)
    assert encoders.too_long(["a" * 6, "a" * 7, "a"]) == 1
    assert make().too_long(["a" * 6, "a" * 7, "a"]) == 2


def test_all_prompts_may_be_assumed_equal() -> None:
    encoders = make()
    encoders.assume_equal()
    found = encoders.encode(["a", "b"])["one"]
    assert Encoder.calls == 1 and torch.equal(found[0], found[1]) and not list(encoders.parameters())
