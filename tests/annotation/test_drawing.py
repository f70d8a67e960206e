"""Images of base and tuned models, drawn once for a session."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2ifb.annotation.drawing import draw
from t2ifb.annotation.items import Item, read_items
from t2ifb.evaluation.image_cache import Generations
from t2ifb.utils import fingerprints
from tests.evaluation.tuned_run import DIFFUSION, SAMPLING, write_tuned_run

PROMPTS = ["a red circle on a white background", "<b>two</b>", "a red circle on a white background"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned_run(tmp_path_factory.mktemp("runs") / "one")


def drawn(folder: Path, runs: list[Path], prompts: list[str] = PROMPTS, copies: int = 1, **more: Any) -> list[Item]:
    settings = {"sampling": "two steps"} | more.pop("settings", {})
    source = draw(folder, DIFFUSION, SAMPLING, [str(run) for run in runs], prompts, copies, settings, 4, "cpu", **more)
    return read_items(source, "compare" if runs else "rank")


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_base_and_tuned_are_drawn_from_the_same_noise(run: Path, tmp_path: Path) -> None:
    items = drawn(tmp_path, [run])
    assert sorted(item.prompt for item in items) == sorted(set(PROMPTS))
    for item in items:
        files = dict(zip(item.models, item.images, strict=True))
        assert files.keys() == {"base", "one"}
        assert len({file.name for file in files.values()}) == 1  # the names of noise
        assert np.abs(pixels(files["base"]) - pixels(files["one"])).max() > 10
    assert drawn(tmp_path / "by export", [run / "export"])[0].models in (("base", "one"), ("one", "base"))


def test_the_base_model_alone_draws_several_images(tmp_path: Path) -> None:
    items = drawn(tmp_path, [], copies=3)
    assert [item.models for item in items] == [("base",) * 3] * 2
    with pytest.raises(ValueError, match="images_per_prompt=1: expected at least 2"):
        drawn(tmp_path, [])


def test_images_that_are_there_stay(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = drawn(tmp_path, [run])
    with monkeypatch.context() as changed:
        changed.setattr(Generations, "fill", _fail)
        changed.setattr(fingerprints, "code_hash", lambda name: "a later version")
        assert drawn(tmp_path, [run]) == items
    more = drawn(tmp_path, [run], [*PROMPTS, "another"])
    assert {item.key for item in items} < {item.key for item in more}
    changes: dict[str, Any]
    for changes in ({"seed": 1}, {"settings": {"sampling": "three steps"}}, {"copies": 2}):
        with monkeypatch.context() as changed, pytest.raises(LookupError, match="drawn again"):
            changed.setattr(Generations, "fill", _fail)
            drawn(tmp_path, [run], [*PROMPTS, "another"], **changes)


def _fail(*_: object) -> None:
    raise LookupError("drawn again")


def test_an_interrupted_drawing_continues(run: Path, tmp_path: Path) -> None:
    items = drawn(tmp_path, [run])
    files = [file for item in items for file in item.images]
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    assert drawn(tmp_path, [run]) == items
    kept = [file for file in files if file.stat().st_mtime_ns == before[file]]
    assert files[0] not in kept and len(kept) >= 2  # its batch is drawn again
