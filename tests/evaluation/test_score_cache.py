"""Scores are made once, survive interruption, and tell what they were made by."""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from t2ifb.evaluation import score_cache
from t2ifb.evaluation.lazy import Unbuilt, UnusableScorers
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.utils.files import StorageError
from tests.conftest import CHECKOUT
from tests.evaluation.parts import Brightness, Scripted, refuses, weights

LEVELS = (10, 200, 50, 120, 90, 30, 250)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Pictures of two sizes, one brightness each; the last has the content of the first."""
    paths = [tmp_path / f"{number}.png" for number in range(len(LEVELS))]
    for number, (path, level) in enumerate(zip(paths, LEVELS, strict=True)):
        Image.new("RGB", (8, 8 + 4 * (number % 2)), (level,) * 3).save(path)
    (tmp_path / "again.png").write_bytes(paths[0].read_bytes())
    return [*paths, tmp_path / "again.png"]


@pytest.fixture
def prompts(images: list[Path]) -> list[str]:
    return ["a", "b", "a", "b", "a", "b", "a", "a"]


@pytest.fixture(autouse=True)
def from_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "batches", 0)
    monkeypatch.setattr(score_cache, "COMMIT_SECONDS", 0.0)


def bright(folder: Path, factor: float = 1.0) -> Unbuilt:
    return partial(Brightness, weights=weights(folder / f"factor{factor}.json", factor))


def cache(folder: Path, **options: Any) -> ScoreCache:
    return ScoreCache(folder / "scores", device="cpu", **options)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_scores_are_those_of_the_scorer_in_the_order_of_the_pairs(
    tmp_path: Path, images: list[Path], prompts: list[str]
) -> None:
    scorers = {"one": bright(tmp_path), "two": bright(tmp_path, 2)}
    scores = cache(tmp_path, batch_size=2).fill(scorers, images, prompts)
    expected = np.array([*LEVELS, LEVELS[0]]) / 255
    np.testing.assert_allclose(scores.of("one"), expected, rtol=1e-6)
    np.testing.assert_allclose(scores.of("two"), 2 * expected, rtol=1e-6)
    assert scores.of("one").dtype == np.float32
    speed = scores.speed("one")
    assert speed is not None
    assert (speed.images, speed.device) == (7, "cpu")  # the repeated image was scored once
    assert speed.per_second > 0
    assert scores.identity("one")["class"].endswith("Brightness")


def test_a_second_call_builds_and_writes_nothing(
    tmp_path: Path, images: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = bright(tmp_path)
    first = cache(tmp_path).fill({"one": scorer}, images, prompts)
    before = files(tmp_path)
    monkeypatch.setattr(score_cache, "build", refuses)
    again = cache(tmp_path).fill({"other name": scorer}, images[::-1], prompts[::-1])
    np.testing.assert_array_equal(again.of("other name"), first.of("one")[::-1])
    assert again.speed("other name") == first.speed("one")
    assert files(tmp_path) == before


def test_other_weights_prompts_and_images_are_scored_anew(
    tmp_path: Path, images: list[Path], prompts: list[str]
) -> None:
    def made() -> int:
        speed = cache(tmp_path).fill({"one": partial(Scripted)}, images, prompts).speed("one")
        return speed.images if speed else 0

    assert made() == 7
    prompts[0] = "another"
    assert made() == 8
    Image.new("RGB", (8, 8), (1, 2, 3)).save(images[1])
    assert made() == 9
    file = weights(tmp_path / "w.json")
    one = cache(tmp_path).fill({"b": partial(Brightness, file)}, images, prompts).of("b")
    weights(file, 3)
    assert np.allclose(cache(tmp_path).fill({"b": partial(Brightness, file)}, images, prompts).of("b"), 3 * one)


def test_an_interrupted_call_goes_on_where_it_stopped(
    tmp_path: Path, images: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = {"one": partial(Scripted)}
    monkeypatch.setattr(Scripted, "killed_at", 4)  # the trial and two batches come before
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, batch_size=2).fill(scripted, images, prompts)
    monkeypatch.setattr(Scripted, "killed_at", None)
    monkeypatch.setattr(Scripted, "batches", 0)
    scores = cache(tmp_path, batch_size=2).fill(scripted, images, prompts)
    assert Scripted.batches == 1 + 2  # of four batches two were left
    np.testing.assert_allclose(scores.of("one"), np.array([*LEVELS, LEVELS[0]]) / 255, rtol=1e-6)
    speed = scores.speed("one")
    assert speed is not None
    assert speed.images == 7


KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
from t2ifb.evaluation import score_cache
from tests.evaluation.parts import Scripted

class Hook:
    def __eq__(self, batches):  # asked before each batch: the trial and two batches come before the fourth
        return os.kill(os.getpid(), signal.SIGKILL) if batches == 4 else False

Scripted.killed_at, score_cache.COMMIT_SECONDS = Hook(), 0.0
folder, *images = map(Path, sys.argv[1:])
cache = score_cache.ScoreCache(folder / "scores", device="cpu", batch_size=2)
cache.fill({"one": partial(Scripted)}, images, [*"abababaa"])
"""


def test_a_killed_call_goes_on_where_it_stopped(tmp_path: Path, images: list[Path], prompts: list[str]) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), *map(str, images)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    scores = cache(tmp_path, batch_size=2).fill({"one": partial(Scripted)}, images, prompts)
    assert Scripted.batches == 1 + 2
    np.testing.assert_allclose(scores.of("one"), np.array([*LEVELS, LEVELS[0]]) / 255, rtol=1e-6)


def test_nan_is_refused_with_the_scorers_name_and_what_was_complete_is_kept(
    tmp_path: Path, images: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "nan_at", 3)
    with pytest.raises(ValueError, match=r"my scorer: 1 of 2 scores are NaN or infinite.*the first prompt"):
        cache(tmp_path, batch_size=2).fill({"my scorer": partial(Scripted)}, images, prompts)
    (record,) = tmp_path.glob("scores/*/scorer.json")
    assert json.loads(record.read_text())["images"] == 2


def test_too_little_memory_says_what_to_do(
    tmp_path: Path, images: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Scripted.forward

    def forward(self: Scripted, pixels: Any, texts: list[str]) -> Any:
        if len(texts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, pixels, texts)

    monkeypatch.setattr(Scripted, "forward", forward)
    with pytest.raises(ValueError, match="big: cpu is out of memory with batch_size=4; use a smaller one"):
        cache(tmp_path, batch_size=4).fill({"big": partial(Scripted)}, images, prompts)
    assert len(cache(tmp_path, batch_size=2).fill({"big": partial(Scripted)}, images, prompts).of("big")) == 8


def test_all_scorers_that_cannot_be_built_are_told_before_anything_is_scored(
    tmp_path: Path, images: list[Path], prompts: list[str]
) -> None:
    good = bright(tmp_path)
    scorers: dict[str, Unbuilt] = {
        "good": good,
        "no file": partial(Brightness, weights=tmp_path / "nowhere.json"),
        "no clip": partial(CLIPScore.from_pretrained, source=str(tmp_path / "nowhere")),
        "nan": partial(Brightness, weights(tmp_path / "w.json"), shift=float("nan")),
        "shape": partial(_Pairs),
    }
    with pytest.raises(UnusableScorers) as caught:
        cache(tmp_path).fill(scorers, images, prompts)
    assert list(caught.value.errors) == ["no file", "no clip", "nan", "shape"]
    assert not list(tmp_path.glob("scores/*/scores.npy"))
    with pytest.raises(UnusableScorers, match=r"no file: .*nowhere.json"):
        cache(tmp_path).fill({"no file": scorers["no file"]}, images, prompts)


class _Pairs(Scripted):
    def forward(self, images: Any, prompts: list[str]) -> Any:
        return super().forward(images, prompts)[:, None]


def test_two_jobs_wait_for_each_other(
    tmp_path: Path, images: list[Path], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other job has scored, between this one's look and its turn, is not scored again."""
    slow, other = cache(tmp_path), cache(tmp_path)
    real = score_cache.file_lock

    def lock_after_the_other(path: Path) -> Any:
        monkeypatch.setattr(score_cache, "file_lock", real)
        other.fill({"one": partial(Scripted)}, images, prompts)
        with FileLock(path, timeout=0):
            pass
        return real(path)

    monkeypatch.setattr(score_cache, "file_lock", lock_after_the_other)
    slow.fill({"one": partial(Scripted)}, images, prompts)
    assert Scripted.batches == 1 + 2  # the other's trial and its batches, one of each size


def test_an_image_with_several_prompts_is_decoded_once_and_batches_stay_small(
    tmp_path: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Scripted.forward

    def noted(self: Scripted, pixels: Any, texts: list[str]) -> Any:
        sizes.append(len(texts))
        return real(self, pixels, texts)

    monkeypatch.setattr(Scripted, "forward", noted)
    many = [images[0]] * 5
    scores = cache(tmp_path, batch_size=2).fill({"one": partial(Scripted)}, many, list("abcde"))
    assert sizes == [1, 2, 2, 1]  # the trial first
    assert scores.of("one").tolist() == [pytest.approx(LEVELS[0] / 255)] * 5


def test_a_full_disk_is_one_message_and_the_call_goes_on_when_there_is_space(
    tmp_path: Path, images: list[Path], prompts: list[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StorageError, match=r"No space left in .*scores"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (130, limits[1]))
            cache(tmp_path).fill({"one": partial(Scripted)}, images, prompts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(cache(tmp_path).fill({"one": partial(Scripted)}, images, prompts).of("one")) == 8


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        cache(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="device=gpuu is not on this machine"):
        ScoreCache(tmp_path, device="gpuu")
