"""Single calls: the error of the adapters' gradient in fp16, the times of what an update calls, and throughput."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.diffusion.sampling import generate
from t2ifb.finetuning.module import FineTuningModule, fast_attention
from t2ifb.training.trainer import FIRST_SCALE
from t2ifb.utils.devices import true_float32
from tests.gpu_check.world import ALPHA, BETA, PROMPTS, Report, World, free, part, quiet

LOSS_SCALES = (-8, 0, 8, 12, 14, 16, 18)
"""Powers of two."""


def gradient_error(world: World, report: Report, batch: int = 2) -> None:
    """The adapters' gradient in half precision under a loss scale against fp32, of the same latents and cotangent."""
    exact, half = world.module("fp32"), world.module()
    (step, _), some = world.algorithm.window_of(world.steps), part(batch)
    rollout, of_exact = exact.policy.start(some)
    _, of_half = half.policy.start(some)
    with true_float32(), fast_attention(world.device):
        noisy = rollout.to(step, of_exact)
        with exact.policy.reference():
            reference = of_exact(noisy, step)
        output = of_exact(noisy, step).detach().requires_grad_()
        reward = exact.policy.score(exact.policy.step(output, noisy, step).clean, some.prompts)
        loss = BETA * exact.policy.kl(output, reference, noisy, step) - ALPHA * reward
        (cotangent,) = torch.autograd.grad(loss.sum(), output)
    largest = float(cotangent.abs().max())
    report.figure("cotangent", alpha=ALPHA, norm=float(cotangent.flatten(1).norm(dim=1).mean()), largest=largest)

    def gradient(module: FineTuningModule, denoise: Any, scale: float) -> Tensor:
        for weight in module.policy.adapters:
            weight.grad = None
        ((denoise(noisy, step) * cotangent).sum() * scale).backward()
        return torch.cat([w.grad.flatten().double() / scale for w in module.policy.adapters if w.grad is not None])

    with true_float32(), fast_attention(world.device):
        expected = gradient(exact, of_exact, 1.0)
    errors = {}
    first = int(np.log2(FIRST_SCALE)) if world.kind.half == "fp16" else 0  # which a run begins with
    for power in LOSS_SCALES if world.kind.half == "fp16" else (first,):
        with world.autocast(), fast_attention(world.device):
            found = gradient(half, of_half, 2.0**power)
        errors[power] = float((found - expected).norm() / expected.norm())
        zeros = float(((found == 0) & (expected != 0)).double().mean())
        finite = bool(found.isfinite().all())
        report.figure(f"gradient at loss scale 2^{power}", relative_error=errors[power], zeros=zeros, finite=finite)
    most = world.kind.largest_error
    report.check(f"gradient error below {most:.0%}", errors[first] < most, relative_error=errors[first])


def bare_calls(world: World, report: Report, batch: int) -> float:
    """Times of single calls; gives the seconds of those that an update makes."""
    module = world.module()
    (step, _), some = world.algorithm.window_of(world.steps), part(batch)
    rollout, denoise = module.policy.start(some)
    latents = rollout.latents
    found: dict[str, float] = {}

    def backward() -> None:
        denoise(latents, step).square().mean().backward()

    def reward() -> None:
        leaf = latents.clone().requires_grad_()
        torch.autograd.grad(module.policy.score(leaf, some.prompts).sum(), leaf)

    with fast_attention(world.device):
        with torch.no_grad():
            if world.cuda:  # a CPU has no group norm of fp16 weights without autocast
                with module.policy.reference():
                    found["guided step without autocast and adapters"] = world.seconds(lambda: denoise(latents, step))
                found["guided step without autocast"] = world.seconds(lambda: denoise(latents, step))
            with world.autocast(), module.policy.untrained():
                found["guided step"] = world.seconds(lambda: denoise(latents, step))
        with world.autocast():
            with module.policy.reference():
                found["base model's step"] = world.seconds(lambda: denoise(latents, step))
            found["guided step with backward pass"] = world.seconds(backward)
        found["decoder and reward, both ways"] = world.seconds(reward, 3)
    report.figure(f"bare calls, batch {batch}", **{f"{name}, ms": round(s * 1e3, 2) for name, s in found.items()})
    once = ("base model's step", "guided step with backward pass", "decoder and reward, both ways")
    return step * found["guided step"] + sum(found[name] for name in once)


def throughput(world: World, report: Report) -> None:
    """Images that are drawn, and embeddings that are cached, a second."""
    model = world.source(None if world.cuda else "fp32").load()
    for count in (4, 16) if world.cuda else (2,):
        keys = [(1, number) for number in range(count)]
        draw = partial(generate, model, replace(world.rollout, unconditional="grad"), PROMPTS[:count], keys, count)
        took = world.seconds(lambda draw=draw: list(draw()), 1)  # type: ignore[misc]
        report.figure(f"images, {count} together, {world.steps} guided steps", per_second=round(count / took, 3))
    del model
    free()
    side, count = (64, 64) if world.small else (512, 256)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    files = [world.folder / f"{number}.webp" for number in range(count)]
    for number, file in enumerate(files):
        Pillow.fromarray(np.roll(pixels, number, 0)).save(file, quality=90)
    for precision in ("fp32", "fp16") if world.cuda else ("fp32",):
        cache = EmbeddingCache(world.folder / "cache", replace(world.clip, precision=precision))
        with quiet():
            filled = cache.fill(files, PROMPTS)
        report.figure(f"embeddings, encoder in {precision}", per_second=round(filled.encoded / filled.seconds, 1))
