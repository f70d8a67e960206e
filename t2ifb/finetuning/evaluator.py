"""Evaluation of a policy, of the base model and of checkpoints on fixed held-out prompts and noise."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from t2ifb.data.embeddings import Encoder
from t2ifb.diffusion.lora import load_adapter_state, without_adapters
from t2ifb.diffusion.model import TextToImageModel
from t2ifb.diffusion.sampling import Rollout, Sampler, to_bytes
from t2ifb.evaluation.metrics import diversity
from t2ifb.evaluation.scoring import ScorerSet, ScoreSheet
from t2ifb.evaluation.selection import normalized_gain, selection_score
from t2ifb.scorers.mix import Mix
from t2ifb.training.losses import kl_sums
from t2ifb.training.processes import in_process_group, in_shares, of_all, of_first, own_share
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import first_process
from t2ifb.utils.devices import true_float32
from t2ifb.utils.files import atomic_write, file_lock
from t2ifb.utils.random_streams import Stream

BEST_OF_SPLIT = "best_of"
"""Name of test prompts with further noise, from which best-of-n chooses."""
STREAMS = {"validation": Stream.VALIDATION, "test": Stream.TEST, BEST_OF_SPLIT: Stream.BEST_OF}
FIGURES = ("judges", "gold", "kl", "kl_without_last_two", "diversity", "prompt")
"""Reserved names of metrics and of a sheet's column, not allowed for judges."""

TENSORS = ("images", "kl", "kl_without_last_two", "diversity")
"""Tensor fields of `EvalSamples`."""


@dataclass(frozen=True)
class EvalSamples:
    """Evaluation samples of a model: N samples, `images_per_prompt` consecutive ones per prompt.

    Attributes:
        images: (N, 3, H, W) uint8.
        scores: (N,) float32 by scorer.
        kl: (N,) float32, nats: sum over all T transitions of the sample's own rollout.
        kl_without_last_two: (N,) float32, nats: sum without the last two transitions (see `kl_sums`).
        diversity: (P,) float32, mean distance (1 - cosine) between the images of each prompt; empty with one image per
            prompt.
    """

    images: Tensor
    scores: dict[str, Tensor]
    kl: Tensor
    kl_without_last_two: Tensor
    diversity: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file atomically."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        order = {"scores": json.dumps(list(self.scores))}
        with atomic_write(path) as file:
            file.write(save(tensors | {f"scores/{name}": score for name, score in self.scores.items()}, order))

    def sheet(self, prompts: Sequence[str]) -> ScoreSheet:
        """Scores and KL divergence of each image, in the evaluator's order."""
        columns = {**self.scores, "kl": self.kl, "kl_without_last_two": self.kl_without_last_two}
        return ScoreSheet(prompts, {name: column.double().numpy() for name, column in columns.items()})

    @classmethod
    def read(cls, path: Path) -> "EvalSamples":
        """Read a file written by `save`."""
        with safe_open(path, "pt") as file:
            scores = {name: file.get_tensor(f"scores/{name}") for name in json.loads(file.metadata()["scores"])}
            return cls(scores=scores, **{name: file.get_tensor(name) for name in TENSORS})


class Evaluator(nn.Module):
    """Evaluates a policy on the same samples every time, on this module's device.

    Attributes:
        prompts: N prompts, each repeated consecutively for its images.
        base: Samples of the base model, once known.
        last: The latest samples.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        sampler: Sampler,
        judges: ScorerSet,
        images_per_prompt: int = 1,
        seed: int = 0,
        split: str = "validation",
        encoder: Encoder | None = None,
        chosen_by: Mapping[str, float] | None = None,
    ) -> None:
        """Store the settings.

        Args:
            prompts: P distinct prompts.
            sampler: Sampler of the images.
            judges: Scorers of the images.
            images_per_prompt: Number of images per prompt, K.
            seed: Seed of the noise.
            split: `validation` or `test`; selects the noise.
            encoder: Encoder of images to unit vectors, for the diversity.
            chosen_by: Weights of the judges in the selection score, by name.
        """
        super().__init__()
        self.prompts = [prompt for prompt in prompts for _ in range(images_per_prompt)]
        self.sampler, self.judges, self.images_per_prompt = sampler, judges, images_per_prompt
        self.stream, self.seed, self.encoder, self.chosen_by = STREAMS[split], seed, encoder, dict(chosen_by or {})
        self.base: EvalSamples | None = None
        self.last: EvalSamples | None = None
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._place: Tensor
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def device(self) -> torch.device:
        """Device of the scorers."""
        return self._place.device

    @torch.no_grad()
    def sample(self, model: TextToImageModel, numbers: Sequence[int], with_kl: bool = True) -> None:
        """Sample the images with the given indices and record images and KL divergence.

        Everything is computed outside autocast: in bf16 the rounding of the two denoiser calls alone may exceed the
        policy's KL divergence. The denoiser computes in the precision of its frozen weights, the rest in fp32, which is
        not rounded to TF32.

        Args:
            model: Model with its adapters enabled.
            numbers: Indices of the samples.
            with_kl: Also evaluate the base model at each step; otherwise the KL divergence is recorded as 0.
        """
        schedule = self.sampler.schedule_of(model)
        prompts = [self.prompts[number] for number in numbers]
        keys = [(self.stream, self.seed, number) for number in numbers]
        rollout = Rollout(schedule, keys, model.latent_shape, model.device)
        kl = torch.zeros(len(schedule), len(numbers), device=model.device)
        with torch.autocast(model.device.type, enabled=False), true_float32():
            denoise = self.sampler.denoiser(model, schedule, prompts)
            for step in range(len(schedule)):
                noisy = rollout.latents
                output = denoise(noisy, step)
                if with_kl:
                    with without_adapters(model.denoiser):
                        reference = denoise(noisy, step)
                    kl[step] = schedule.kl(output, reference, noisy, step)
                rollout.take(output)
            images = to_bytes(model.decode(rollout.latents))
        nats = torch.stack(list(kl_sums(kl).values()), 1).cpu()
        self._found |= {n: (image, sums) for n, image, sums in zip(numbers, images, nats, strict=True)}

    @torch.no_grad()
    def answers(self) -> EvalSamples:
        """Score the samples since the last call. Processes of a group share their samples and the scoring.

        The number of processes changes the batches of the scorers, and with them at most the last digits of a score.

        Raises:
            ValueError: Samples are missing.
        """
        shared = {number: sample for some in of_all(self._found) for number, sample in some.items()}
        if missing := set(range(len(self))) - shared.keys():
            raise ValueError(f"{len(missing)} samples of the evaluator are missing")
        found = [shared[number] for number in range(len(self))]
        self._found = {}
        images = torch.stack([image for image, _ in found])
        scores = self.scores(self.judges, images)
        kl, kl_without_last_two = torch.stack([sums for _, sums in found]).unbind(1)
        self.last = EvalSamples(
            images, scores, kl.contiguous(), kl_without_last_two.contiguous(), self._diversity(images)
        )
        return self.last

    def scores(self, judges: ScorerSet, images: Tensor) -> dict[str, Tensor]:
        """Scores (N,) of the images (N, 3, H, W) by name. Each process of a group scores its share."""
        return in_shares(len(images), lambda share: judges(images[share], self.prompts[share], self.device))

    def figures(self, answers: EvalSamples) -> dict[str, float]:
        """Means over the samples: each scorer, both KL sums, `diversity`, and the selection score `judges`."""
        figures = {name: float(score.nanmean()) for name, score in answers.scores.items()}
        figures |= self.kl_figures(answers)
        if len(answers.diversity):
            figures["diversity"] = float(answers.diversity.mean())
        if self.base is not None and self.chosen_by:
            before = self.base.scores
            rises = [normalized_gain(before[name].numpy(), answers.scores[name].numpy()) for name in self.chosen_by]
            figures["judges"] = float(selection_score(rises, weights=list(self.chosen_by.values())))
        return figures

    @staticmethod
    def kl_figures(answers: EvalSamples) -> dict[str, float]:
        """Means over the samples of both KL sums, in nats."""
        return {name: float(getattr(answers, name).mean()) for name in ("kl", "kl_without_last_two")}

    def _diversity(self, images: Tensor) -> Tensor:
        """Mean distance (P,) between the images of each prompt."""
        k = self.images_per_prompt
        if self.encoder is None or k < 2:
            return torch.zeros(0)
        encode = self.encoder.encode_images

        def vectors(share: slice) -> dict[str, Tensor]:
            pixels = (some.to(self.device).float() / 255 for some in images[share].split(64))
            return {"vectors": torch.cat([encode(some).cpu() for some in pixels])}

        return diversity(in_shares(len(images), vectors)["vectors"].unflatten(0, (-1, k)))


REWARD = "reward"
"""Name of the training reward among the scorers."""
BASE = "base.safetensors"
"""File in a run's folder with the base model's samples on validation prompts."""
FLOOR_SAMPLES = 4
"""Number of samples in the rounding measurement."""


def stored(path: Path, compute: Callable[[], EvalSamples]) -> EvalSamples:
    """Samples of a file, which is written first if it does not exist. All processes of a group must call this together.

    Separate runs that need the same file wait for the first.
    """
    if in_process_group():  # all of them compute, so none may wait for another at a lock
        if of_first(path.exists):
            return of_first(lambda: EvalSamples.read(path))
        answers = compute()
        if first_process():
            answers.save(path)
        return answers
    with file_lock(path.with_name(f".{path.stem}.lock")):
        if not path.exists():
            compute().save(path)
        return EvalSamples.read(path)


def evaluate_base(
    run: RunFolder, evaluator: Evaluator, answers: Callable[[], EvalSamples], standardised: nn.Module | None
) -> EvalSamples:
    """Evaluate the base model once, store the samples in the run's folder, and standardise the reward with them.

    Args:
        run: Run folder; its file `BASE` stores the samples.
        evaluator: The evaluation, on the scorers' device.
        answers: Computes the samples.
        standardised: The reward, if it is standardised on the base model's images; None otherwise.

    Raises:
        ValueError: A scorer gives all images the same score.
    """
    found = stored(run.path / BASE, answers)
    if isinstance(standardised, Mix):
        scores = evaluator.scores(ScorerSet(dict(standardised.scorers.items())), found.images)
        standardised.standardise(scores)
        parts = torch.stack([scores[name] for name in standardised.scorers])
        found.scores[REWARD] = standardised.combine(parts.to(evaluator.device)).cpu()
    return found


def evaluate_checkpoints(
    run: RunFolder, evaluator: Evaluator, model: TextToImageModel, samples_per_batch: int, base: EvalSamples
) -> tuple[dict[str, EvalSamples], int]:
    """Samples of the base model (`base`), the kept checkpoint (`kept`) and the last one (`last`), and the kept step.

    Afterwards the model has the kept checkpoint's adapters.
    """
    files = run.best_checkpoint, run.last_checkpoint
    best, last = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
    answers = {"base": base}
    load_adapter_state(model.denoiser, last["state_dict"])
    answers["last"] = evaluate(evaluator, model, samples_per_batch, "the last checkpoint")
    same = best["global_step"] == last["global_step"]
    load_adapter_state(model.denoiser, best["state_dict"])
    answers["kept"] = answers["last"] if same else evaluate(evaluator, model, samples_per_batch, "the kept checkpoint")
    return answers, int(best["global_step"])


def evaluate(
    evaluator: Evaluator,
    model: TextToImageModel,
    samples_per_batch: int,
    whom: str,
    base: bool = False,
    with_kl: bool = True,
) -> EvalSamples:
    """Sample and score all images of an evaluator. Processes of one group share the sampling.

    Args:
        evaluator: The evaluation, on the model's device.
        model: The policy.
        samples_per_batch: Samples per batch.
        whom: Name of the model for the progress bar.
        base: Evaluate the base model instead.
        with_kl: Compute the policy's KL divergence, see `Evaluator.sample`.
    """
    share = range(len(evaluator))[own_share()]
    starts = range(0, len(share), samples_per_batch)
    for start in track(starts, f"sampling images of {whom}", disable=not first_process()):
        numbers = share[start : start + samples_per_batch]
        if base:
            with without_adapters(model.denoiser):
                evaluator.sample(model, numbers, with_kl=False)
        else:
            evaluator.sample(model, numbers, with_kl)
    return evaluator.answers()


@contextmanager
def weights_in_fp32(network: nn.Module) -> Iterator[None]:
    """A network computing in fp32, not in TF32. Weights in half precision are fp32 in this context."""
    rounded = [(weight, weight.dtype) for weight in network.parameters() if weight.dtype != torch.float32]
    try:
        for weight, _ in rounded:
            weight.data = weight.data.float()
        with true_float32():
            yield
    finally:
        for weight, dtype in rounded:
            weight.data = weight.data.to(dtype)


@torch.no_grad()
def rounding_floor(
    evaluator: Evaluator,
    sampler: Sampler,
    model: TextToImageModel,
    training_context: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """KL divergence (T,) of the base model to itself from training precision alone, in nats per sample.

    The mean over `FLOOR_SAMPLES` at each step of the base model's own training rollouts, against the same weights in
    fp32. It shows the size of rounding errors: the KL divergence in training is that of one step, between two calls
    that round alike; in validations it is computed outside autocast, in the frozen weights' precision.

    Args:
        evaluator: The evaluation; its first prompts and their noise are used.
        sampler: Sampler of training rollouts.
        model: Model with the policy's adapters, which are disabled here.
        training_context: Context of the denoiser's calls in training.
    """
    schedule = sampler.schedule_of(model)

    def measured(number: int) -> Tensor:
        """The KL divergence (T,) on the rollout of one sample."""
        prompt = evaluator.prompts[number]
        found: list[Tensor] = []
        rollout = Rollout(schedule, [(evaluator.stream, evaluator.seed, number)], model.latent_shape, model.device)
        seen: list[tuple[Tensor, Tensor]] = []
        with weights_in_fp32(model.denoiser), without_adapters(model.denoiser):
            denoise = sampler.denoiser(model, schedule, [prompt])
            for step in range(len(schedule)):
                seen.append((rollout.latents, denoise(rollout.latents, step)))
                rollout.take(seen[-1][1])
        with without_adapters(model.denoiser):
            denoise = sampler.denoiser(model, schedule, [prompt])
            for step, (noisy, exact) in enumerate(seen):
                with training_context():
                    rounded = denoise(noisy, step)
                found.append(schedule.kl(exact, rounded, noisy, step))
        return torch.cat(found)

    count = min(FLOOR_SAMPLES, len(evaluator))
    rows = in_shares(count, lambda share: {"kl": torch.stack([measured(n) for n in range(count)[share]])})
    return rows["kl"].mean(0)
