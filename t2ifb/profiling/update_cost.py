"""Costs of a fine-tuning run, measured by running its own code on the `meta` device."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import Pairs, PromptBatch
from t2ifb.diffusion.model import DECODER, DENOISER, TextToImageModel
from t2ifb.evaluation.scoring import BATCH, ScorerSet
from t2ifb.finetuning.algorithm import Experience
from t2ifb.finetuning.evaluator import Evaluator, rounding_floor, weights_in_fp32
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from t2ifb.profiling.cost import (
    DIVERSITY,
    JUDGES,
    LOOK,
    OPTIMISER,
    REWARD,
    ROUNDING,
    UPDATE,
    WEIGHTS,
    Cost,
    ModulePart,
    RunSpec,
)
from t2ifb.profiling.memory_tracker import ActivationBytes, Event, MemoryTracker, Operations, bytes_of, tensors_of
from t2ifb.profiling.meta_mode import MetaMode, swapped

PARTS = 2
"""Number of simulated parts of an update. The third costs as much as the second."""


def update_cost(tuning: RunSpec) -> Cost:
    """Cost of an update: runs `FineTuningModule.training_step` on the shortest schedule that has the same memory.

    Raises:
        ValueError: The settings are inconsistent.
    """
    with _module(tuning) as module:
        policy, model, optimizer = module.policy, module.policy.model, _attach(module)
        batch = _batch(tuning, model)
        prompts = batch.prompts
        # Prompts are encoded once, not in each step.
        denoise = tuning.drawing.denoiser(model, policy.schedule, prompts[:1])
        networks = _networks(tuning, model)
        with _ledger(networks) as tracker:
            weights = list(tracker.events)
            with torch.no_grad():
                denoise(_noise(model, 1), 0)
                denoising = tracker.operations
                policy.score(_noise(model, 1), prompts[:1])
                scoring = tracker.operations - denoising
            rows, kept = _kept(module, batch)
            tracker.restart()
            for weight in policy.adapters:
                weight.grad = torch.zeros_like(weight)
            with tracker.within(OPTIMISER):
                optimizer.step()
            optimizer.zero_grad()
            phases = {OPTIMISER: tracker.events}
            collect, take = module._collect, module._parts
            sampling = Operations()
            count = 0

            def collected(batch: PromptBatch) -> Experience:
                nonlocal sampling
                experience = _on_meta(collect(batch))
                sampling = tracker.operations
                return experience

            def first_parts(batch: PromptBatch) -> list[Experience]:
                nonlocal count
                parts: list[Experience] = take(batch)[:PARTS]
                count = sum(map(len, parts))
                return parts

            module._collect, module._parts = collected, first_parts
            tracker.restart()
            with tracker.watching(_called(networks)):
                module.training_step(batch, 0)
        state = [value for values in optimizer.state.values() for value in values.values()]
        held = bytes_of(value for value in state if isinstance(value, Tensor) and value.device.type == "meta")
        parts = _parts(networks, kept)
        parts[DENOISER] = replace(parts[DENOISER], optimiser=bytes_of(policy.adapters) + held)
        phases |= {WEIGHTS: weights, UPDATE: tracker.events}
        row = (tracker.operations - sampling) * (1 / count)
        if (cheapest := tuning.cheapest) is not None:
            row = (row + update_cost(cheapest).sample) * 0.5
        return Cost(tracker.peak, _activations(tracker), denoising, row, scoring, rows, parts, phases)


def kept_by_denoiser(tuning: RunSpec) -> int:
    """Bytes that the denoiser saves for the backward pass, for all rows in memory together."""
    with _module(tuning) as module:
        _attach(module)
        return _kept(module, _batch(tuning, module.policy.model))[1][DENOISER]


def _batch(tuning: RunSpec, model: Any) -> PromptBatch:
    """A batch of prompts, or of preference pairs."""
    prompts, pairs = _prompts(tuning.batch_size), None
    if tuning.algorithm.data == "preference_pairs":
        ones = torch.ones(len(prompts))
        pairs = Pairs(torch.zeros(len(prompts), 2, *model.latent_shape), ones, ones)
    return PromptBatch(0, prompts, list(range(len(prompts))), len(prompts), pairs=pairs)


class _Policy(Policy):
    """A policy on the `meta` device whose rewards have values, so that an algorithm can rank its samples."""

    @torch.no_grad()
    def scores(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Different rewards (B,) on the CPU, after the real computation."""
        super().scores(latents, prompts)
        return torch.arange(len(prompts), dtype=torch.float32)


@contextmanager
def _module(tuning: RunSpec) -> Iterator[Any]:
    """The module of a run on the `meta` device, on a short schedule."""
    algorithm, steps = tuning.algorithm.shortened()
    with _model(tuning) as model:
        tuning.algorithm.check(len(tuning.rollout.schedule_of(model)))
        rollout = replace(tuning.rollout, num_inference_steps=max(2, steps))
        policy: Any = _Policy(model, tuning.lora, tuning.reward, rollout)
        policy.samples_per_batch = tuning.samples_per_batch
        yield FineTuningModule(policy, algorithm, tuning.optimizer, micro_batch_size=tuning.micro_batch_size)


def _on_meta(experience: Experience) -> Experience:
    """The experience as `loss` gets it: rewards were ranked on the CPU."""
    tensors = {k: v.to("meta") if v.is_floating_point() else v for k, v in experience.tensors.items()}
    return replace(experience, tensors=tensors)


def _kept(module: Any, batch: PromptBatch) -> tuple[int, dict[str, int]]:
    """Rows of a part of the loss, and the bytes that each network saves for its backward pass."""
    policy, model = module.policy, module.policy.model
    saved = {name: ActivationBytes(tensors_of(module)) for name in (DENOISER, DECODER, REWARD)}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            with saved[name]:
                return function(*args, **options)

        return call

    with swapped(model, "predict", lambda latents, *_: torch.zeros_like(latents)):  # values do not matter
        experience = _on_meta(module._collect(batch))
    module.experience = experience
    part = module._parts(batch)[0]
    module.experience = module._minibatches = None
    with ExitStack() as stack:
        stack.enter_context(swapped(model, "predict", counted(DENOISER, model.predict)))
        stack.enter_context(swapped(model, "decode", counted(DECODER, model.decode)))
        stack.enter_context(swapped(policy.reward, "forward", counted(REWARD, policy.reward.forward)))
        module.algorithm.loss(policy, part)
    return len(part), {name: each.total for name, each in saved.items()}


def judging_cost(tuning: RunSpec, images: int, optimiser: int = 0) -> Cost:
    """Cost of an evaluation: runs `Evaluator.sample` and the judges on the shortest schedule.

    The peak is that of the highest guidance scale that the run samples at, the operations are those of its own.
    Everything is computed outside autocast, as in a run. If the rounding measurement before training (frozen weights in
    fp32) needs more, its peak is returned.

    Args:
        tuning: Description of the run.
        images: Most images of one evaluation.
        optimiser: Bytes of gradients and of the optimiser's state, which remain in memory.
    """
    drawn, seen = min(images, tuning.samples_per_batch), min(images, BATCH)
    own = replace(tuning.sampling, num_inference_steps=2)
    sampler = replace(own, guidance_scale=max(own.guidance_scale, *tuning.guidance_scales, 1.0))
    with _model(replace(tuning, autocast=None)) as model, torch.no_grad():
        tuning.lora.add(model)
        evaluator = Evaluator(_prompts(drawn), sampler, ScorerSet({REWARD: tuning.reward, **tuning.judges})).to("meta")
        sampler.denoiser(
            model, sampler.schedule_of(model), evaluator.prompts
        )  # encodes the prompts, which happens once
        networks = _networks(tuning, model)
        with _ledger(networks) as tracker:
            pixels = torch.empty(seen, *model.decode(_noise(model, 1)).shape[1:], dtype=torch.uint8, device="meta")
            decoding = tracker.operations
            rounding = _rounding(tracker, networks, tuning, model)
            with tracker.within(OPTIMISER):
                held = torch.empty(optimiser, dtype=torch.uint8, device="meta")
            tracker.restart()
            with tracker.watching(_called(networks)):
                evaluator.sample(
                    model, range(drawn), with_kl=False
                )  # the base model's calls cost the same as the policy's
                before = tracker.operations
                evaluation = (before * (1 / drawn) - decoding) * (1 / sampler.network_evaluations)
                denoising = evaluation * (own.network_evaluations / own.num_inference_steps)
                evaluator.judges(pixels, evaluator.prompts[:1] * seen, "meta")
                if tuning.encoder is not None:
                    tuning.encoder.encode_images(pixels.float() / 255)
            looking = (tracker.operations - before) * (1 / seen)
            looked = tracker.peak, _activations(tracker)
            phases = {ROUNDING: rounding.events, LOOK: list(tracker.events)}
            del held  # counted until here
        worst = max(looked, (rounding.peak, rounding.at_peak), key=itemgetter(0))
        return Cost(*worst, denoising, decoding + looking, phases=phases)


class _Rounding(NamedTuple):
    peak: int
    at_peak: dict[str, int]
    events: list[Event]


def _rounding(
    tracker: MemoryTracker, networks: Mapping[str, list[Any]], tuning: RunSpec, model: TextToImageModel
) -> _Rounding:
    """Cost of the rounding measurement of one sample. The fp32 copy of weights belongs to the denoiser."""
    evaluator, sampler = (
        Evaluator(_prompts(1), tuning.sampling, ScorerSet({})),
        replace(tuning.rollout, num_inference_steps=2),
    )
    sampler.denoiser(model, sampler.schedule_of(model), evaluator.prompts)  # encodes the prompts, which happens once
    weights = tracker.live[WEIGHTS]
    with ExitStack() as stack:
        tracker.restart()
        with tracker.within(WEIGHTS):
            stack.enter_context(weights_in_fp32(model.denoiser))
        with tracker.watching(_called(networks)):
            rounding_floor(evaluator, sampler, model, nullcontext)
        alive = Counter(_activations(tracker)) + Counter({DENOISER: tracker.at_peak[WEIGHTS] - weights})
        peak = tracker.peak
        with tracker.within(WEIGHTS):
            stack.close()
    return _Rounding(peak, dict(alive), list(tracker.events))


@contextmanager
def _model(tuning: RunSpec) -> Iterator[TextToImageModel]:
    with MetaMode(tuning.attention, tuning.autocast):
        yield tuning.diffusion.on_meta()


def _networks(tuning: RunSpec, model: TextToImageModel) -> dict[str, list[Any]]:
    """Networks by part."""
    return {
        **model.networks(),
        REWARD: [tuning.reward],
        JUDGES: [*tuning.judges.values()],
        DIVERSITY: [] if tuning.encoder is None else [tuning.encoder],
    }


def _called(networks: Mapping[str, list[Any]]) -> dict[str, list[nn.Module]]:
    """Called modules by part: of an autoencoder only the decoder."""
    return {**networks, DECODER: [getattr(each, "decoder", each) for each in networks[DECODER]]}


@contextmanager
def _ledger(networks: Mapping[str, list[Any]]) -> Iterator[MemoryTracker]:
    """Create a ledger that includes the weights."""
    with MemoryTracker() as tracker:
        for some in networks.values():
            tracker.adopt(WEIGHTS, tensors_of(*some))
        yield tracker


def _attach(module: Any) -> torch.optim.Optimizer:
    """Attach a minimal trainer to the module and return the optimiser."""
    module.to("meta")
    optimizer: torch.optim.Optimizer = module.configure_optimizers()
    module.trainer = SimpleNamespace(world_size=1, global_step=1, log_every_n_steps=2)  # no logging at step 1
    module.optimizers = lambda: optimizer
    module.manual_backward = lambda loss: loss.backward()
    module.log = lambda *values, **options: None
    return optimizer


def _noise(model: TextToImageModel, count: int) -> Tensor:
    return torch.empty(count, *model.latent_shape, device="meta")


def _prompts(count: int) -> list[str]:
    return [f"prompt {number}" for number in range(count)]


def _activations(tracker: MemoryTracker) -> dict[str, int]:
    """Live bytes at the peak, without weights."""
    return {part: size for part, size in tracker.at_peak.items() if size and part != WEIGHTS}


def _parts(networks: Mapping[str, list[Any]], saved: Mapping[str, int]) -> dict[str, ModulePart]:
    """Parts by name. Shared weights count for the first part."""
    parts: dict[str, ModulePart] = {}
    known: dict[int, Tensor] = {}
    for name, some in networks.items():
        every = {id(tensor): tensor for tensor in tensors_of(*some)}
        tensors = {key: tensor for key, tensor in every.items() if key not in known}
        known |= tensors
        weights = [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        count = sum(weight.numel() for weight in weights) - trained
        if every:
            parts[name] = ModulePart(count, trained, bytes_of(tensors.values()), saved.get(name) or None)
    return parts
