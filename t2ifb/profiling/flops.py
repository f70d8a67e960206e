"""Floating point operations of a fine-tuning run, from one denoising step to the whole run."""

from dataclasses import dataclass, replace

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.guidance_sweep import MODELS, SPLITS, at_equal_cost
from t2ifb.profiling.cost import RunSpec
from t2ifb.profiling.memory_tracker import Operations
from t2ifb.profiling.savings import MemoryEstimate


@dataclass(frozen=True)
class Length:
    """Length of a `FineTuner` run.

    Attributes:
        prompts: Number of training prompts, or of preference pairs.
        tests: Number of test prompts, of one process.
        epochs: Number of passes over the training prompts.
        validate_every: Updates between two validations.
        batch_size: Prompts or pairs per update, of all processes.
        compared: Number of prompts that the guidance scales are compared on, per split and of one process.
    """

    prompts: int
    tests: int
    epochs: float
    validate_every: int
    batch_size: int = 1
    compared: int = 0

    def updates(self, per_experience: int = 1) -> int:
        """Updates of the whole run, for the updates per experience. The last one is followed by a validation."""
        data = PromptDataModule([""] * self.prompts, self.batch_size, updates_per_batch=per_experience)
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        return -(-steps // every) * every


@dataclass(frozen=True)
class FlopEstimate:
    """Floating point operations by precision.

    Attributes:
        denoising: One step of one sample in training, including guidance.
        gradient: One row of the loss: its share of sampling and scoring, and all its calls with their backward passes
            and recomputation by checkpointing.
        update: One update.
        training: All updates.
        validation: One validation.
        judging: The base model's images, all validations, the report on the test prompts and the comparison over
            guidance scales.
        updates: Number of updates.
        validations: Number of validations.
    """

    denoising: Operations
    gradient: Operations
    update: Operations
    training: Operations
    validation: Operations
    judging: Operations
    updates: int
    validations: int

    @property
    def run(self) -> Operations:
        """Operations of the whole run."""
        return self.training + self.judging

    @classmethod
    def of(cls, run: MemoryEstimate, length: Length) -> "FlopEstimate":
        """Count the operations of a run of a given length.

        The base model's images are sampled without the KL divergence, hence with half the calls. The report evaluates
        the base model, the kept and the last checkpoint on one image of each test prompt.
        With several processes, all are those of one.
        """
        tuning, work, each = run.tuning, run.tuning.work, run.tuning.algorithm.updates_per_experience
        sampling = (work.steps / work.rows) * run.update.denoising + (work.images / work.rows) * run.update.scoring
        gradient = run.update.sample + sampling
        update = (work.rows / each) * gradient
        updates = length.updates(each)
        validations = updates // min(length.validate_every, updates)
        steps = tuning.sampling.num_inference_steps * run.judging.denoising
        of_base, of_policy = (calls * steps + run.judging.sample for calls in (1, 2))
        validation = run.images * of_policy
        judging = run.images * of_base + validations * validation + length.tests * (of_base + 2 * of_policy)
        for sampler in compared_samplers(tuning) if length.compared else ():
            evaluations = sampler.network_evaluations / tuning.sampling.network_evaluations
            judging += length.compared * (evaluations * steps + run.judging.sample)
        return cls(run.update.denoising, gradient, update, updates * update, validation, judging, updates, validations)


def compared_samplers(tuning: RunSpec) -> list[Sampler]:
    """Sampler of each image of a prompt in `sweep_guidance`, but for those of the report.

    The base model is taken to be at its best at the highest scale.
    """
    if not tuning.guidance_scales:
        return []
    own = tuning.sampling
    scales = sorted({*tuning.guidance_scales, own.guidance_scale})
    samplers = [replace(own, guidance_scale=scale) for scale in scales]
    best, unguided = samplers[-1], replace(own, guidance_scale=1.0)
    drawn = {(model, split, each) for model in MODELS for split in SPLITS for each in samplers}
    drawn |= {("base", split, each) for split in SPLITS for each in at_equal_cost(best, unguided.network_evaluations)}
    drawn |= {("tuned", "test", unguided)}
    drawn -= {(model, "test", own) for model in MODELS}
    return [*(each for _, _, each in drawn), *[best] * (tuning.best_of - 1)]
