"""How many floating point operations a fine-tuning run takes: from one denoising step to the whole of it."""

from dataclasses import dataclass

from t2ifb.data.prompt_batches import PromptDataModule
from t2ifb.diffusion.ledger import Operations
from t2ifb.learning.refl_savings import Measured


@dataclass(frozen=True)
class Length:
    """How long a run is, as `FineTuning` goes on.

    Attributes:
        prompts: To tune on.
        tests: To report on.
        epochs: How often each training prompt is seen.
        validate_every: Updates between two validations.
    """

    prompts: int
    tests: int
    epochs: float
    validate_every: int

    def updates(self, batch_size: int) -> int:
        """Of the whole run; the last is followed by a validation."""
        data = PromptDataModule([""] * self.prompts, batch_size)
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        return -(-steps // every) * every


@dataclass(frozen=True)
class Arithmetic:
    """Floating point operations by precision.

    Attributes:
        denoising: Of one step of one sample in training, guidance included.
        gradient: Of one reward gradient of one sample: its share of the rollout, the base model's call, the policy's
            with its backward pass, decoder and reward with theirs, and what checkpointing computes again.
        update: Of one update.
        training: Of all updates.
        validation: Of one validation.
        judging: Of the base model's images, all validations and the report on the test prompts.
        updates: How many.
        validations: How many.
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
        """Of everything."""
        return self.training + self.judging

    @classmethod
    def of(cls, run: Measured, length: Length) -> "Arithmetic":
        """Count for a run of some length.

        The base model's images are drawn without the KL divergence, and so by half the calls. The report asks base
        model, kept and last checkpoint for one image of each test prompt.
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
