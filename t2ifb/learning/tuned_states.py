"""Evaluation of the base model and of a run's checkpoints."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor, nn

from t2ifb.data.files import file_lock
from t2ifb.diffusion.lora import load_adapter_state
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.judges import Judges
from t2ifb.learning.engine import first_process
from t2ifb.learning.exam import Answers, Exam, together
from t2ifb.learning.run_folder import RunFolder
from t2ifb.scorers.mix import Mix

REWARD = "reward"
"""Name of the training reward among the scorers."""
BASE = "base.safetensors"
"""File in a run's folder with the base model's samples on validation prompts."""
FLOOR_SAMPLES = 4
"""Number of samples in the rounding measurement."""


def look_at_base(
    run: RunFolder, exam: Exam, device: torch.device, answers: Callable[[], Answers], standardised: nn.Module | None
) -> Answers:
    """Evaluate the base model once, store the samples in the run's folder, and standardise the reward with them.

    Args:
        run: Run folder; its file `BASE` stores the samples.
        exam: The evaluation.
        device: Device of the scorers.
        answers: Computes the samples.
        standardised: The reward, if it is standardised on the base model's images; None otherwise.

    Raises:
        ValueError: A scorer gives all images the same score.
    """
    path = run.path / BASE
    with file_lock(run.path / ".base.lock"):  # one of several processes that start together does it
        if not path.exists():
            answers().save(path)
    found = Answers.read(path)
    if isinstance(standardised, Mix):
        scores = Judges(dict(standardised.scorers.items()))(found.images, exam.prompts, device)
        standardised.standardise(scores)
        together = torch.stack([scores[name] for name in standardised.scorers])
        found.scores[REWARD] = standardised.combine(together.to(device)).cpu()
    return found


def ask_states(
    run: RunFolder, exam: Exam, model: DiffusionModel, samples_per_batch: int, base: Answers
) -> tuple[dict[str, Answers], int]:
    """Samples of the base model (`base`), the kept checkpoint (`kept`) and the last one (`last`), and the kept step.

    Afterwards the model has the kept checkpoint's adapters.
    """
    files = run.best_checkpoint, run.last_checkpoint
    best, last = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    answers = {"base": base}
    load_adapter_state(model.denoiser, last["state_dict"])
    answers["last"] = ask(exam, model, samples_per_batch, "the last checkpoint")
    same = best["global_step"] == last["global_step"]
    load_adapter_state(model.denoiser, best["state_dict"])
    answers["kept"] = answers["last"] if same else ask(exam, model, samples_per_batch, "the kept checkpoint")
    return answers, int(best["global_step"])


def ask(exam: Exam, model: DiffusionModel, samples_per_batch: int, whom: str, base: bool = False) -> Answers:
    """Sample and score all images of an exam. Processes of one group share the sampling.

    Args:
        exam: The evaluation, on the model's device.
        model: The policy.
        samples_per_batch: Samples per batch.
        whom: Name of the model for the progress bar.
        base: Evaluate the base model instead.
    """
    share = range(len(exam))[dist.get_rank() :: dist.get_world_size()] if together() else range(len(exam))
    starts = range(0, len(share), samples_per_batch)
    for start in track(starts, f"sampling images of {whom}", disable=not first_process()):
        numbers = share[start : start + samples_per_batch]
        if base:
            with model.base():
                exam.look(model, numbers, with_kl=False)
        else:
            exam.look(model, numbers)
    exam.gather()
    return exam.answers()


@torch.no_grad()
def rounding_floor(
    exam: Exam, sampler: Sampler, model: DiffusionModel, training_context: Callable[[], AbstractContextManager[None]]
) -> Tensor:
    """KL divergence (T,) of the base model to itself from training precision alone, in nats per sample.

    The mean over `FLOOR_SAMPLES` at each step of the base model's own training rollouts, against the same weights in
    fp32. It shows the size of rounding errors: the KL divergence in training is that of one step, between two calls
    that round alike; in validations it is computed outside autocast, in the frozen weights' precision.

    Args:
        exam: The evaluation; its first prompts and their noise are used.
        sampler: Sampler of training rollouts.
        model: Model with the policy's adapters, which are disabled here.
        training_context: Context of U-Net calls in training.
    """
    schedule = sampler.schedule_of(model)
    found = []
    for number, prompt in enumerate(exam.prompts[:FLOOR_SAMPLES]):
        rollout = Rollout(schedule, [(exam.stream, exam.seed, number)], model.latent_shape, model.device)
        seen: list[tuple[Tensor, Tensor]] = []
        with model.exact(), model.base():
            denoise = sampler.denoiser(model, schedule, [prompt])
            for step in range(len(schedule)):
                seen.append((rollout.latents, denoise(rollout.latents, step)))
                rollout.take(seen[-1][1])
        with model.base():
            denoise = sampler.denoiser(model, schedule, [prompt])
            for step, (noisy, exact) in enumerate(seen):
                with training_context():
                    rounded = denoise(noisy, step)
                one, other = (schedule.kl_step(each, noisy, step) for each in (exact, rounded))
                found.append(gaussian_kl(one.mean, other.mean, one.variance))
    return torch.stack(found).reshape(-1, len(schedule)).mean(0)
