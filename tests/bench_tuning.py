"""The rows of `make bench` on fine-tuning: an update against its bare model calls, and what sharing a rollout saves."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import mean

import torch

from t2ifb.data.prompt_batches import PromptDataModule
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.learning.refl import ReFLModule
from t2ifb.learning.tuning_module import fast_attention
from t2ifb.scorers import ImageReward
from t2ifb.shapes.prompts import ScenePrompts
from t2ifb.shapes.weights import IMAGE_REWARD, PIPELINE
from tests.bench_parts import fit_seconds

UPDATES, BATCH, STEPS, WINDOW = 4, 8, 20, (10, 19)
"""Of one measurement; prompts an update, denoising steps, and the last ten of them."""


def make_module(gradients_per_rollout: int) -> ReFLModule:
    """The module of a run in `shapes`."""
    return ReFLModule(
        DiffusionSource(str(PIPELINE), device="cpu").load(),
        LoRA(),
        ImageReward.from_pretrained(IMAGE_REWARD),
        partial(torch.optim.AdamW, lr=1e-4, fused=True),
        Sampler(STEPS, 1.0),
        window=WINDOW,
        gradients_per_rollout=gradients_per_rollout,
    )


def update(module: ReFLModule) -> float:
    """Seconds of some updates through Lightning with the callbacks of a run."""
    data = PromptDataModule(ScenePrompts("train", 64).prompts(), BATCH)
    return fit_seconds(module, data.train_dataloader(), UPDATES)


def bare(module: ReFLModule, with_base: bool = True) -> float:
    """Seconds of the same model calls and nothing else; those of the KL divergence may be left out."""
    prompts = ScenePrompts("train", BATCH).prompts()
    states, latents = module.model.encode_prompts(prompts), torch.randn(BATCH, *module.model.latent_shape)
    start = time.perf_counter()
    with fast_attention(module.device):
        for position in range(UPDATES):
            indices = module.method.indices(STEPS, module.seed, position)
            with torch.no_grad():
                for _ in range(indices[-1] - len(indices) + 1):
                    module.model.predict(latents, 500, states)
            for _ in indices:
                if with_base:
                    with torch.no_grad(), module.model.base():
                        module.model.predict(latents, 500, states)
                output = module.model.predict(latents, 500, states)
                module.reward(module.model.decode(output), prompts).sum().backward()
    return time.perf_counter() - start


def rows(ratios: Callable[..., list[float]]) -> Iterator[tuple[str, str, list[float], str]]:
    """What, against what, the ratios, the target."""
    modules = {m: make_module(m) for m in (1, 2, 5, 10)}
    update(modules[1])
    yield (
        "a fine-tuning update",
        "its model calls",
        ratios(lambda: update(modules[1]), lambda: bare(modules[1])),
        "1.10",
    )
    for m in (1, 10):
        kl = ratios(lambda m=m: bare(modules[m]), lambda m=m: bare(modules[m], with_base=False))
        yield f"an update's model calls, m = {m}", "without the KL's", kl, ""
    for m in (2, 5, 10):
        cheaper = ratios(lambda: update(modules[1]), lambda m=m: update(modules[m]) / m)
        yield f"a reward gradient, m = 1, {STEPS} steps", f"one at m = {m}", cheaper, "at least 3" if m == 10 else ""


if __name__ == "__main__":
    for what, against, measured, target in rows(lambda a, b: [a() / b() for _ in range(3)]):
        print(what, "/", against, f"{mean(measured):.2f}", [round(each, 2) for each in measured], target)
