"""Parts of a fine-tuning run: checks of arguments, the recipe in the model card, and advice."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2ifb.finetuning.trained_on import members_of
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import first_process
from t2ifb.utils.devices import has_bf16
from t2ifb.utils.files import public_name
from t2ifb.utils.reward_runs import RECORD, read_record

if TYPE_CHECKING:
    from t2ifb.finetuning.run import FineTuner

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


def with_weights(algorithm: Any, alpha: float | None, beta: float | None) -> Any:
    """The algorithm with the given weights of reward and KL divergence; None leaves a weight as it is.

    Raises:
        ValueError: The algorithm has no such weight.
    """
    given = {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
    if lacking := [name for name in given if not hasattr(algorithm, name)]:
        raise ValueError(f"{type(algorithm).__name__} has no {' and no '.join(lacking)}; give {lacking[0]}=None")
    return replace(algorithm, **given)


def check_algorithm(algorithm: Any, gradient_norms: bool) -> None:
    """Check that a run has what the algorithm needs.

    Raises:
        ValueError: It learns from other data, or `gradient_norms` needs a KL term that it does not have.
    """
    if algorithm.data != "prompts":
        raise ValueError(f"algorithm={type(algorithm).__name__} learns from {algorithm.data}; a run gives prompts only")
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
        "optimiser": f"{getattr(optimizer, '__name__', optimizer)} {getattr(tuner.optimizer, 'keywords', {})}",
        "updates": f"{kept} of {tuner.batch_size} prompts each",
        **{
            name: f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}"
            for name, sampler in (("rollouts in training", tuner.rollout), ("images below", tuner.sampling))
        },
        "seed, precision": f"{tuner.seed}, {precision}",
    }


def savings(tuner: "FineTuner") -> list[str]:
    """Settings that need less memory, largest usual savings first."""
    least = {
        "model.gradient_checkpointing=True": tuner.model.gradient_checkpointing,
        "micro_batch_size=1": 1 in (tuner.micro_batch_size, tuner.batch_size),
        "algorithm.last_steps=1": getattr(tuner.algorithm, "last_steps", 1) == 1,
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
