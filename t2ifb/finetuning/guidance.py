"""End of a fine-tuning run: the kept adapters and the base model over guidance scales."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from t2ifb.diffusion.model import TextToImageModel
from t2ifb.evaluation.comparison import write_gains
from t2ifb.evaluation.guidance_sweep import (
    BEST,
    MODELS,
    SPLITS,
    GuidanceSweep,
    Images,
    Scores,
    in_words,
    sweep_guidance,
)
from t2ifb.evaluation.guidance_verdict import card, sentence, show_sweep, write_sweep
from t2ifb.evaluation.tuning_plots import progress_sheet
from t2ifb.finetuning.baseline_cache import BaselineCache
from t2ifb.finetuning.evaluator import BEST_OF_SPLIT, REWARD, EvalSamples, Evaluator, evaluate
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import write_text

if TYPE_CHECKING:
    from t2ifb.finetuning.run import FineTuner

SHOWN = 12
"""Number of test prompts in the picture, counted from the first."""


@dataclass(frozen=True)
class RunGuidance:
    """Comparison of a run's kept adapters with the base model over guidance scales.

    Attributes:
        sweep: The results.
        scores: Scores of all images, one row each.
        pictures: Images (SHOWN, 3, H, W) uint8 of the first test prompts, by what drew them.
        prompts: These prompts.
    """

    sweep: GuidanceSweep
    scores: pd.DataFrame
    pictures: Mapping[str, Tensor]
    prompts: Sequence[str]

    @property
    def sentence(self) -> str:
        """The verdict."""
        return sentence(self.sweep)

    @property
    def scale(self) -> float:
        """The best scale for the tuned model."""
        return self.sweep.tuned.guidance_scale

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Print and save everything; return the results for `summary.json`."""
        show_sweep(self.sweep, "kept checkpoint")
        write_text(run.samples / "guidance.csv", self.scores.to_csv(index=False))
        progress_sheet(self.prompts, self.pictures, run.samples / "guidance.png")
        write_gains(self.sweep.matches[BEST].gains, run.path, "table_kept_best_guidance")
        return write_sweep(self.sweep, run.path)

    def card(self) -> str:
        """Tables for the model card."""
        return card(self.sweep)


def guidance_of_run(
    tuner: "FineTuner",
    model: TextToImageModel,
    base: BaselineCache,
    test: Mapping[str, EvalSamples],
    device: torch.device,
) -> RunGuidance | None:
    """Compare the loaded adapters with the base model over the run's `guidance_scales`; None if there are none.

    All processes of a run must call this together.

    Args:
        tuner: The run.
        model: Model with the adapters.
        base: Cache of the base model's samples.
        test: Samples of `base` and `kept` on all test prompts with the run's own sampler.
        device: Device of the model.
    """
    if not tuner.guidance_scales:
        return None
    drawing = _Drawing(tuner, model, base, test, device)
    settings = tuner.sampling, tuner.guidance_scales, drawing.judges, [REWARD], tuner.best_of, tuner.seed
    sweep = sweep_guidance(drawing, *settings)
    chosen = {
        f"{name}, {in_words(sampler, sweep.own)}": drawing.pictures[Images(name, "test", sampler)]
        for samplers in ((sweep.own, sweep.own), (sweep.base, sweep.tuned))
        for name, sampler in zip(MODELS, samplers, strict=True)
    }
    return RunGuidance(sweep, pd.concat(drawing.tables), chosen, drawing.prompts["test"][:SHOWN])


class _Drawing:
    """Scores of images for `sweep_guidance`; see `Draw`."""

    def __init__(
        self,
        tuner: "FineTuner",
        model: TextToImageModel,
        base: BaselineCache,
        test: Mapping[str, EvalSamples],
        device: torch.device,
    ) -> None:
        self.tuner, self.model, self.base, self.test, self.device = tuner, model, base, test, device
        self.prompts = {split: tuner.prompts.of(split)[: tuner.guidance_prompts] for split in SPLITS}
        evaluator = tuner.evaluator("test", tuner.seed)
        self.judges, self.scorers = evaluator.chosen_by, evaluator.judges
        self.tables: list[pd.DataFrame] = []
        self.pictures: dict[Images, Tensor] = {}
        self.known: dict[Images, Scores] = {}

    def __call__(self, wanted: Sequence[Images]) -> list[Scores]:
        return [self._scores(each) for each in wanted]

    def _scores(self, images: Images) -> Scores:
        if images not in self.known:
            self.known[images] = self._several(images) if images.copies > 1 else self._single(images)
        return self.known[images]

    def _single(self, images: Images) -> Scores:
        prompts = self.prompts[images.split]
        if images.split == "test" and images.sampler == self.tuner.sampling:
            samples = self.test["base" if images.model == "base" else "kept"]
        else:
            samples = self._draw(images, 1, images.split)
        if images.split == "test":
            self.pictures[images] = samples.images[: len(prompts)][:SHOWN]
        return self._record(images, 1, {name: each[: len(prompts)] for name, each in samples.scores.items()})

    def _several(self, images: Images) -> Scores:
        """The image that is drawn alone, and further ones from noise of their own."""
        one, further = self._scores(replace(images, copies=1)), images.copies - 1
        rest = self._record(images, further, self._draw(images, further, BEST_OF_SPLIT).scores)
        return {name: np.concatenate([one[name], rest[name]], 1) for name in one}

    def _draw(self, images: Images, copies: int, noise: str) -> EvalSamples:
        """Samples of a request, with the noise of a split."""
        prompts, size = self.prompts[images.split], self.tuner.samples_per_batch
        evaluator = Evaluator(prompts, images.sampler, self.scorers, copies, self.tuner.seed, noise).to(self.device)
        if images.model == "base":
            return self.base.of(evaluator, self.model, size)
        whom = f"the kept checkpoint, {in_words(images.sampler, self.tuner.sampling)}"
        return evaluate(evaluator, self.model, size, whom, with_kl=False)

    def _record(self, images: Images, copies: int, scores: Mapping[str, Tensor]) -> Scores:
        """Scores (P, n) of images, which are also rows of a table."""
        sampler, values = images.sampler, {name: each.double().numpy() for name, each in scores.items()}
        prompts = [prompt for prompt in self.prompts[images.split] for _ in range(copies)]
        settings = {"model": images.model, "split": images.split, "guidance_scale": sampler.guidance_scale}
        table = pd.DataFrame({"prompt": prompts, **values})
        self.tables.append(table.assign(**settings, steps=sampler.num_inference_steps))
        return {name: each.reshape(-1, copies) for name, each in values.items()}
