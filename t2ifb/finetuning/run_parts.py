"""Parts of a fine-tuning run: checks, preparation, training data, the recipe in the model card, and advice."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.pairs import PairDataModule
from t2ifb.data.prompts import spelled_alike
from t2ifb.data.rankings import RankedPrompt
from t2ifb.diffusion.model import TextToImageModel
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.evaluator import BASE
from t2ifb.finetuning.judge_weights import weights_of_run
from t2ifb.finetuning.latents import LatentEncoder
from t2ifb.finetuning.trained_on import members_of, record_reward
from t2ifb.training.reward_checks import check_differentiable
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import first_process, work_device
from t2ifb.utils.devices import has_bf16
from t2ifb.utils.files import public_name
from t2ifb.utils.reward_runs import RECORD, read_record

if TYPE_CHECKING:
    from t2ifb.finetuning.run import FineTuner

TRAIN = "train"
"""Split of a preference data set whose pairs are learned."""
SET_BY_TUNING = {
    "gradient_clip_val": "give gradient_clip_norm=…",
    "accumulate_grad_batches": "use batch_size=…, and micro_batch_size=… for less memory",
}
"""Trainer arguments that are set by a fine-tuning run's own settings, with the reason."""


def check_counts(**counts: int) -> None:
    """Check that arguments are at least 1.

    Raises:
        ValueError: Some are not; all are named.
    """
    if wrong := [f"{name}={count} must be at least 1" for name, count in counts.items() if count < 1]:
        raise ValueError("; ".join(wrong))


def check_shares(processes: int, batch_size: int, images: int) -> None:
    """Check that each process has a prompt per update and an image per validation.

    Raises:
        ValueError: Some have none.
    """
    if min(batch_size, images) < processes:
        raise ValueError(
            f"{processes} processes need at least as many prompts per update and images per validation; "
            f"batch_size={batch_size}, and {images} images"
        )


def with_weights(algorithm: Any, alpha: float | None, beta: float | None) -> Any:
    """The algorithm with the given weights of reward and KL divergence; None leaves a weight as it is.

    Raises:
        ValueError: The algorithm has no such weight.
    """
    given = {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    if lacking := [name for name in given if not hasattr(algorithm, name)]:
        none = " and ".join(f"{name}=None" for name in lacking)
        raise ValueError(f"{type(algorithm).__name__} has no {' and no '.join(lacking)}; give {none}")
    return replace(algorithm, **given)


def check_algorithm(algorithm: Any, gradient_norms: bool, rankings: Any = None) -> None:
    """Check that a run has what the algorithm needs.

    Args:
        algorithm: The algorithm.
        gradient_norms: Whether the norms of its terms' gradients are logged.
        rankings: The preference data set, if there is one.

    Raises:
        ValueError: It learns from preference pairs and there are none, or `gradient_norms` needs a KL term that it does
            not have.
    """
    if algorithm.data == "preference_pairs" and rankings is None:
        raise ValueError(f"algorithm={type(algorithm).__name__} learns from preference pairs; give rankings=…")
    if gradient_norms and not hasattr(algorithm, "beta"):
        raise ValueError(f"gradient_norms=True needs a KL term, and {type(algorithm).__name__} has no beta")


def check_truth(truth: nn.Module | None, reward: nn.Module, judges: Mapping[str, nn.Module]) -> None:
    """Check that the ground truth is neither the reward nor a judge.

    Raises:
        ValueError: The ground truth is one of them.
    """
    if truth is not None and any(
        type(each) is type(truth) for each in (*members_of(reward).values(), *judges.values())
    ):
        raise ValueError("truth: the ground-truth scorer is for monitoring only; remove it from reward and judges")


def prepare(tuner: "FineTuner", run: RunFolder, trainer: Any) -> dict[str, float]:
    """Check that a run may start in its folder, record its settings, and find the weights of the judges.

    Args:
        tuner: The run.
        run: Its folder.
        trainer: Builds the trainer, on a usable device.

    Raises:
        ValueError: The reward has no gradient and the algorithm needs one, or the folder has a run that is not to be
            continued.
    """
    if tuner.algorithm.needs_gradient:
        check_differentiable(tuner.reward)
    if first_process():
        run.check_new(tuner.resume)
        run.write_settings(tuner.settings())
        record_reward(run.path / RECORD, tuner.reward_part, tuner.reward, tuner.resume)
        if not tuner.resume:
            (run.path / BASE).unlink(missing_ok=True)  # left by an earlier run in this folder
    if not tuner.find_weights:
        return tuner.judge_weights
    cache, device = (tuner.cache_folder or run.path) / "scores", work_device(trainer)
    validation = tuner.prompts.validation
    return weights_of_run(run.path, tuner.judge_parts, validation, tuner.rankings, cache, device, tuner.resume)


def training_data(
    tuner: "FineTuner", texts: Mapping[str, Sequence[str]], model: TextToImageModel, samples: int
) -> PromptDataModule | PairDataModule:
    """What a run's algorithm learns from: prompts, or pairs of its preference data set.

    Rankings whose prompts are among the run's validation or test prompts are left out. The latents of a pair's images
    are computed once, when training starts, and stored in the cache folder.

    Args:
        tuner: The run.
        texts: Prompts by split.
        model: The model, which encodes the images.
        samples: Number of held-out samples per validation.

    Raises:
        ValueError: The training split of the data set is missing or has no comparison.
    """
    numbers = tuner.batch_size, tuner.seed, samples, tuner.samples_per_batch
    if tuner.algorithm.data == "prompts":
        return PromptDataModule(texts["train"], *numbers, tuner.algorithm.updates_per_experience)
    dataset: Any = tuner.rankings
    if not dataset.available(TRAIN):
        hint = getattr(dataset, "missing_message", "Run `python -m t2ifb.prepare`.")
        raise ValueError(f"rankings: the split {TRAIN!r} is missing. {hint}")
    folder = (tuner.cache_folder or tuner.output_dir) / "latents"
    encoder = LatentEncoder(model, tuner.model, folder / "file_keys.npy")
    rankings = dataset.rankings(TRAIN)
    blocks = dataset.multiplicities(TRAIN) if hasattr(dataset, "multiplicities") else [(len(rankings), 1.0)]
    kept = without_prompts(rankings, blocks, [*texts["validation"], *texts["test"]])
    latents = EmbeddingCache(folder, encoder, batch_size=tuner.samples_per_batch)
    return PairDataModule(kept[0], latents, model.latent_shape, *numbers, kept[1])


def without_prompts(
    rankings: Sequence[RankedPrompt], blocks: Sequence[tuple[int, float]], prompts: Sequence[str]
) -> tuple[list[RankedPrompt], list[tuple[int, float]]]:
    """Rankings of other prompts than the given ones, with the sizes of their blocks; says how many are left out.

    Args:
        rankings: Rankings, block by block.
        blocks: Size of each block, and how often it appears per epoch.
        prompts: Prompts that are left out, however they are spelled (`spelled_alike`).
    """
    taken = {spelled_alike(prompt) for prompt in prompts}
    keep = [spelled_alike(ranking.prompt) not in taken for ranking in rankings]
    ends = list(accumulate(size for size, _ in blocks))
    sizes = [sum(keep[end - size : end]) for end, (size, _) in zip(ends, blocks, strict=True)]
    if (dropped := len(keep) - sum(keep)) and first_process():
        print(f"rankings: left out {dropped} of {len(keep)}, whose prompts this run is validated or tested on")
    kept = [ranking for ranking, wanted in zip(rankings, keep, strict=True) if wanted]
    return kept, [(size, times) for size, (_, times) in zip(sizes, blocks, strict=True)]


def recipe(tuner: "FineTuner", run: RunFolder, kept: int, precision: str) -> dict[str, Any]:
    """Settings of a run, for the model card.

    Args:
        tuner: The run.
        run: Its folder.
        kept: Step of the exported adapters.
        precision: Precision of the trainer.
    """
    names = [getattr(member, "name", type(member).__name__) for member in members_of(tuner.reward).values()]
    known = read_record(run.path / RECORD)
    hashes = [f"{Path(key).name} (SHA-256 {digest})" for key, digest in known["hashes"].items()]
    optimizer = getattr(tuner.optimizer, "func", tuner.optimizer)
    judges = ", ".join(f"{name} (weight {weight:.2f})" for name, weight in tuner.judge_weights.items())
    return {
        "base model": public_name(tuner.model.source),
        "reward": ", ".join([*names, *hashes]),
        "judges that chose the checkpoint": judges or "none, the reward itself",
        "algorithm": tuner.algorithm,
        "start": "the base model" if tuner.start_from is None else f"adapters of {public_name(tuner.start_from)}",
        "optimiser": f"{getattr(optimizer, '__name__', optimizer)} {getattr(tuner.optimizer, 'keywords', {})}"
        + (", falling to 0" if tuner.lr_decay else "")
        + ("" if tuner.ema is None else f", moving average of the adapters with decay {tuner.ema:g}"),
        "updates": f"{kept}, {tuner.algorithm.updates_per_experience} for each {tuner.batch_size} "
        f"{tuner.algorithm.data.replace('_', ' ')}",
        **{
            name: f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}, {_in_words(sampler)}"
            for name, sampler in (("rollouts in training", tuner.rollout), ("images below", tuner.sampling))
        },
        "seed, precision": f"{tuner.seed}, {precision}",
    }


def _in_words(sampler: Sampler) -> str:
    """How a sampler's steps are made, such as `ddim(eta=1.0)`."""
    schedule = sampler.schedule
    settings = ", ".join(f"{name}={value}" for name, value in getattr(schedule, "keywords", {}).items())
    return f"{getattr(getattr(schedule, 'func', schedule), '__name__', schedule)}({settings})"


def savings(tuner: "FineTuner") -> list[str]:
    """Settings that need less memory, largest usual savings first."""
    least = {
        "model.gradient_checkpointing=True": tuner.model.gradient_checkpointing,
        "micro_batch_size=1": 1 in (tuner.micro_batch_size, tuner.batch_size),
        "algorithm.checkpoint_steps=True": getattr(tuner.algorithm, "checkpoint_steps", True)
        or getattr(tuner.algorithm, "last_steps", 1) == 1,
        "model.decoder_precision='bf16'": tuner.model.decoder_precision != "fp32" or not has_bf16(),
        "samples_per_batch=1": tuner.samples_per_batch == 1,
        "model.precision='fp16'": tuner.model.precision != "fp32",
        "diversity=None": tuner.diversity is None,
    }
    return [setting for setting, is_so in least.items() if not is_so]


def to_bf16(*networks: nn.Module) -> None:
    """Round weights from fp16 to bf16, because Lightning's mixed precision on a CPU is bf16."""
    rounded = [weight for network in networks for weight in network.parameters() if weight.dtype == torch.float16]
    for weight in rounded:
        weight.data = weight.data.bfloat16()
    if rounded and first_process():
        print("mixed precision is bf16 on a CPU: weights of denoiser and text encoder are rounded from fp16 to bf16")
