"""Images of a base model and of tuned ones are drawn once, from noise that depends on prompt and copy alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2ifb.evaluation import image_cache
from t2ifb.evaluation.image_cache import Generations, Sample, exported_adapters, samples_of, tuned_runs
from t2ifb.utils import fingerprints
from tests.evaluation.tuned_run import DIFFUSION, SAMPLING, write_tuned_run

PROMPTS = ["a red circle on a white background", "<b>two & a half</b>"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned_run(tmp_path_factory.mktemp("runs") / "one")


def test_what_other_code_drew_is_drawn_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place() -> Path:
        return Generations(tmp_path, DIFFUSION, SAMPLING, 4, "cpu").fill("one", run / "export", samples)[0].parent

    samples = samples_of(PROMPTS[:1], 1)
    places = {place(), place()}
    assert len(places) == 1
    versions = fingerprints.library_versions()
    for library in ("torch", "diffusers", "transformers", "peft"):
        monkeypatch.setattr(fingerprints, "version", {**versions, library: "0.0"}.get)
        places.add(place())
    for module in ("t2ifb.diffusion.lora", "t2ifb.evaluation.image_cache"):
        monkeypatch.setattr(fingerprints, "code_hash", lambda name, other=module: "other" if name == other else "")
        places.add(place())
    assert len(places) == 7


def test_an_images_noise_is_a_function_of_prompt_and_copy(tmp_path: Path) -> None:
    def pixels(folder: str, samples: list[Sample], batch_size: int, seed: int = 0) -> dict[str, Any]:
        made = Generations(tmp_path / folder, DIFFUSION, SAMPLING, batch_size, "cpu", seed).fill("base", None, samples)
        return {file.stem: np.asarray(Image.open(file)).astype(int) for file in made}

    some = samples_of(PROMPTS[:2], 2)
    straight, turned = pixels("a", some, 4), pixels("b", some[::-1], 3)
    assert all(np.abs(straight[name] - turned[name]).max() <= 1 for name in straight)
    assert np.abs(straight[some[0].name] - straight[some[1].name]).max() > 10
    other = pixels("c", some[:1], 1, seed=1)
    assert np.abs(straight[some[0].name] - other[some[0].name]).max() > 10


def test_runs_are_called_by_what_tells_them_apart(run: Path, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a/x", "b/x", "c/refl/2026-11-26_05-09-34_547353", "d/base")]
    for place in places:
        place.mkdir(parents=True)
        for part in ("export", "summary.json"):
            (place / part).symlink_to(run / part)
    assert list(tuned_runs(places)) == ["a/x", "b/x", "refl", "d/base"]
    with pytest.raises(ValueError, match="given twice"):
        tuned_runs([run, run])
    with pytest.raises(ValueError, match="not a finished fine-tuning run"):
        tuned_runs([tmp_path])


def test_no_prompt_is_in_a_file_name() -> None:
    for prompt in ("../../etc/passwd", "a\0b", "x" * 3000, "\ud800", "", "a/b"):
        name = Sample(prompt, 3).name
        assert len(name) == 22 and name.endswith("_3") and name[:20].isalnum()
    names = {Sample(prompt, copy).name for prompt in ("a", "A", "a ") for copy in (0, 1)}
    assert len(names) == 6


def test_each_copy_of_a_prompt_has_noise_of_its_own_and_each_seed_too() -> None:
    keys = {Sample(prompt, copy).key(seed) for prompt in "ab" for copy in (0, 1) for seed in (0, 1)}
    assert len(keys) == 8
    assert Sample("a", 1).key(5) == Sample("a", 1).key(5)


def test_the_copies_of_a_prompt_stand_together() -> None:
    found = [(sample.prompt, sample.copy) for sample in samples_of(["b", "a"], 3)]
    assert found == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1), ("a", 2)]


def test_only_batches_that_lack_an_image_are_drawn(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    generate = image_cache.generate

    def counted(*arguments: Any) -> Any:
        sizes.append(len(arguments[2]))
        return generate(*arguments)

    monkeypatch.setattr(image_cache, "generate", counted)
    some = samples_of(PROMPTS, 2)
    cache = Generations(tmp_path, DIFFUSION, SAMPLING, 3, "cpu")
    base = cache.fill("base", None, some)
    assert sizes == [3, 1]
    assert cache.fill("base", None, some) == base
    assert sizes == [3, 1]
    before = base[3].read_bytes()
    base[3].unlink()
    cache.fill("base", None, some)
    assert sizes == [3, 1, 1] and base[3].read_bytes() == before
    tuned = cache.fill("one", run / "export", some)
    assert sizes == [3, 1, 1, 3, 1] and tuned[0].parent != base[0].parent
    assert tuned[0].read_bytes() != base[0].read_bytes()


@pytest.mark.parametrize("lost", ["summary.json", "export/pytorch_lora_weights.safetensors"])
def test_a_run_that_is_not_finished_is_refused(tmp_path: Path, lost: str) -> None:
    for file in ("summary.json", "export/pytorch_lora_weights.safetensors"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert list(tuned_runs([tmp_path]).values()) == [tmp_path / "export"]
    assert list(tuned_runs([tmp_path / "export"]).values()) == [tmp_path / "export"]
    (tmp_path / lost).unlink()
    with pytest.raises(ValueError, match="is not a finished fine-tuning run"):
        tuned_runs([tmp_path])


def test_exports_are_called_as_their_runs(run: Path, tmp_path: Path) -> None:
    assert exported_adapters([run / "export"]) == exported_adapters([run]) == {"one": run / "export"}
    with pytest.raises(ValueError, match="given twice"):
        exported_adapters([run, run / "export"])
    with pytest.raises(ValueError, match="expected a finished fine-tuning run, its export/ or the file"):
        exported_adapters([tmp_path])


def test_a_folder_named_like_markup_is_drawn(tmp_path: Path) -> None:
    (file,) = Generations(tmp_path, DIFFUSION, SAMPLING, 1, "cpu").fill("refl[/x]", None, samples_of(PROMPTS[:1], 1))
    assert file.is_file()
