"""Floating point operations of a fine-tuning run, from one denoising step to the whole run."""

from dataclasses import dataclass

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.profiling.memory_tracker import Operations
from t2ifb.profiling.savings import MemoryEstimate


@dataclass(frozen=True)
class Length:
    """Length of a `FineTuner` run.

    Attributes:
        prompts: Number of training prompts.
        tests: Number of test prompts.
        epochs: Number of passes over the training prompts.
        validate_every: Updates between two validations.
    """

    prompts: int
    tests: int
    epochs: float
    validate_every: int

    def updates(self, batch_size: int, per_experience: int = 1) -> int:
        """Updates of the whole run, for the updates per experience. The last one is followed by a validation."""
        data = PromptDataModule([""] * self.prompts, batch_size, updates_per_batch=per_experience)
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
        judging: The base model's images, all validations and the report on the test prompts.
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
        """
        tuning, work, each = run.tuning, run.tuning.work, run.tuning.algorithm.updates_per_experience
        sampling = (work.steps / work.rows) * run.update.denoising + (work.images / work.rows) * run.update.scoring
        gradient = run.update.sample + sampling
        update = (work.rows / each) * gradient
        updates = length.updates(tuning.batch_size, each)
        validations = updates // min(length.validate_every, updates)
        steps = tuning.sampling.num_inference_steps * run.judging.denoising
        of_base, of_policy = (calls * steps + run.judging.sample for calls in (1, 2))
        validation = run.images * of_policy
        judging = run.images * of_base + validations * validation + length.tests * (of_base + 2 * of_policy)
        return cls(run.update.denoising, gradient, update, updates * update, validation, judging, updates, validations)
