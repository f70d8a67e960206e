"""What a validation looks at: fixed held-out prompts and noise, every scorer, the KL divergence, diversity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from t2ifb.data.files import atomic_write
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler, to_bytes
from t2ifb.evaluation.judges import Judges
from t2ifb.learning.losses import gaussian_kl

EXAM_STREAM = 0x0DF2
"""Keeps the held-out noise apart from that of training."""


@dataclass(frozen=True)
class Answers:
    """What some model did with the exam's samples, N of them: `images_per_prompt` in a row of each prompt.

    Attributes:
        images: (N, 3, H, W) uint8.
        scores: (N,) float32 by scorer.
        kl: (N,) float32, nats: Σ over all T transitions of the sample's own rollout.
        diversity: (P,) float32, mean distance (1 - cosine) between the images of each prompt; empty for one image each.
    """

    images: Tensor
    scores: dict[str, Tensor]
    kl: Tensor
    diversity: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"images": self.images, "kl": self.kl, "diversity": self.diversity}
        with atomic_write(path) as file:
            file.write(save(tensors | {f"scores/{name}": score for name, score in self.scores.items()}))

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Read what `save` wrote."""
        found = load_file(path)
        prefix = "scores/"
        scores = {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}
        return cls(found["images"], scores, found["kl"], found["diversity"])


class Exam:
    """Asks a policy for the same samples every time.

    Attributes:
        prompts: N, each as often in a row as it has images.
        base: The base model's answers, once they are known.
        last: The latest answers.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        sampler: Sampler,
        judges: Judges,
        images_per_prompt: int = 1,
        seed: int = 0,
        embed: Callable[[Tensor], Tensor] | None = None,
        chosen_by: Sequence[str] = (),
    ) -> None:
        """Set the questions.

        Args:
            prompts: P different ones.
            sampler: How images are drawn.
            judges: Who looks at them.
            images_per_prompt: K.
            seed: Of the noise.
            embed: Embeds images (B, 3, H, W) in [0, 1] as unit vectors (B, D), for the diversity.
            chosen_by: Names of the judges that the guard's figure is the mean of.
        """
        self.prompts = [prompt for prompt in prompts for _ in range(images_per_prompt)]
        self.sampler, self.judges, self.images_per_prompt = sampler, judges, images_per_prompt
        self.seed, self.embed, self.chosen_by = seed, embed, tuple(chosen_by)
        self.base: Answers | None = None
        self.last: Answers | None = None
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    @torch.no_grad()
    def look(self, model: DiffusionModel, numbers: Sequence[int]) -> None:
        """Draw the samples of some numbers, and note images and KL divergence."""
        schedule = self.sampler.schedule_of(model)
        prompts = [self.prompts[number] for number in numbers]
        keys = [(EXAM_STREAM, self.seed, number) for number in numbers]
        rollout = Rollout(schedule, keys, model.latent_shape, model.device)
        denoise = self.sampler.denoiser(model, schedule, prompts)
        kl = torch.zeros(len(numbers), device=model.device)
        for step in range(len(schedule)):
            noisy = rollout.to(step, denoise)
            output = denoise(noisy, step)
            with model.base():
                base = denoise(noisy, step)
            policy, reference = (schedule.kl_transition(each, noisy, step) for each in (output, base))
            kl += gaussian_kl(policy.mean, reference.mean, policy.variance)
            rollout.take(output)
        images = to_bytes(model.decode(rollout.latents))
        self._found |= {n: (image, nats) for n, image, nats in zip(numbers, images, kl.cpu(), strict=True)}

    def answers(self, device: torch.device | str = "cpu") -> Answers:
        """Judge what was drawn since the last time.

        Raises:
            ValueError: Samples are missing.
        """
        if missing := set(range(len(self))) - self._found.keys():
            raise ValueError(f"{len(missing)} samples of the exam were not drawn")
        found = [self._found[number] for number in range(len(self))]
        self._found = {}
        images = torch.stack([image for image, _ in found])
        scores = self.judges(images, self.prompts, device)
        return Answers(images, scores, torch.stack([nats for _, nats in found]), self._diversity(images, device))

    def close(self, device: torch.device | str = "cpu") -> dict[str, float]:
        """Judge what was drawn since the last time; gives the figures of `figures`."""
        self.last = self.answers(device)
        return self.figures(self.last)

    def figures(self, answers: Answers) -> dict[str, float]:
        """Means over the samples: each scorer, `kl`, `diversity`, and what the guard chooses by."""
        figures = {name: float(score.mean()) for name, score in answers.scores.items()}
        figures["kl"] = float(answers.kl.mean())
        if len(answers.diversity):
            figures["diversity"] = float(answers.diversity.mean())
        if self.base is not None and self.chosen_by:
            figures["judges"] = sum(self._gain(answers, name) for name in self.chosen_by) / len(self.chosen_by)
        return figures

    def _gain(self, answers: Answers, name: str) -> float:
        """How far a scorer's mean rose above the base model's, in standard deviations of the base model's images."""
        assert self.base is not None
        before = self.base.scores[name]
        return float((answers.scores[name] - before).mean() / before.std().clamp(min=1e-6))

    def _diversity(self, images: Tensor, device: torch.device | str) -> Tensor:
        """(P,) mean distance between the images of a prompt."""
        if self.embed is None or self.images_per_prompt < 2:
            return torch.zeros(0)
        embedded = [self.embed(some.to(device).float() / 255).cpu() for some in images.split(64)]
        vectors = torch.cat(embedded).unflatten(0, (-1, self.images_per_prompt))
        cosines = vectors @ vectors.transpose(1, 2)
        k = self.images_per_prompt
        return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (k * (k - 1))
