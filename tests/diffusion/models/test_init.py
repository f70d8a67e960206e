"""A family is found by the class of the pipeline, without a list of families."""

import sys
from pathlib import Path
from typing import Any

import pytest

from t2ifb.diffusion import models
from t2ifb.diffusion.models import source_of
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.shapes.weights import PIPELINE


def test_a_folder_is_read_by_its_family() -> None:
    assert source_of(PIPELINE, precision="bf16") == StableDiffusionSource(str(PIPELINE), precision="bf16")


def test_a_file_in_the_package_is_enough_for_a_new_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, package = tmp_path / "pipeline", tmp_path / "package"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "ToyPipeline"}')
    with pytest.raises(ValueError, match="is a ToyPipeline; expected one of .*StableDiffusionPipeline"):
        source_of(folder)
    package.mkdir()
    (package / "toy.py").write_text(
        "class ToySource:\n    pipelines = ('ToyPipeline',)\n    def __init__(self, source): self.source = source\n"
    )
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(package)])
    try:
        made: Any = source_of(folder)
    finally:
        sys.modules.pop("t2ifb.diffusion.models.toy", None)
    assert type(made).__name__ == "ToySource" and made.source == str(folder)
