"""Several scorers on the same images, and the table of their scores."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from t2ifb.evaluation.scoring import BATCH, ScorerSet, ScoreSheet
from t2ifb.shapes.gold import GoldScore

PROMPT = "a red circle on a gray background"


def test_a_sheet_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = np.array([1.0, 2.5, np.nan, 1 / 3, 1e-17])
    written = ScoreSheet(['a "red", circle', 'a "red", circle', "two\r\nli\rnes", "NA", "1.0"], {"x": values})
    written.write(tmp_path / "sheet.csv")
    read = ScoreSheet.read(tmp_path / "sheet.csv")
    assert list(read.prompts) == list(written.prompts)
    np.testing.assert_array_equal(read.columns["x"], written.columns["x"])
    np.testing.assert_array_equal(read.by_prompt["x"], [1.75, *values[2:]])


def test_images_of_a_prompt_are_averaged_wherever_they_stand() -> None:
    sheet = ScoreSheet(["b", "a", "b", "c"], {"x": np.array([1.0, 2.0, 4.0, 8.0]), "y": np.zeros(4)})
    assert {name: column.tolist() for name, column in sheet.by_prompt.items()} == {"x": [2.5, 2, 8], "y": [0, 0, 0]}


class Counted(nn.Module):
    """Brightness, and the sizes of the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(images) == len(prompts)
        self.sizes.append(len(images))
        return self.weight * images.double().mean((1, 2, 3))


def test_every_image_is_scored_once_in_order_by_every_scorer() -> None:
    scorers = {"one": Counted(), "other": Counted()}
    images = torch.arange(BATCH + 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    found = ScorerSet(scorers)(images, ["x"] * len(images))
    assert list(found) == ["one", "other"]
    for scores in found.values():
        assert (scores.dtype, scores.device.type, scores.requires_grad) == (torch.float32, "cpu", False)
        torch.testing.assert_close(scores, torch.arange(BATCH + 5) / 255)
    assert scorers["one"].sizes == [BATCH, 5]


def test_scorers_are_frozen() -> None:
    scorer = Counted().train()
    ScorerSet({"one": scorer})
    assert not scorer.training and not scorer.weight.requires_grad


def test_the_truth_is_named_gold_and_its_parts_after_it() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = ScorerSet({"one": Counted()}, GoldScore())(images, [PROMPT] * 2)
    assert list(found) == ["one", "gold", "gold/alignment", "gold/fidelity", "gold/strict"]
    parts = GoldScore().parts(images / 255, [PROMPT] * 2)
    for part in ("alignment", "fidelity", "strict"):
        torch.testing.assert_close(found[f"gold/{part}"], parts[part])


def test_no_images_have_no_scores() -> None:
    assert ScorerSet({"one": Counted()})(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), []) == {}
