"""The seams hold: every algorithm trains every family, also those written here, and resumes exactly."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, get_args

import lightning
import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch, PromptDataModule
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.pairs import PairDataModule
from t2ifb.data.rankings import RankedPrompt
from t2ifb.diffusion.lora import LoRA, LoRAFormat, adapter_state, load_lora, save_lora
from t2ifb.diffusion.model import (
    DECODER,
    DENOISER,
    TEXT,
    Conditioning,
    Guidance,
    TextToImageModel,
    Unconditional,
    guided,
)
from t2ifb.diffusion.pipeline_config import path_of
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.algorithm import Experience, Loss, mean_loss
from t2ifb.finetuning.dpo import DPO
from t2ifb.finetuning.latents import LatentEncoder
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from t2ifb.training.run_folder import RunFolder
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.diffusion.tiny_pipelines import plain_pipeline, tiny_model, write_tiny
from tests.finetuning.method_parts import ALGORITHMS as BUILT_IN
from tests.finetuning.method_parts import BATCH, FLOW, PIPELINES, assert_alike
from tests.finetuning.tuning_worlds import Redness, make_tuning, tune


@dataclass(frozen=True)
class ClippedPolicyGradient:
    """DDPO (arXiv 2305.13301) with two minibatches: -E min(A r, A clip(r, 1 - c, 1 + c)), r = (p / p_old)^(1/D)."""

    data: ClassVar[Literal["prompts"]] = "prompts"
    needs_gradient: ClassVar[bool] = False
    updates_per_experience: ClassVar[int] = 2
    clip: float = 1e-3

    def check(self, steps: int) -> None: ...

    def collect(self, policy: Policy, batch: PromptBatch) -> Experience:
        rollout, denoise = policy.start(batch)
        rows: dict[str, list[Tensor]] = {"latents": [], "next": [], "old": [], "step": []}
        for index in range(len(policy.schedule) - 1):  # the last step of a flow is deterministic
            before, output = rollout.latents, denoise(rollout.latents, index)
            rollout.take(output)
            log_prob = policy.step(output, before, index).log_prob(rollout.latents)
            found = before, rollout.latents, log_prob, torch.full((len(before),), index)
            for name, value in zip(rows, found, strict=True):
                rows[name].append(value)
        reward = policy.score(rollout.to(len(policy.schedule), denoise), batch.prompts)
        advantage = (reward - reward.mean()).repeat(len(policy.schedule) - 1)
        tensors = {name: torch.cat(values) for name, values in rows.items()}
        return Experience(batch.prompts * (len(policy.schedule) - 1), tensors | {"advantage": advantage})

    def minibatches(self, experience: Experience, seed: int) -> Iterator[Experience]:
        steps = experience["step"].tolist()
        yield from (experience.rows([n for n, step in enumerate(steps) if step % 2 == half]) for half in (0, 1))

    def loss(self, policy: Policy, part: Experience) -> Loss:
        output = policy.denoiser(part.prompts)(part["latents"], part.step)
        log_prob = policy.step(output, part["latents"], part.step).log_prob(part["next"])
        ratio = ((log_prob - part["old"]) / output[0].numel()).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return mean_loss(-torch.minimum(part["advantage"] * ratio, part["advantage"] * clipped), part, ratio=ratio)


class ToyFlow(nn.Module):
    """A rectified flow with random weights: a tiny transformer of SD3's kind, letters as tokens, pixels as latents."""

    lora_format = LoRAFormat("StableDiffusion3Pipeline", "transformer", ("to_q", "to_k", "to_v", "to_out.0"))
    latent_shape = (4, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.denoiser: Any = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8,
        )  # fmt: skip
        self.letters = nn.Embedding(128, 16)
        self.path = path_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        return self.letters.weight.device

    def networks(self) -> dict[str, list[nn.Module]]:
        return {TEXT: [self.letters], DENOISER: [self.denoiser], DECODER: []}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        states = self.letters(torch.tensor([[ord(c) % 128 for c in text.ljust(8)[:8]] for text in prompts]))
        return Conditioning({"states": states, "pooled": states.mean(1)})

    def encode_ahead(self, prompts: Sequence[str], device: torch.device | str) -> None: ...

    def too_long(self, prompts: Sequence[str]) -> int:
        return sum(len(prompt) > 8 for prompt in prompts)

    def predict(self, latents: Tensor, time: Tensor, of: Conditioning, guidance: Guidance | None = None) -> Tensor:
        return guided(self._call, self.denoiser, latents, time, of, guidance)

    def _call(self, latents: Tensor, time: Tensor, of: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(latents, of["states"], of["pooled"], time, return_dict=False)[0].float()
        return output

    def decode(self, latents: Tensor) -> Tensor:
        return (latents[:, :3] / 4 + 0.5).clamp(0, 1)

    def encode_images(self, images: Tensor) -> Tensor:
        return torch.cat([4 * (images - 0.5), torch.zeros_like(images[:, :1])], 1)


@dataclass(frozen=True)
class ToySource:
    """A source for a whole run."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    source: str = "toy/flow"
    precision: str = "fp32"
    decoder_precision: str = "fp32"
    gradient_checkpointing: bool = False
    device: str = "cpu"

    def load(self) -> TextToImageModel:
        return ToyFlow()

    on_meta = load

    def notes(self) -> tuple[str, ...]:
        return ()

    def fitting_tiny_decoder(self) -> None:
        return None


@dataclass(frozen=True)
class Plain:
    """An image of one gray, as a source of images."""

    gray: float
    side: int

    def open(self) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), (round(255 * self.gray),) * 3)


FAMILIES: dict[str, Any] = {"stable diffusion": (shapes_model, Sampler(4, 2.0)), "flow": (ToyFlow, FLOW)}


@cache
def tiny(name: str) -> tuple[Any, Any]:
    """The model of a tiny pipeline, and the pipeline in plain diffusers."""
    with TemporaryDirectory() as folder:
        write_tiny(name, Path(folder))
        return tiny_model(Path(folder)), plain_pipeline(Path(folder))


FAMILIES |= {name: (lambda name=name: deepcopy(tiny(name)[0]), sampler) for name, sampler in PIPELINES.items()}
ALGORITHMS = BUILT_IN | {"clipped": ClippedPolicyGradient()}


class Killed(Exception):
    """Stands for a kill."""


class Watch(lightning.Callback):
    """Notes each update's figures; saves and ends after the update `kill`, or before the first one with `stop`."""

    def __init__(self, folder: Path, kill: int | None, stop: bool) -> None:
        self.folder, self.kill, self.stop, self.noted = folder, kill, stop, []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if self.stop:
            trainer.save_checkpoint(self.folder / "killed.ckpt")
            raise Killed

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.model = module.policy.model
        self.noted.append({name: term.clone() for name, term in module.terms.items()})
        if trainer.global_step == self.kill:
            trainer.save_checkpoint(self.folder / "killed.ckpt")
            raise Killed


def train(
    folder: Path,
    family: str,
    name: str,
    kill: int | None = None,
    resume: bool = False,
    stop: bool = False,
    micro_batch_size: int = 2,
    updates: int = 4,
) -> tuple[dict[str, Tensor], Watch]:
    make, sampler = FAMILIES[family]
    algorithm, model = ALGORITHMS[name], make()
    policy = Policy(model, LoRA(targets=["to_q", "to_v"]), Redness(), sampler)
    module = FineTuningModule(policy, algorithm, partial(torch.optim.AdamW, lr=1e-2), micro_batch_size=micro_batch_size)
    side = model.decode(torch.zeros(1, *model.latent_shape)).shape[-1]
    data: Any = PromptDataModule([*PROMPTS, *PROMPTS], 2, updates_per_batch=algorithm.updates_per_experience)
    if algorithm.data == "preference_pairs":
        rankings = [RankedPrompt(str(n), PROMPTS[n % 2], (Plain(0.8, side), Plain(0.2, side)), (1, 2)) for n in (0, 1)]
        latents = EmbeddingCache(folder / "latents", LatentEncoder(model, ToySource(), folder / "hashes.npy"))
        data = PairDataModule(rankings, latents, model.latent_shape, batch_size=2)
    watch = Watch(folder, kill, stop)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=updates, max_epochs=-1, logger=False, enable_checkpointing=False,
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[watch], log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip
    with suppress(Killed):
        trainer.fit(module, data, ckpt_path=folder / "killed.ckpt" if resume else None, weights_only=True)
    return {key: value.clone() for key, value in adapter_state(model.denoiser).items()}, watch


def assert_ratios_begin_at_one(watch: Watch) -> None:
    """The policy's ratio is one before the first update and moves then."""
    first, second = (each["ratio"] for each in watch.noted[:2])
    assert torch.equal(first, torch.ones_like(first))
    assert not torch.equal(second, torch.ones_like(second))


def pairs(families: Sequence[str], names: Sequence[str], fast: Sequence[str]) -> list[Any]:
    """All pairs of a family and an algorithm. In the default tests, each family has the algorithms of `fast`."""
    marks = {name: () if name in fast else pytest.mark.slow for name in names}
    return [pytest.param(family, name, marks=marks[name]) for family in families for name in names]


@pytest.mark.parametrize(
    ("family", "name"),
    pairs(["flow"], [*ALGORITHMS], [*ALGORITHMS]) + pairs(["stable diffusion"], [*ALGORITHMS], ["refl", "own pairs"]),
)
def test_every_algorithm_trains_every_family_and_resumes_exactly(tmp_path: Path, family: str, name: str) -> None:
    whole, watch = train(tmp_path, family, name)
    assert len(watch.noted) == 4
    if name == "clipped":
        assert_ratios_begin_at_one(watch)
    if name == "given pairs":
        assert float(watch.noted[0]["loss"].mean()) == pytest.approx(math.log(2))
        assert float(watch.noted[-1]["accuracy"].mean()) == 1.0
    assert all(bool(weight.isfinite().all()) for weight in whole.values())
    assert any(float(weight.abs().max()) > 1e-3 for key, weight in whole.items() if "lora_B" in key)
    train(tmp_path, family, name, kill=3)  # of two updates an experience, inside the second
    train(tmp_path, family, name, resume=True, stop=True)  # stopped again before the next update
    resumed, rest = train(tmp_path, family, name, resume=True)
    assert len(rest.noted) == 1
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(("family", "name"), pairs([*PIPELINES], [*BUILT_IN], ["refl", "own pairs"]))
def test_tiny_pipelines_train_resume_and_load_in_plain_diffusers(tmp_path: Path, family: str, name: str) -> None:
    whole, watch = train(tmp_path, family, name, updates=2)
    assert len(watch.noted) == 2 and all(bool(weight.isfinite().all()) for weight in whole.values())
    assert any(float(weight.abs().max()) > 1e-3 for key, weight in whole.items() if "lora_B" in key)
    train(tmp_path, family, name, kill=1, updates=2)
    resumed = train(tmp_path, family, name, resume=True, updates=2)[0]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    save_lora(watch.model, tmp_path / "export", family)
    pipeline, part = tiny(family)[1], watch.model.lora_format.part
    pipeline.load_lora_weights(str(tmp_path / "export"), adapter_name="export")
    loaded = get_peft_model_state_dict(getattr(pipeline, part), adapter_name="export")
    pipeline.unload_lora_weights()
    assert loaded.keys() == whole.keys() and all(torch.equal(whole[key], loaded[key]) for key in whole)


def test_an_algorithm_from_outside_goes_through_a_whole_run(tmp_path: Path) -> None:
    summary = tune(make_tuning(algorithm=ClippedPolicyGradient(), epochs=1, validate_every=2), tmp_path)
    assert summary["steps"] == 4 and "ClippedPolicyGradient" in (tmp_path / "export" / "README.md").read_text()
    with pytest.raises(ValueError, match="DPO learns from preference pairs; give rankings="):
        make_tuning(algorithm=DPO(group_size=None))
    with pytest.raises(ValueError, match="gradient_norms=True needs a KL term"):
        make_tuning(algorithm=ClippedPolicyGradient(), gradient_norms=True)


@pytest.mark.parametrize("rule", ["grad", "reference"])
def test_a_family_from_outside_goes_through_a_whole_run(tmp_path: Path, rule: Any) -> None:
    sampler = replace(FLOW, unconditional=rule)
    tuning = make_tuning(model=ToySource(), rollout=sampler, sampling=sampler, lora=LoRA(), epochs=1)
    summary = tune(tuning, tmp_path)
    assert summary["steps"] == 2 and summary["test_last"]["kl"] > 0
    model = ToyFlow()
    load_lora(model, tmp_path)
    kept = torch.load(RunFolder(tmp_path).best_checkpoint, weights_only=True)["state_dict"]
    loaded = get_peft_model_state_dict(model.denoiser, adapter_name="default_0")
    assert all(torch.equal(kept[name], weight) for name, weight in loaded.items()) and loaded.keys() == kept.keys()
    assert "StableDiffusion3Pipeline.from_pretrained" in (tmp_path / "export" / "README.md").read_text()


def test_the_ratios_of_a_diffusion_model_begin_at_one(tmp_path: Path) -> None:
    assert_ratios_begin_at_one(train(tmp_path, "stable diffusion", "clipped", updates=2)[1])


def under_rule(rule: Any, name: str, written_out: bool) -> tuple[Tensor, Tensor]:
    """Gradient and states of an algorithm's first minibatch; guidance is the model's own or what the rule means."""
    policy = Policy(ToyFlow(), LoRA(targets=["to_q", "to_v"]), Redness(), replace(FLOW, unconditional=rule))
    generator = torch.Generator().manual_seed(0)
    for weight in policy.adapters:
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    model: Any = policy.model

    def predict(latents: Tensor, time: Tensor, of: Conditioning, guidance: Guidance | None = None) -> Tensor:
        conditional = model._call(latents, time, of)
        if guidance is None:
            return conditional
        with policy.reference() if rule == "reference" else nullcontext():
            without = model._call(latents, time, guidance.unconditional)
        if rule == "detached":
            without = without.detach()
        return without + guidance.scale * (conditional - without)

    if written_out:
        model.predict = predict
    algorithm = ALGORITHMS[name]
    with torch.no_grad():
        experience = algorithm.collect(policy, BATCH)
    part = next(iter(algorithm.minibatches(experience, 0)))
    loss = algorithm.loss(policy, replace(part, total=len(part))).total
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])
    return gradient, part["next" if "next" in part.tensors else "latents"]


@pytest.mark.parametrize("name", ["refl", "draft", "grpo"])
def test_the_unconditional_branch_has_the_gradient_and_the_weights_of_its_rule(name: str) -> None:
    """`grad` and `detached` give the same states, `detached` and `reference` other ones."""
    found = {rule: under_rule(rule, name, written_out=False) for rule in get_args(Unconditional)}
    for rule, own in found.items():
        for one, other in zip(own, under_rule(rule, name, written_out=True), strict=True):
            assert_alike(one, other)
    with_gradient, detached, reference = (found[rule] for rule in ("grad", "detached", "reference"))
    assert_alike(with_gradient[1], detached[1])
    for one, other in ((with_gradient[0], detached[0]), (detached[1], reference[1])):
        assert float((one - other).norm()) > 2e-3 * float(one.norm())  # twice what is alike
