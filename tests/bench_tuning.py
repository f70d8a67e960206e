"""The rows of `make bench` on fine-tuning: an update against its bare model calls, and what sharing a rollout saves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from t2ifb import finetuning
from t2ifb.data.datamodules import PromptDataModule
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import DECODER, DENOISER
from t2ifb.diffusion.models.stable_diffusion import SD15_IDS, StableDiffusionSource
from t2ifb.diffusion.pipeline_config import TAESD_ID
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.algorithm import Algorithm
from t2ifb.finetuning.module import FineTuningModule, ReFLModule, fast_attention
from t2ifb.finetuning.policy import Policy
from t2ifb.profiling.cost import RunSpec
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.profiling.update_cost import update_cost
from t2ifb.scorers import CLIPScore, ImageReward
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.prompts import ScenePrompts
from t2ifb.shapes.weights import CLIP, IMAGE_REWARD, PIPELINE
from t2ifb.utils.discovery import classes_with
from tests.bench_parts import beside_busy_processes, fit_seconds

UPDATES, BATCH, STEPS, WINDOW = 4, 8, 40, (30, 39)
"""Of one measurement; prompts an update, and as in the report: denoising steps, and the last ten of them."""
SHORT = 10
"""Denoising steps of the rows that compare all algorithms."""


def few() -> dict[str, int]:
    """Arguments that keep the algorithms' updates short, where they have them."""
    return {"group_size": 2, "best": 1, "updates": UPDATES, "pairs_per_update": BATCH, "samples_per_update": BATCH}


def make_module(gradients_per_rollout: int) -> ReFLModule:
    """The module of a run in `shapes`."""
    model = StableDiffusionSource(str(PIPELINE), device="cpu").load()
    policy = Policy(model, LoRA(), ImageReward.from_pretrained(IMAGE_REWARD), Sampler(STEPS, 1.0))
    optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    return ReFLModule(policy, optimizer, window=WINDOW, gradients_per_rollout=gradients_per_rollout)


def update(module: FineTuningModule) -> float:
    """Seconds of some updates through Lightning with the callbacks of a run."""
    each = module.algorithm.updates_per_experience
    data = PromptDataModule(ScenePrompts("train", 64).prompts(), BATCH, updates_per_batch=each)
    return fit_seconds(module, data.train_dataloader(), UPDATES)


def bare(module: ReFLModule, with_base: bool = True) -> float:
    """Seconds of the same model calls and nothing else; those of the KL divergence may be left out."""
    prompts = ScenePrompts("train", BATCH).prompts()
    policy, model = module.policy, module.policy.model
    algorithm: Any = module.algorithm
    conditioning, at_500 = model.encode(prompts), torch.full((BATCH,), 500)
    latents = torch.randn(BATCH, *model.latent_shape)
    start = time.perf_counter()
    with fast_attention(module.device):
        for position in range(UPDATES):
            indices = algorithm.indices(STEPS, policy.seed, position)
            with torch.no_grad(), policy.untrained():
                for _ in range(indices[-1]):
                    model.predict(latents, at_500, conditioning)
            for _ in indices:
                if with_base:
                    with policy.reference():
                        model.predict(latents, at_500, conditioning)
                output = model.predict(latents, at_500, conditioning)
                policy.reward(model.decode(output), prompts).sum().backward()
    return time.perf_counter() - start


def rollout(module: ReFLModule) -> float:
    """Seconds of drawing a batch with adapters."""
    batch = PromptDataModule(ScenePrompts("train", 64).prompts(), BATCH).train_batch(0)
    start = time.perf_counter()
    module.policy.draw(batch)
    return time.perf_counter() - start


class ModelCalls:
    """Counts the seconds that a module spends in its networks: their calls, and the backward passes."""

    def __init__(self, module: FineTuningModule) -> None:
        self.seconds, self.inside = 0.0, False
        model: Any = module.policy.model
        for owner, name in ((model, "encode"), (model, "predict"), (model, "decode"), (module, "manual_backward")):
            setattr(owner, name, self.timed(getattr(owner, name)))
        reward: Any = module.policy.reward
        reward.forward = self.timed(reward.forward)

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call that is counted, unless it is a part of another one."""

        def counted(*values: Any, **options: Any) -> Any:
            if self.inside:
                return call(*values, **options)
            self.inside, start = True, time.perf_counter()
            try:
                return call(*values, **options)
            finally:
                self.seconds += time.perf_counter() - start
                self.inside = False

        return counted


def every_algorithm() -> Iterator[tuple[str, Algorithm]]:
    """Each algorithm of the package by the name of its file, on few samples."""
    needed = {"collect": ("policy", "batch"), "loss": ("policy", "part")}
    for name, where in sorted(classes_with("t2ifb.finetuning", Path(finetuning.__path__[0]), needed).items()):
        build: Any = getattr(import_module(where), name)
        known = {field.name for field in fields(build)}
        yield where.rpartition(".")[2], build(**{key: value for key, value in few().items() if key in known})


def of_algorithms(ratios: Callable[..., list[float]]) -> Iterator[tuple[str, str, list[float], str]]:
    """An update of each algorithm against the calls of its networks, which are counted while it runs."""
    for name, algorithm in every_algorithm():
        model = StableDiffusionSource(str(PIPELINE), device="cpu").load()
        policy = Policy(model, LoRA(), ImageReward.from_pretrained(IMAGE_REWARD), Sampler(SHORT, 1.0))
        module = FineTuningModule(policy, algorithm, partial(torch.optim.AdamW, lr=1e-4, fused=True))
        calls = ModelCalls(module)

        def whole(module: FineTuningModule = module, calls: ModelCalls = calls) -> float:
            calls.seconds = 0.0
            return update(module)

        yield f"an update of {name}", "its model calls", ratios(whole, lambda calls=calls: calls.seconds), "1.10"


@torch.no_grad()
def bare_rollout(module: ReFLModule) -> float:
    """Seconds of the same calls of the denoiser without adapters."""
    model = module.policy.model
    conditioning = model.encode(ScenePrompts("train", BATCH).prompts())
    latents, at_500 = torch.randn(BATCH, *model.latent_shape), torch.full((BATCH,), 500)
    start = time.perf_counter()
    with module.policy.reference():
        for _ in range(STEPS):
            model.predict(latents, at_500, conditioning)
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
    yield from of_algorithms(ratios)
    drawn = ratios(lambda: rollout(modules[1]), lambda: bare_rollout(modules[1]))
    yield "a rollout with adapters", "the denoiser without them", drawn, "1.10"
    busy = ratios(lambda: beside_busy_processes(lambda: update(modules[1])), lambda: update(modules[1]))
    yield "an update beside as many busy processes as cores", "alone", busy, "at most 4"
    for m in (1, 10):
        kl = ratios(lambda m=m: bare(modules[m]), lambda m=m: bare(modules[m], with_base=False))
        yield f"an update's model calls, m = {m}", "without the KL's", kl, ""
    for m in (2, 5, 10):
        cheaper = ratios(lambda: update(modules[1]), lambda m=m: update(modules[m]) / m)
        yield f"a reward gradient, m = 1, {STEPS} steps", f"one at m = {m}", cheaper, "at least 3" if m == 10 else ""


def saved_rows() -> Iterator[tuple[str, str, list[float], str]]:
    """What is kept for the backward pass at Stable Diffusion v1.5's geometry, 512 x 512: bytes over bytes.

    Frozen weights and autocast in fp16, decoder and adapters in fp32, fused attention, one prompt.
    """
    with MetaMode():
        reward = CLIPScore.on_meta(CLIPSource(f"local-dir:{CLIP}", device="cpu")).to("meta")
    source = StableDiffusionSource(SD15_IDS[0], precision="fp16")
    sampler = Sampler(STEPS)
    usual = RunSpec(source, LoRA(), torch.optim.AdamW, reward, sampler, sampler, {}, autocast=torch.float16)
    kept = update_cost(usual).parts
    options: dict[str, tuple[str, RunSpec]] = {
        "with plain attention": (DENOISER, replace(usual, attention="plain")),
        "with gradient checkpointing": (
            DENOISER,
            replace(usual, diffusion=replace(source, gradient_checkpointing=True)),
        ),
        "in bf16": (DECODER, replace(usual, diffusion=replace(source, decoder_precision="bf16"))),
        "as a tiny decoder": (DECODER, replace(usual, diffusion=replace(source, tiny_decoder=TAESD_ID))),
    }
    for option, (part, tuning) in options.items():
        usually, then = (parts[part].saved or 0 for parts in (kept, update_cost(tuning).parts))
        yield f"{usually / 1e9:.2f} GB that the {part} keeps at SD v1.5's size", option, [usually / then], ""


if __name__ == "__main__":
    for what, against, measured, target in rows(lambda a, b: [a() / b() for _ in range(3)]):
        print(what, "/", against, f"{mean(measured):.2f}", [round(each, 2) for each in measured], target)
