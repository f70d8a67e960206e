import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.reporting.files import Notes
from t2ifb.reporting.samples import Samples, read_samples
from t2ifb.reporting.thumbnails import LEVELS, PREFIX, Level, data_uri, make_gallery
from tests.reporting.parts import write_tuning_run


def samples_of(folder: Path, **settings: object) -> list[Samples]:
    write_tuning_run(folder, **settings)  # type: ignore[arg-type]
    return read_samples(folder / "samples", Notes(folder))


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(PREFIX))))


def test_small_images_keep_their_size_and_large_ones_become_smaller_one_by_one(tmp_path: Path) -> None:
    first = samples_of(tmp_path / "a", size=64)[0]
    assert decoded(data_uri(first, Level(128, 90, 9))).size == (3 * 64, 64)
    small = np.asarray(decoded(data_uri(first, Level(16, 100, 9))).convert("RGB"), int)
    assert small.shape == (16, 48, 3)
    large = np.asarray(Image.open(first.strip), int)
    for n in range(3):  # each image has one colour: none has taken any from its neighbour
        assert abs(small[:, 16 * n + 2 : 16 * n + 14] - large[0, 64 * n]).max() <= 12


def test_many_images_fit_by_fewer_steps_and_smaller_sizes(tmp_path: Path) -> None:
    steps = range(0, 200, 10)
    runs = {n: samples_of(tmp_path / str(n), size=64, steps=steps, seed=n, noise=True) for n in range(2)}
    kept = dict.fromkeys(runs, 70.0)
    whole = make_gallery(runs, kept, 100_000_000)
    assert whole.level == LEVELS[0]
    assert [len(shown) for shown in whole.steps.values()] == [20, 20]
    for budget in (whole.size // 2, whole.size // 8, whole.size // 30):
        gallery = make_gallery(runs, kept, budget)
        assert gallery.size <= budget
        assert not gallery.dropped
        for shown in gallery.steps.values():
            at = [samples.step for samples, _ in shown]
            assert (at[0], at[-1]) == (0, 190)
            assert 70 in at or len(at) == 2


def test_nothing_goes_beyond_the_budget_whatever_it_is(tmp_path: Path) -> None:
    runs = {0: samples_of(tmp_path / "a", size=64, noise=True)}
    gallery = make_gallery(runs, {}, 700)
    assert gallery.size <= 700
    assert gallery.dropped == 2 - len(gallery.images)
    assert make_gallery(runs, {}, 0).images == []
    assert make_gallery({}, {}, 0).level is None


def test_runs_with_the_same_base_model_share_its_images(tmp_path: Path) -> None:
    runs = {n: samples_of(tmp_path / str(n), seed=n) for n in (1, 2)}
    gallery = make_gallery(runs, {}, 1_000_000)
    assert [gallery.steps[n][0][1] for n in (1, 2)] == [0, 0]
    assert len(gallery.images) == 7


def test_a_strip_that_breaks_later_is_left_out_and_noted(tmp_path: Path) -> None:
    samples = samples_of(tmp_path / "a")
    samples[1].strip.write_bytes(b"no image")
    gallery = make_gallery({0: samples}, {}, 1_000_000)
    assert [shown.step for shown, _ in gallery.steps[0]] == [0, 20, 30]
    assert "step_000010_strip.png: cannot be decoded" in gallery.broken[0][0]


@pytest.mark.parametrize("cut", [60, 200])
def test_a_cut_strip_is_left_out(tmp_path: Path, cut: int) -> None:
    first = samples_of(tmp_path / "a", noise=True, size=32)[0]
    first.strip.write_bytes(first.strip.read_bytes()[:cut])
    gallery = make_gallery({0: [first]}, {}, 1_000_000)
    assert gallery.images == []
    assert gallery.broken[0]
