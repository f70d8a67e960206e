"""The base model's answers are found once for all that ask the same, and again for whoever asks something else."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.schedule import ddim
from t2ifb.finetuning import baseline_cache
from t2ifb.finetuning.baseline_cache import BaselineCache
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.evaluator import EvalSamples, Evaluator
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.mix import Mix
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import CLIP, PIPELINE
from t2ifb.utils import fingerprints
from tests.finetuning.tuning_worlds import Redness, make_tuning, tune


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Evaluator]:
    """The exams that were really put to the base model."""
    found: list[Evaluator] = []

    def counted(evaluator: Evaluator, *arguments: Any, **options: Any) -> EvalSamples:
        found.append(evaluator)
        return ask(evaluator, *arguments, **options)

    ask = baseline_cache.evaluate
    monkeypatch.setattr(baseline_cache, "evaluate", counted)
    return found


def test_the_same_question_is_asked_once(
    tmp_path: Path, drawn: list[Evaluator], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = make_tuning()
    model = tuning.model.load()
    (tmp_path / "weights").write_text("one")
    settings: dict[str, Any] = {"diffusion": {"source": str(tmp_path / "weights")}, "samples_per_batch": 2}

    def answers(split: str = "validation", seed: int = 0, **changes: Any) -> EvalSamples:
        return BaselineCache(tmp_path / "kept", settings | changes).of(tuning.evaluator(split, seed), model, 2)

    first = answers()
    again = answers()
    assert len(drawn) == 1
    assert torch.equal(first.images, again.images) and torch.equal(first.scores["reward"], again.scores["reward"])
    answers(seed=1)
    answers("test")
    answers(reward={"source": "other"})
    assert len(drawn) == 4
    (tmp_path / "weights").write_text("other")
    answers()
    assert len(drawn) == 5
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    for file in (export / "weights", tmp_path / "run" / "report.html"):  # what stands beside an export is not asked
        answers(reward={"source": str(tmp_path / "run")})
        file.write_text("new")
    assert len(drawn) == 7
    answers(reward={"source": str(tmp_path / "run")})
    assert len(drawn) == 7
    facts = {"name": "another GPU", "tf32": True}
    with monkeypatch.context() as patched:
        patched.setattr(baseline_cache, "device_facts", lambda device: facts)
        answers()
        facts = facts | {"tf32": False}
        answers()
    assert len(drawn) == 9
    monkeypatch.setattr(fingerprints, "version", {**fingerprints.library_versions(), "diffusers": "0.0"}.get)
    answers()
    assert len(drawn) == 10
    tuning.sampling = Sampler(4, 2.0)  # another guidance scale
    for _ in range(2):
        answers()
    assert len(drawn) == 11


def test_without_a_folder_nothing_is_kept(tmp_path: Path, drawn: list[Evaluator]) -> None:
    tuning = make_tuning()
    model = tuning.model.load()
    for _ in range(2):
        BaselineCache(None, {"model": tuning.model}).of(tuning.evaluator("test", 0), model, 2)
    assert len(drawn) == 2 and not list(tmp_path.iterdir())


class Weighted(nn.Module):
    """A scorer with a weight, a buffer that no checkpoint has, and a setting."""

    def __init__(self, weight: float = 1.0, buffer: float = 0.0, part: str = "all") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.register_buffer("offset", torch.tensor(buffer, dtype=torch.float16), persistent=False)
        self.part = part

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.weight * images.mean((1, 2, 3))


def test_the_arguments_of_a_run_decide_what_is_asked_again(tmp_path: Path) -> None:
    """Each run has its own objects, as two processes have."""

    def asked(**changes: Any) -> Any:
        judges = {
            "weighted": Weighted(**changes.pop("judge", {})),
            "mix": Mix({"a": Weighted(**changes.pop("member", {}))}),
        }
        tuning = make_tuning(
            **{"judges": judges, "cache_folder": tmp_path, "diversity": CLIPSource(f"local-dir:{CLIP}")} | changes
        )
        return json.loads(json.dumps(tuning.baseline_cache().known))

    same = asked()
    assert (
        asked(alpha=7.0, epochs=1, batch_size=1, lora=LoRA(rank=2), rollout=Sampler(3, 1.0), algorithm=DRaFT()) == same
    )
    assert asked(model=StableDiffusionSource(PIPELINE)) == same
    different = [
        *(asked(judge=change) for change in ({"weight": 2.0}, {"buffer": 1.0}, {"part": "one"})),
        asked(member={"weight": 2.0}), asked(reward=Redness()), asked(judges={}), asked(diversity=None),
        asked(truth=GoldScore()), asked(truth=GoldScore("alignment")), asked(standardise=True),
        asked(sampling=Sampler(5, 1.0)), asked(sampling=Sampler(4, 1.0, schedule=partial(ddim, eta=0.0))),
        asked(model=StableDiffusionSource(str(PIPELINE), precision="bf16")),
        asked(validation_prompts=1), asked(images_per_prompt=2), asked(samples_per_batch=1),
    ]  # fmt: skip
    texts = [json.dumps(each, sort_keys=True) for each in [same, *different]]
    assert len(set(texts)) == len(texts)


def test_a_run_keeps_answers_without_a_configuration(tmp_path: Path) -> None:
    tune(make_tuning(cache_folder=tmp_path / "kept", epochs=0.1), tmp_path / "run")
    assert len(list((tmp_path / "kept" / "baseline_cache").glob("*.safetensors"))) == 2  # validation and test
