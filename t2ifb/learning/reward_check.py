"""Whether the scorers of a run can do what it needs of them, before anything is spent on it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from t2ifb.scorers.mix import Mix


def check_differentiable(reward: nn.Module) -> None:
    """Refuse a reward that no gradient comes back from, before anything is spent on it; of a mix each scorer.

    Raises:
        ValueError: It is one.
    """
    if isinstance(reward, Mix):
        for scorer in reward.scorers.values():
            check_differentiable(scorer)
        return
    generator = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in [*reward.parameters(), *reward.buffers()]), torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64, generator=generator).to(device).requires_grad_()
    with torch.enable_grad():
        score: Tensor = reward(images, ["a red circle on a gray background"])
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), images, allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        name = getattr(reward, "name", type(reward).__name__)
        raise ValueError(
            f"the reward ({name}) gives the images no gradient, so nothing can be tuned by it; choose a differentiable "
            "scorer by scorer@reward=<option>"
        )


def check_known(truth: nn.Module | None, prompts: Iterable[str], without: str) -> None:
    """Refuse a truth that does not know all prompts it will be asked about.

    Args:
        truth: A scorer; only one with a method `unknown(prompts)` is checked.
        prompts: Those that it will be asked about.
        without: How to run without it.

    Raises:
        ValueError: It does not know some of them.
    """
    find: Callable[[Iterable[str]], list[str]] | None = getattr(truth, "unknown", None)
    if find is not None and (unknown := find(prompts)):
        raise ValueError(
            f"{type(truth).__name__} does not know {len(unknown)} of the prompts, the first is {unknown[0]!r}. Without "
            f"it: {without}"
        )
