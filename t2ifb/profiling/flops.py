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

    def updates(self, batch_size: int) -> int:
        """Updates of the whole run. The last one is followed by a validation."""
        data = PromptDataModule([""] * self.prompts, batch_size)
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        return -(-steps // every) * every


@dataclass(frozen=True)
class FlopEstimate:
    """Floating point operations by precision.

    Attributes:
        denoising: One step of one sample in training, including guidance.
        gradient: One reward gradient of one sample: its share of the rollout, the base model's call, the policy's call,
            decoder and reward with their backward passes, and recomputation by checkpointing.
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
        tuning, m = run.tuning, run.tuning.method.gradients_per_rollout
        gradient = run.update.sample + (tuning.steps_to_window / m) * run.update.denoising
        update = tuning.batch_size * m * gradient
        updates = length.updates(tuning.batch_size)
        validations = updates // min(length.validate_every, updates)
        steps = tuning.sampling.num_inference_steps * run.judging.denoising
        of_base, of_policy = (calls * steps + run.judging.sample for calls in (1, 2))
        validation = run.images * of_policy
        judging = run.images * of_base + validations * validation + length.tests * (of_base + 2 * of_policy)
        return cls(run.update.denoising, gradient, update, updates * update, validation, judging, updates, validations)
