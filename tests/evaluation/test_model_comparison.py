"""Figure 8: base and tuned models on the same prompts and noise, drawn once, scored once, told apart."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from t2ifb.data.images import load_image
from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.evaluation import image_cache
from t2ifb.evaluation.image_cache import samples_of
from t2ifb.evaluation.lazy import UnusableScorers
from t2ifb.evaluation.model_comparison import ModelComparison, picks
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import CLIP
from tests.evaluation.tuned_run import DIFFUSION, SAMPLING, write_tuned_run

PROMPTS = ["a red circle on a white background", "<b>two & a half</b>", "a blue star on a gray background"]


class Redness(nn.Module):
    """How much red a picture has."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Darkness(nn.Module):
    """How dark a picture is."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return 1 - images.mean((1, 2, 3))


class Length(nn.Module):
    """How long a prompt is; the picture does not matter."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([float(len(prompt)) for prompt in prompts])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned_run(tmp_path_factory.mktemp("runs") / "one")


def make_figure(folder: Path, run: Path, **changes: Any) -> ModelComparison:
    settings: dict[str, Any] = {
        "prompts": PromptSplits(PromptList(["train"]), PromptList(["validation"]), PromptList(PROMPTS)),
        "scorers": {"redness": partial(Redness), "length": partial(Length)},
        "runs": str(run),
        "trained_on": {str(run): ["redness"]},
        "images_per_prompt": 2,
        "batch_size": 4,
        "device": "cpu",
    }
    return ModelComparison(DIFFUSION, SAMPLING, cache_folder=folder / "data", **(settings | changes))


def test_it_tells_what_tuning_changed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    encoder = partial(CLIPSource, f"local-dir:{CLIP}", device="cpu")
    figures = make_figure(tmp_path, run, encoder=encoder).run(tmp_path / "out")
    assert figures["prompts"] == 3 and figures["models"] == {"one": str(run)}
    rows = figures["figure8"]["one"]
    assert list(rows) == ["redness", "length", "diversity"]
    assert rows["redness"]["trained_on"] and not rows["length"]["trained_on"]
    assert rows["redness"]["difference"]["mean"] == pytest.approx(rows["redness"]["tuned"] - rows["redness"]["base"])
    assert abs(rows["redness"]["difference"]["mean"]) > 1e-3  # the adapters do something
    assert rows["length"]["difference"]["mean"] == 0 and rows["length"]["win_rate"]["mean"] == 0.5
    for name in ("figure8.png", "figure8.md", "figure8.tex", "figure8.json", "figure8.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    for name in ("random", "best", "worst"):
        assert Image.open(tmp_path / "out" / f"figure9_{name}.png").width > 200
    assert [entry["prompt"] for entry in json.loads((tmp_path / "out" / "prompts.json").read_text())] == PROMPTS
    assert "redness (trained on)" in capsys.readouterr().out


def test_what_was_drawn_is_not_drawn_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_figure(tmp_path, run).run(tmp_path)
    drawn = sorted((tmp_path / "data" / "generations").rglob("*.png"))
    assert len(drawn) == 12
    lost = drawn[5]
    before = lost.read_bytes()
    lost.unlink()
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        return generate(*arguments)

    generate = image_cache.generate
    monkeypatch.setattr(image_cache, "generate", counted)
    second = make_figure(tmp_path, run).run(tmp_path)
    assert sum(calls) in (2, 4) and len(calls) == 1  # the batch that lacked one
    assert lost.read_bytes() == before
    assert second["figure8"] == first["figure8"]


def test_several_runs_have_tables_of_their_own_names(run: Path, tmp_path: Path) -> None:
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
        for part in ("export", "summary.json"):
            (tmp_path / name / part).symlink_to(run / part)
    folder = tmp_path / "out"
    folder.mkdir()
    one = PromptSplits(PromptList(["train"]), PromptList(["validation"]), PromptList(PROMPTS), most=1)
    runs = [str(tmp_path / "a/x"), str(tmp_path / "b/x")]
    assert make_figure(tmp_path, run, runs=runs, prompts=one).run(folder)["prompts"] == 1
    assert {file.name for file in folder.glob("*.md")} == {"figure8_1_a_x.md", "figure8_2_b_x.md"}


def test_guidance_scales_are_swept_on_validation_and_test_prompts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    prompts = PromptSplits(PromptList(["train"]), PromptList(["a green star", "two", "three"]), PromptList(PROMPTS))
    figure = make_figure(
        tmp_path, run, prompts=prompts, scorers={"redness": partial(Redness), "darkness": partial(Darkness)},
        guidance_scales=[3], validation_prompts=2, best_of=2,
    )  # fmt: skip
    summary = figure.run(tmp_path / "out")
    swept, figures = summary["guidance"]["one"], summary["figure8"]["one"]
    assert (swept["scales"], swept["validation_prompts"], swept["test_prompts"]) == ([1, 3], 2, 3)
    assert swept["scales_chosen_by"] == {"darkness": 1.0}  # the run was trained on redness
    printed = capsys.readouterr().out
    assert 0 <= printed.find(swept["sentence"]) < printed.find("by guidance scale")
    table = pd.read_csv(tmp_path / "out" / "guidance_scales.csv").set_index(["scorer", "scale"])
    assert set(table.index) == {(name, scale) for name in ("redness", "darkness", "judges") for scale in (1, 3)}
    # The first images of figure 8 are those of the sweep; it does not draw them again.
    scores = [Redness()(torch.stack(list(map(load_image, first))), PROMPTS).mean() for first in first_images(figure)]
    assert table.loc[("redness", 1), ["base", "tuned"]].tolist() == pytest.approx([float(each) for each in scores])
    best = replace(SAMPLING(), guidance_scale=swept["best_scale"]["base"])
    generations = figure.generations if best.guidance_scale == 1 else figure.generations.at(best)
    files = generations.fill("", None, samples_of(PROMPTS, 2))
    redness = Redness()(torch.stack(list(map(load_image, files))), PROMPTS).view(3, 2)
    gain = (redness.max(1).values - redness[:, 0]).mean().item()
    assert swept["comparisons"]["best of n"]["gains"]["redness"]["difference"]["mean"] == pytest.approx(gain, abs=1e-5)
    assert figures["redness"]["base"] != table.loc[("redness", 1), "base"]  # two images per prompt
    # 12 of figure 8; 4 validation images at its scale; 10 at the other scale; and 3 second images, if that is the best.
    drawn = list((tmp_path / "data" / "generations").rglob("*.png"))
    assert len(drawn) == 12 + 4 + 10 + (3 if swept["best_scale"]["base"] == 3 else 0)


def first_images(figure: ModelComparison) -> list[list[Path]]:
    """The first image of each prompt, by the base model and by the run."""
    samples, exports = samples_of(PROMPTS, 1), [None, *figure.models.values()]
    return [figure.generations.fill("", export, samples) for export in exports]


def test_prompts_are_shown_by_what_they_gained() -> None:
    gains = np.array([0.3, -0.2, 0.9, 0.1])
    shown = picks(gains, 2, seed=0)
    assert (shown["best"], shown["worst"]) == ([2, 0], [1, 3])
    assert len(set(shown["random"])) == 2 and shown == picks(gains, 2, seed=0)
    assert {tuple(picks(gains, 2, seed)["random"]) for seed in range(9)} > {tuple(shown["random"])}
    assert {name: sorted(some) for name, some in picks(gains, 9, 0).items()} == dict.fromkeys(shown, [0, 1, 2, 3])


def test_what_a_run_was_trained_on_chooses_no_prompts_unless_it_is_asked_to(run: Path, tmp_path: Path) -> None:
    assert make_figure(tmp_path, run).judges == ["length"]
    assert make_figure(tmp_path, run, trained_on={str(run): ["redness", "length"]}).judges == ["redness", "length"]
    assert make_figure(tmp_path, run, judges=["redness"]).judges == ["redness"]
    of_export = make_figure(tmp_path, run, runs=str(run / "export"), trained_on={str(run / "export"): ["redness"]})
    assert of_export.judges == ["length"] and of_export.trained_on == make_figure(tmp_path, run).trained_on


def test_the_ground_truth_chooses_nothing_even_where_it_is_the_only_scorer_that_was_not_trained_on(
    run: Path, tmp_path: Path
) -> None:
    scorers = {"redness": partial(Redness), "gold": partial(GoldScore)}
    figure = make_figure(tmp_path, run, scorers=scorers)
    assert figure.judges == figure._judges_of(next(iter(figure.models))) == ["redness"]


def test_a_scorer_that_cannot_score_is_found_before_everything_is_drawn(run: Path, tmp_path: Path) -> None:
    figure = make_figure(tmp_path, run, scorers={"gold": partial(GoldScore), "length": partial(Length)}, batch_size=2)
    figure.prompts = PromptSplits(figure.prompts.train, figure.prompts.validation, PromptList(PROMPTS[1:]))
    with pytest.raises(UnusableScorers, match="gold: .* is not a prompt of the shapes domain"):
        figure.run(tmp_path)
    assert len(list((tmp_path / "data" / "generations").glob("*/*.png"))) == 2


def test_a_judge_that_is_no_scorer_is_left_out(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_figure(tmp_path, run, judges=["blip_score", "length"]).judges == ["length"]
    assert "ignored: judges names blip_score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "set run=<folder>"),
        ({"scorers": {}}, "scorers={}: expected at least one scorer"),
        ({"images_per_prompt": 0}, "images_per_prompt=0 must"),
        ({"guidance_scales": [2, 0.5]}, "guidance_scales: 0.5 is below 1"),
        ({"best_of": 0}, "validation_prompts=64 and best_of=0 must be at least 1"),
        ({"judges": ["lenght"]}, "names none of the scorers redness, length"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_figure(tmp_path, run, **changes)
