"""A scorer that is a user's own class."""

from functools import partial
from pathlib import Path

import pytest
import torch

from t2ifb.evaluation.scorer_benchmark import ScorerBenchmark
from t2ifb.scorers import ModuleScore
from tests.data.parts import RANKS, FolderDataset, make_split

SOURCE = """
from dataclasses import dataclass
from torch import nn

class Redness(nn.Module):
    name = "redness"
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(__import__("torch").tensor(scale))
    def forward(self, images, prompts):
        return self.scale * images[:, 0].mean((1, 2))

@dataclass
class Length:
    unit: float = 1.0
    def __call__(self, images, prompts):
        return [len(prompt) / self.unit for prompt in prompts]

class Wrong:
    def __call__(self, images, prompts):
        return images.mean()

class Infinite:
    def __call__(self, images, prompts):
        images.zero_()
        prompts.clear()
        return [1.0, 1e300]

class Nothing:
    def __call__(self, images, prompts):
        return None

class Silent: ...
"""
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my_scores.py"
    path.write_text(SOURCE)
    return path


def test_a_network_of_a_file_scores_with_gradient(source: Path) -> None:
    scorer = ModuleScore(source, "Redness", {"scale": 2.0})
    images = IMAGES.clone().requires_grad_()
    scores = scorer(images, ["a", "b"])
    torch.testing.assert_close(scores, 2 * IMAGES[:, 0].mean((1, 2)))
    scores.sum().backward()
    assert images.grad is not None and images.grad[:, 0].min() > 0
    assert scorer.name == "redness"
    assert len(list(scorer.parameters())) == 1


def test_any_callable_that_returns_numbers_is_a_scorer(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(source.parent))
    scorer = ModuleScore("my_scores", "Length", {"unit": 2})
    assert scorer(IMAGES, ["ab", "abc"]).tolist() == [1.0, 1.5]
    assert scorer.name == "Length"


def test_it_is_a_row_of_table_1_and_its_scores_are_kept_until_the_file_changes(source: Path, tmp_path: Path) -> None:
    counting = SOURCE + "\n\nclass Counted:\n    def __call__(self, images, prompts):\n"
    counting += "        open(__file__ + '.calls', 'a').write('.')\n        return images.mean((1, 2, 3)).tolist()\n"
    source.write_text(counting)
    dataset = FolderDataset({"test": make_split(tmp_path / "images", "test", RANKS)})
    parts = {"mine": partial(ModuleScore, str(source), "Counted")}
    table = ScorerBenchmark(dataset, parts, cache_folder=tmp_path / "scores", device="cpu", published={})
    calls = tmp_path / "my_scores.py.calls"
    first, asked = table.run(tmp_path)["table"], calls.read_text()
    assert 0 <= first["mine"] <= 1
    assert table.run(tmp_path)["table"] == first and calls.read_text() == asked
    source.write_text(counting + "# changed\n")
    assert table.run(tmp_path)["table"] == first and len(calls.read_text()) == 2 * len(asked)


def test_a_file_may_be_called_like_a_package_that_it_imports(tmp_path: Path) -> None:
    path = tmp_path / "starlette.py"
    path.write_text("import starlette.requests\n" + SOURCE)
    assert ModuleScore(path, "Length")(IMAGES, ["ab", "abc"]).tolist() == [2.0, 3.0]
    import starlette

    assert not hasattr(starlette, "Length")


WRONG = [
    (("Absent", None), "has no class Absent"),
    (("Length", {"length": 1}), "cannot build Length of .*unexpected keyword argument 'length'"),
    (("Silent", None), r"Silent of .* cannot be called; it needs forward\(images, prompts\)"),
    (("Wrong", None), r"Wrong returned scores of shape \(\) for 2 images"),
    (("Infinite", None), "Infinite returned inf for image 1 of 2; expected a finite number"),
    (("Nothing", None), "Nothing returned NoneType; expected 2 numbers"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_errors_name_the_class(source: Path, given: tuple[str, dict[str, float] | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleScore(source, *given)(IMAGES, ["a", "b"])
    assert IMAGES.any()


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.py does not exist; expected a Python file"):
        ModuleScore(tmp_path / "absent.py", "A")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"cannot import .*broken.py: ZeroDivisionError"):
        ModuleScore(tmp_path / "broken.py", "A")
    with pytest.raises(ValueError, match="cannot import no.such.module: ModuleNotFoundError"):
        ModuleScore("no.such.module", "A")
