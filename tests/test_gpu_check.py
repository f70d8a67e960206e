"""`make gpu-check` as far as it goes without a GPU."""

import json
from pathlib import Path

import pytest
import torch

from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.weights import CLIP
from tests.diffusion.tiny_pipelines import write_tiny
from tests.gpu_check import calls, runs, world
from tests.gpu_check.__main__ import check, main
from tests.gpu_check.world import Report, World


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"UPDATES": 4, "VALIDATE_EVERY": 2, "STOP_AFTER": 3}.items():
        monkeypatch.setattr(runs, name, value)
    monkeypatch.setattr(calls, "LOSS_SCALES", (0, 12))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_embedded_domain_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main(["--domain", "shapes", "--device", "cpu", "--output", str(file)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "PASS"
    figures = json.loads(file.read_text())
    assert [json.loads(line)["figure"] for line in lines] == list(figures)
    assert figures["gradient at loss scale 2^12"]["relative_error"] < 0.01
    assert figures["an update"]["ratio"] > 0
    assert figures["two runs"]["identical"]  # on a CPU
    assert figures["a resumed run differs no more than two runs do"]["passed"]


@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("domain", "tiny"), [("sdxl", "sdxl"), ("sd35", "sd3")])
def test_other_domains_pass_with_tiny_pipelines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: str, tiny: str
) -> None:
    monkeypatch.setattr(world, "write_random_pipeline", lambda folder, *_, **__: write_tiny(tiny, folder))
    clip = CLIPSource(f"local-dir:{CLIP}", device="cpu")
    monkeypatch.setattr(world, "clip_of", lambda *_: clip)
    report = Report(tmp_path / "figures.json")
    check(World(domain, torch.device("cpu"), tmp_path, 2), report)
    assert not report.failed
    assert report.figures["two runs"]["identical"]


def test_a_figure_out_of_bounds_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path / "figures.json")
    report.check("one", True, value=1)
    report.check("other", False, value=2)
    report.figure("third", value=3)
    assert report.failed == ["other"]
    assert json.loads(report.path.read_text())["other"] == {"passed": False, "value": 2}
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_without_a_gpu_only_the_embedded_domain_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--device", "cpu"])
    assert "--domain shapes" in capsys.readouterr().err
