"""An exam put to the base model and to the checkpoints of a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from rich.progress import track
from torch import Tensor, nn

from t2ifb.data.files import file_lock
from t2ifb.diffusion.lora import load_adapter_state
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.judges import Judges
from t2ifb.learning.engine import first_process
from t2ifb.learning.exam import Answers, Exam, together
from t2ifb.learning.losses import gaussian_kl
from t2ifb.learning.run_folder import RunFolder
from t2ifb.scorers.mix import Mix

REWARD = "reward"
"""How the scorer that a run is trained on is called among its judges."""
BASE = "base.safetensors"
"""In a run's folder: the base model's answers on validation prompts."""
FLOOR_SAMPLES = 4
"""Samples that the rounding is measured with."""


def look_at_base(
    run: RunFolder, exam: Exam, device: torch.device, answers: Callable[[], Answers], standardised: nn.Module | None
) -> Answers:
    """The base model's answers, found once and kept in the run's folder; sets the reward's units by them.

    Args:
        run: Its `BASE` has the answers.
        exam: What is asked.
        device: Where the scorers are.
        answers: Finds them.
        standardised: The reward, if its units are to be those of the base model's images.

    Raises:
        ValueError: A scorer gives all of them the same score.
    """
    path = run.path / BASE
    with file_lock(run.path / ".base.lock"):  # of several processes that begin together one looks
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
    """Answers of the base model (`base`), the kept checkpoint (`kept`) and the last one (`last`), and the kept step.

    The kept checkpoint's adapters are in the model afterwards.
    """
    files = run.best_checkpoint, run.last_checkpoint
    best, last = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    answers = {"base": base}
    load_adapter_state(model.unet, last["state_dict"])
    answers["last"] = ask(exam, model, samples_per_batch, "the last checkpoint")
    same = best["global_step"] == last["global_step"]
    load_adapter_state(model.unet, best["state_dict"])
    answers["kept"] = answers["last"] if same else ask(exam, model, samples_per_batch, "the kept checkpoint")
    return answers, int(best["global_step"])


def ask(exam: Exam, model: DiffusionModel, samples_per_batch: int, whom: str, base: bool = False) -> Answers:
    """Draw all samples of an exam and judge them; several processes that have found each other share the drawing.

    Args:
        exam: On the model's device.
        model: The policy.
        samples_per_batch: Samples that are drawn together.
        whom: For the progress bar.
        base: Ask the base model instead.
    """
    share = range(len(exam))[dist.get_rank() :: dist.get_world_size()] if together() else range(len(exam))
    starts = range(0, len(share), samples_per_batch)
    for start in track(starts, f"drawing samples of {whom}", disable=not first_process()):
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
    """The KL divergence (T,), in nats a sample, that the precision of training alone makes of the base model to itself.

    The mean of `FLOOR_SAMPLES` at each step of the base model's own rollouts as training makes them, against the same
    weights in fp32. It says of what size rounding is: a KL divergence in training is of one step, between two
    calls that round alike; those of validation are computed outside of autocast, in the frozen weights' precision.

    Args:
        exam: Its first prompts and their noise.
        sampler: Of the rollouts in training.
        model: With the policy's adapters, which are off here.
        training_context: Under which the U-Net is called in training.
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
                one, other = (schedule.kl_transition(each, noisy, step) for each in (exact, rounded))
                found.append(gaussian_kl(one.mean, other.mean, one.variance))
    return torch.stack(found).reshape(-1, len(schedule)).mean(0)
