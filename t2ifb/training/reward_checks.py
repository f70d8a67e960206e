"""Early checks of a run's scorers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from t2ifb.scorers.mix import Mix


def check_differentiable(reward: nn.Module) -> None:
    """Check that the reward is differentiable; in a mix, every scorer.

    Raises:
        ValueError: No gradient reaches the images.
    """
    if isinstance(reward, Mix):
        for scorer in reward.scorers.values():
            check_differentiable(scorer)
        return
    generator = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in [*reward.parameters(), *reward.buffers()]), torch.device("cpu"))
    gradient = None
    with torch.inference_mode(False), torch.enable_grad():  # regardless of the caller's mode
        images = torch.rand(1, 3, 64, 64, generator=generator).to(device).requires_grad_()
        score: Tensor = reward(images, ["a red circle on a gray background"])
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score.sum(), images, allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        name = getattr(reward, "name", type(reward).__name__)
        raise ValueError(
            f"the reward ({name}) has no gradient with respect to the images and cannot be used for tuning; choose a "
            "differentiable scorer with reward=…"
        )


def check_known(truth: nn.Module | None, prompts: Iterable[str], without: str) -> None:
    """Check that the ground-truth scorer supports all prompts.

    Args:
        truth: The scorer. Only scorers with a method `unknown(prompts)` are checked.
        prompts: Prompts of the run.
        without: Instruction for running without the scorer.

    Raises:
        ValueError: Some prompts are not supported.
    """
    find: Callable[[Iterable[str]], list[str]] | None = getattr(truth, "unknown", None)
    if find is not None and (unknown := find(prompts)):
        raise ValueError(
            f"{type(truth).__name__} does not support {len(unknown)} of the prompts, first {unknown[0]!r}. Without "
            f"it: {without}"
        )
