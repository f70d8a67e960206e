"""Final results of a reward run: the trained head, its baselines and the ceiling on one split."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import RewardDataModule
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.images import load_image
from t2ifb.reward_learning.module import RewardModule
from t2ifb.reward_learning.results import MINE, RewardResults, embedded
from t2ifb.training.run_folder import RunFolder
from tests.data.parts import FolderDataset, PooledPixelsSource, make_split

RANKS = [(1, 2, 3), (2, 1, 2), (3, 1, 2)]


class First(nn.Module):
    """The first number of the image's embedding."""

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        return images[:, 0]


class Brightness(nn.Module):
    """How bright an image is, as a scorer and as a ground truth with one part."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(images) == len(prompts)
        return images.mean((1, 2, 3))

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        return {"light": 50 * self(images, prompts), "nothing": torch.zeros(len(images))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardDataModule:
    folder = tmp_path_factory.mktemp("pictures")
    splits = {split: make_split(folder, split, RANKS) for split in ("train", "validation", "test")}
    cache = EmbeddingCache(tmp_path_factory.mktemp("cache"), PooledPixelsSource())
    module = RewardDataModule(FolderDataset(splits), cache, splits=("train", "validation", "test"))
    module.prepare_data()
    return module


@pytest.fixture(scope="module")
def results(data: RewardDataModule) -> RewardResults:
    module = RewardModule(First(), torch.optim.SGD)
    embeddings = embedded(module, data.encoded("test"), torch.device("cpu"))
    baselines = {"bright": Brightness()}
    ceiling = Brightness()
    return RewardResults(data, "test", module.head, embeddings, baselines, ceiling, ["light"], {"elsewhere": 61.5}, 0)


def accuracy(scores: list[float]) -> float:
    """Over all comparisons, one after the other."""
    right, start = [], 0
    for ranks in RANKS:
        mine = scores[start : start + len(ranks)]
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        right += [mine[i] > mine[j] for i, j in pairs]
        start += len(ranks)
    return sum(right) / len(right)


def test_every_scorer_is_compared_on_the_same_comparisons(data: RewardDataModule, results: RewardResults) -> None:
    images = [load_image(image) for ranking in data.rankings("test") for image in ranking.images]
    brightness = [float(image.mean()) for image in images]
    assert results.results[MINE].accuracy.mean == pytest.approx(accuracy(results.rewards.tolist()))
    for name in set(results.results) - {MINE, "random"}:
        assert results.results[name].accuracy.mean == pytest.approx(accuracy(brightness)), name
    assert len(results.results) >= 3  # this model, the baseline and the ceiling


def test_the_truth_agrees_with_its_own_part(results: RewardResults) -> None:
    assert results.by_part["light"]["annotator ceiling"].mean == 1.0


def test_embeddings_are_those_of_images_and_their_prompts(data: RewardDataModule) -> None:
    encoded = data.encoded("test")
    images, prompts = embedded(RewardModule(First(), torch.optim.SGD), encoded, torch.device("cpu"))
    assert torch.equal(images, encoded.images.gather())
    assert torch.equal(prompts, encoded.prompts.gather(encoded.prompt_of_image.numpy()))
    assert len(images) == len(prompts) == 9


def test_tables_figures_and_examples_are_of_the_same_numbers(
    results: RewardResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    figures: dict[str, Any] = results.write(run)
    results.draw(run)
    assert "Preference accuracy on 3 test prompts" in " ".join(capsys.readouterr().out.split())
    assert figures["test/accuracy"] == results.results[MINE].accuracy.mean
    assert figures["test/comparisons"] == 8 and figures["test/table"][MINE] == figures["test/accuracy"]
    assert figures["test/flipped_comparisons"].keys() == {"fp16", "bf16"}
    rows = {row["name"]: row for row in json.loads((tmp_path / "table_test.json").read_text())}
    assert rows["elsewhere"]["published"] == 61.5
    assert rows[MINE]["accuracy"]["mean"] == figures["test/accuracy"]
    for name in ("reward_by_rank.png", "calibration.png", "samples/rankings.png"):
        assert (tmp_path / name).stat().st_size > 1000
    card = " ".join(results.card().split())
    assert f"| {MINE} | {100 * figures['test/accuracy']:.2f} |" in card and "Seed 0." in card
    examples = results.examples()
    assert [row["rank"] for row in examples] == [rank for ranks in RANKS for rank in ranks]
    assert [row["reward"] for row in examples] == pytest.approx(results.rewards.tolist())


def test_comparisons_that_rounding_decides_are_counted(data: RewardDataModule) -> None:
    """Rewards that differ by less than half precision can hold are ties there."""

    class Near(nn.Module):
        def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
            return images[:, 0]

    module = RewardModule(Near(), torch.optim.SGD)
    near = 1 + torch.arange(9.0)[:, None].expand(-1, 6) * 1e-5, torch.zeros(9, 6)
    found = RewardResults(data, "test", module.head, near, {}, None, [], {}, 0)
    decided = (found.rewards[found.encoded.better] > found.rewards[found.encoded.worse]).sum()
    assert found.flips == {"fp16": int(decided), "bf16": int(decided)} and decided > 0
