"""An evaluator asks the same questions every time, and counts what a policy has moved."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler, generate
from t2ifb.evaluation.scoring import ScorerSet
from t2ifb.finetuning.baseline_cache import BaselineCache
from t2ifb.finetuning.evaluator import EvalSamples, Evaluator, evaluate, evaluate_base, rounding_floor
from t2ifb.scorers import CLIPScore
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.mix import Mix
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import CLIP
from t2ifb.training.run_folder import RunFolder
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.finetuning.tuning_worlds import Darkness
from tests.training.two_processes import in_two_processes, on_linux

SAMPLER = Sampler(4, 2.0)


def make_exam(images_per_prompt: int = 1, split: str = "validation") -> Evaluator:
    encoder = CLIPEncoder(CLIPSource(f"local-dir:{CLIP}", device="cpu"))
    judges = ScorerSet({"dark": Darkness()}, GoldScore())
    return Evaluator(PROMPTS, SAMPLER, judges, images_per_prompt, 3, split, encoder, {"dark": 1.0})


def test_the_base_model_has_moved_nowhere_and_draws_what_the_sampler_draws() -> None:
    model, evaluator = shapes_model(), make_exam()
    LoRA().add(model)
    answers = evaluate(evaluator, model, 2, "the policy")
    assert not answers.kl.any() and not answers.kl_without_last_two.any()
    drawn = torch.cat(list(generate(model, SAMPLER, PROMPTS, [(evaluator.stream, 3, 0), (evaluator.stream, 3, 1)])))
    assert torch.equal(answers.images, drawn)
    assert answers.scores.keys() == {"dark", "gold", "gold/alignment", "gold/fidelity", "gold/strict"}
    torch.testing.assert_close(answers.scores["dark"], Darkness()(drawn.float() / 255, PROMPTS))


def test_a_policy_that_moved_has_a_kl_and_a_gain_in_the_base_models_units() -> None:
    model, evaluator = shapes_model(), make_exam()
    weights = LoRA().add(model)
    evaluator.base = evaluate(evaluator, model, 2, "the base model", base=True)
    for weight in weights:
        weight.data = torch.full_like(weight, 0.03)
    answers = evaluate(evaluator, model, 2, "the policy")
    assert (answers.kl_without_last_two > 0).all() and (answers.kl_without_last_two < answers.kl).all()
    figures = evaluator.figures(answers)
    before, after = evaluator.base.scores["dark"], answers.scores["dark"]
    assert figures["judges"] == pytest.approx(float((after - before).mean() / before.std()), rel=1e-4)
    assert figures["kl"] == pytest.approx(float(answers.kl.mean()))
    assert figures["kl_without_last_two"] == pytest.approx(float(answers.kl_without_last_two.mean()))
    assert {"kl", "kl_without_last_two"} <= answers.sheet(evaluator.prompts).columns.keys()
    again = evaluate(evaluator, model, 1, "the base model", base=True)
    assert (again.images.int() - evaluator.base.images.int()).abs().max() <= 1


def test_diversity_is_the_distance_between_images_of_a_prompt() -> None:
    model, evaluator = shapes_model(), make_exam(images_per_prompt=3)
    answers = evaluate(evaluator, model, 3, "the policy")
    assert evaluator.encoder is not None
    embedded = evaluator.encoder.encode_images(answers.images[:3].float() / 255)
    distances = [1 - float(embedded[i] @ embedded[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert float(answers.diversity[0]) == pytest.approx(sum(distances) / 3, abs=1e-5)
    assert len(answers.diversity) == 2


def test_splits_have_their_own_noise() -> None:
    model = shapes_model()
    one, other = (evaluate(make_exam(split=split), model, 2, split) for split in ("validation", "test"))
    assert not torch.equal(one.images, other.images)


def test_answers_come_back_from_their_file(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    answers = EvalSamples(images, {"a/b": torch.rand(2)}, torch.rand(2), torch.rand(2), torch.rand(0))
    answers.save(tmp_path / "answers.safetensors")
    back = EvalSamples.read(tmp_path / "answers.safetensors")
    assert torch.equal(back.scores["a/b"], answers.scores["a/b"])
    assert torch.equal(back.kl, answers.kl)
    assert torch.equal(back.kl_without_last_two, answers.kl_without_last_two)
    assert len(back.diversity) == 0


def test_an_exam_that_was_not_finished_has_no_answers() -> None:
    evaluator = make_exam()
    evaluator.sample(shapes_model(), [0])
    with pytest.raises(ValueError, match="1 samples of the evaluator are missing"):
        evaluator.answers()


def test_a_judge_without_an_opinion_does_not_silence_the_others() -> None:
    evaluator, one = make_exam(), torch.tensor([1.0, torch.nan])
    images, kl, none = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), torch.zeros(0)
    evaluator.base = EvalSamples(images, {"dark": torch.tensor([0.0, 1.0])}, kl, kl, none)
    assert evaluator.figures(EvalSamples(images, {"dark": one}, kl, kl, none))["judges"] == pytest.approx(2**0.5)


def test_judges_count_by_their_weight() -> None:
    evaluator = make_exam()
    evaluator.chosen_by = {"dark": 0.6, "gold": 0.2, "gold/strict": 0.0}
    images, zero, none = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), torch.zeros(0)
    before, unit = torch.tensor([-0.5, 0.5]), 0.5**0.5  # the standard deviation
    evaluator.base = EvalSamples(images, dict.fromkeys(evaluator.chosen_by, before), zero, zero, none)
    rises = {"dark": 0.3, "gold": 0.1, "gold/strict": -9.0}
    after = {name: before + unit * normalized_gain for name, normalized_gain in rises.items()}
    assert evaluator.figures(EvalSamples(images, after, zero, zero, none))["judges"] == pytest.approx(0.25)


def test_the_rounding_of_a_precision_is_measured() -> None:
    model, evaluator = shapes_model(), make_exam()

    def floor(dtype: torch.dtype | None) -> float:
        context = torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)
        steps = rounding_floor(evaluator, SAMPLER, model, lambda: context)
        assert steps.shape == (4,)
        return float(steps.sum())

    assert floor(None) == 0
    rounded = floor(torch.bfloat16)
    assert rounded > 0.01
    LoRA().add(model)
    half = model.denoiser.to(torch.bfloat16)
    assert 0.5 * rounded < floor(None) < 2 * rounded  # half-precision weights round without autocast
    assert model.denoiser is half and model.denoiser.dtype == torch.bfloat16


def test_one_image_alone_gives_the_guard_a_figure() -> None:
    """It has no deviation that a gain could be told in: then it is told as it is."""
    model, evaluator = shapes_model(), make_exam()
    before = evaluate(evaluator, model, 2, "the base model", base=True)
    one = {name: score[:1] for name, score in before.scores.items()}
    rest = before.kl[:1], before.kl_without_last_two[:1], torch.zeros(0)
    evaluator.base = EvalSamples(before.images[:1], one, *rest)
    after = EvalSamples(before.images[:1], {name: score + 0.25 for name, score in one.items()}, *rest)
    assert evaluator.figures(after)["judges"] == pytest.approx(0.25, abs=1e-6)


def test_float32_is_not_rounded_to_tf32_where_rounding_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, evaluator = shapes_model("bf16"), make_exam()
    seen: list[tuple[torch.dtype, str]] = []
    predict = model.predict

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append((model.denoiser.dtype, torch.backends.cudnn.conv.fp32_precision))
        return predict(*arguments, **options)

    monkeypatch.setattr(model, "predict", watched)
    evaluator.sample(model, [0])
    assert set(seen) == {(torch.bfloat16, "ieee")}
    seen.clear()
    rounding_floor(evaluator, Sampler(2), model, nullcontext)
    assert set(seen) == {(torch.float32, "ieee"), (torch.bfloat16, "tf32")}


class Counting(Darkness):
    """Notes how many images it scored."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.images += len(images)
        return super().forward(images, prompts)


@on_linux
def test_two_processes_share_samples_scores_base_images_and_rounding(tmp_path: Path) -> None:
    """Three images of one prompt do not divide evenly. On equal images scores agree to 1e-5."""
    equal = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)

    def work(folder: Path) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        model, evaluator, counting = shapes_model(), make_exam(images_per_prompt=3), Counting()
        evaluator.prompts, evaluator.sampler = evaluator.prompts[:3], Sampler(2)
        evaluator.judges.scorers["counting"] = counting
        weights = LoRA().add(model)
        drawn: list[int] = []
        sample = evaluator.sample

        def noted(model: Any, numbers: Any, with_kl: bool = True) -> None:
            drawn.extend(numbers)
            sample(model, numbers, with_kl)

        evaluator.sample = noted  # type: ignore[method-assign]

        mix = Mix({"counting": counting, "clip_score": CLIPScore(CLIPEncoder(CLIPSource(f"local-dir:{CLIP}")))})
        cache = BaselineCache(folder / "cache", {})
        evaluator.base = evaluate_base(RunFolder(folder), evaluator, lambda: cache.of(evaluator, model, 2), mix)
        scored = counting.images
        for weight in weights:
            weight.data = torch.full_like(weight, 0.03)
        policy = evaluate(evaluator, model, 2, "the policy")
        context = partial(torch.autocast, "cpu", torch.bfloat16)
        floor = rounding_floor(evaluator, Sampler(2), model, context)
        return {
            "drawn": drawn, "scored": scored, "base": evaluator.base, "policy": policy, "floor": floor,
            "figures": evaluator.figures(policy), "units": mix.means,
            "scores": evaluator.scores(evaluator.judges, equal),
        }  # fmt: skip

    alone = work(tmp_path / "one")
    together = in_two_processes(tmp_path, lambda: work(tmp_path / "two"))
    assert [each["drawn"] for each in together] == [[0, 2] * 2, [1] * 2]
    assert [each["scored"] for each in together] == [4, 2] and alone["scored"] == 6  # as a judge and in the mix
    for shared in together:
        for who in ("base", "policy"):
            one, two = alone[who], shared[who]
            assert (one.images.int() - two.images.int()).abs().max() <= 1
            assert one.scores.keys() == two.scores.keys()
            for name in one.scores:
                torch.testing.assert_close(two.scores[name], one.scores[name], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(two.diversity, one.diversity, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(shared["units"], alone["units"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(shared["floor"], alone["floor"])
        torch.testing.assert_close(shared["scores"], alone["scores"], rtol=1e-5, atol=1e-6)
        assert shared["figures"] == pytest.approx(alone["figures"], rel=1e-3, abs=1e-3)
