"""Fine-tuning run: tunes adapters on a reward, evaluates them with held-out scorers, and exports them."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from torch import nn

from t2ifb.data.datamodules import PromptDataModule
from t2ifb.data.prompts import PromptSplits
from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA, save_lora
from t2ifb.diffusion.model import DECODER, ModelSource, TextToImageModel
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.scoring import ScorerSet
from t2ifb.finetuning.algorithm import Algorithm
from t2ifb.finetuning.baseline_cache import BaselineCache, fingerprint
from t2ifb.finetuning.evaluator import (
    BASE,
    FIGURES,
    REWARD,
    Evaluator,
    evaluate,
    evaluate_base,
    evaluate_checkpoints,
    rounding_floor,
)
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.out_of_memory import explained_memory
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.results import TuningResults, UsualGuidance
from t2ifb.finetuning.term_gradients import TermGradients
from t2ifb.finetuning.validation import ValidationCallback
from t2ifb.scorers.mix import Mix
from t2ifb.training import loggers
from t2ifb.training.losses import kl_sums
from t2ifb.training.metrics import MetricsCSV, read_metrics, validation_figures
from t2ifb.training.nan_guard import NanGuard
from t2ifb.training.reward_checks import check_differentiable, check_known
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import (
    SET_BY_THE_RUN,
    MakeLogger,
    MakeTrainer,
    first_process,
    make_trainer,
    on_usable_device,
    reject_reserved,
)
from t2ifb.utils.devices import device_facts, has_bf16, true_float32
from t2ifb.utils.files import make_folder, public_name, sha256_file


class FineTuning:
    """Stage 2 of the report: fine-tune a diffusion model on alpha * reward - beta * KL (see `FineTuningModule`)."""

    def __init__(
        self,
        diffusion: ModelSource,
        lora: LoRA,
        reward: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        prompts: PromptSplits,
        rollout: Sampler,
        sampling: Sampler,
        method: Algorithm | None = None,
        judges: Mapping[str, nn.Module] | None = None,
        truth: nn.Module | None = None,
        judge_weights: Mapping[str, float] | None = None,
        usual_guidance_scale: float | None = None,
        usual_guidance_prompts: int = 64,
        alpha: float | None = None,
        beta: float | None = None,
        standardise: bool | None = None,
        batch_size: int = 1,
        micro_batch_size: int | None = None,
        gradient_clip_norm: float | None = 1.0,
        epochs: float = 10,
        validate_every: int = 100,
        validation_prompts: int = 64,
        images_per_prompt: int = 2,
        samples_per_batch: int = 32,
        diversity: Any = None,
        patience: int | None = None,
        max_skipped_updates: int = 10,
        gradient_norms: bool = False,
        cache_folder: str | Path | None = None,
    ) -> None:
        """Store the settings. The diffusion model is not loaded yet.

        Args:
            diffusion: Source of the diffusion model.
            lora: Configuration of the adapters.
            reward: The reward to maximise: a scorer, differentiable with respect to the images.
            optimizer: Builds the optimiser from parameters.
            prompts: Prompts for training, validation and test.
            rollout: Sampler of training rollouts.
            sampling: Sampler of evaluation images.
            method: The algorithm; `ReFL` as in the report by default.
            judges: Held-out scorers by name.
            truth: Ground-truth scorer (`shapes`), for monitoring only.
            judge_weights: Weights of the judges in checkpoint selection, by name (`weights_of` in
                `t2ifb.evaluation.selection` computes them from preference accuracies); equal by default.
            usual_guidance_scale: Usual guidance scale of the base model. If it differs from that of `sampling`, the run
                ends with a comparison of the kept adapters and the base model at this scale.
            usual_guidance_prompts: Number of test prompts in that comparison, one image each.
            alpha: Replaces the algorithm's weight of the reward.
            beta: Replaces the algorithm's weight of the KL divergence.
            standardise: Standardise the reward (mean 0, standard deviation 1) on the base model's images of the
                validation prompts; a mix scorer by scorer. By default only a mix is standardised.
            batch_size: Prompts per update, over all processes.
            micro_batch_size: Rows of an experience in memory together, see `FineTuningModule`.
            gradient_clip_norm: Maximum norm of an update's gradient.
            epochs: Number of passes over the training prompts; may be fractional.
            validate_every: Updates between two validations.
            validation_prompts: Number of held-out prompts per validation.
            images_per_prompt: Images per validation prompt.
            samples_per_batch: Images per sampling batch.
            diversity: A `CLIPSource` for the diversity of a prompt's images.
            patience: Stop after this many validations without improvement; never by default.
            max_skipped_updates: Maximum skipped updates with NaN or infinity.
            gradient_norms: Log the gradient norms of reward and KL, see `TermGradients`.
            cache_folder: Folder of the cache of base model samples.

        Raises:
            ValueError: A number is out of range.
        """
        if taken := sorted({REWARD, *FIGURES} & set(judges or {})):
            raise ValueError(f"the judge name {taken[0]!r} is reserved for another metric; rename the judge")
        members = [*(reward.scorers.values() if isinstance(reward, Mix) else [reward]), *(judges or {}).values()]
        if truth is not None and any(type(member) is type(truth) for member in members):
            raise ValueError("the ground-truth scorer is for monitoring only; remove it from reward and judges")
        weights = dict.fromkeys(judges or {}, 1.0) if judge_weights is None else dict(judge_weights)
        total = sum(weights.values())
        if weights.keys() != set(judges or {}) or min(weights.values(), default=0) < 0 or (judges and not total > 0):
            raise ValueError(
                f"judge_weights={weights}: expected one for each of the judges {', '.join(judges or {}) or '(none)'}, "
                "none negative and at least one above 0"
            )
        if usual_guidance_prompts < 1:
            raise ValueError(f"usual_guidance_prompts={usual_guidance_prompts} must be at least 1")
        if epochs <= 0 or validate_every < 1 or validation_prompts < 1 or images_per_prompt < 1:
            raise ValueError(
                f"epochs={epochs} must be above 0, and validate_every={validate_every}, validation_prompts="
                f"{validation_prompts}, images_per_prompt={images_per_prompt} at least 1"
            )
        self.diffusion, self.lora, self.optimizer = diffusion, lora, optimizer
        self.standardise = isinstance(reward, Mix) if standardise is None else standardise
        self.reward = Mix({REWARD: reward}) if self.standardise and not isinstance(reward, Mix) else reward
        self.prompts, self.rollout, self.sampling = prompts, rollout, sampling
        self.judges, self.truth, self.judge_weights = dict(judges or {}), truth, weights
        usual = sampling.guidance_scale if usual_guidance_scale is None else usual_guidance_scale
        self.usual_sampling = replace(sampling, guidance_scale=usual)
        self.usual_guidance_prompts = usual_guidance_prompts
        given = {name: value for name, value in (("alpha", alpha), ("beta", beta)) if value is not None}
        self.method: Any = replace(method or ReFL(), **given)  # type: ignore[type-var]
        if self.method.data != "prompts":
            raise ValueError(f"{type(self.method).__name__} learns from {self.method.data}; a run gives prompts only")
        if gradient_norms and not hasattr(self.method, "beta"):
            raise ValueError(f"gradient_norms needs a KL term, and {type(self.method).__name__} has no beta")
        self.settings: dict[str, Any] = {
            "micro_batch_size": micro_batch_size,
            "gradient_clip_norm": gradient_clip_norm,
        }
        self.batch_size, self.epochs, self.validate_every = batch_size, epochs, validate_every
        self.validation_prompts, self.images_per_prompt = validation_prompts, images_per_prompt
        self.samples_per_batch, self.diversity = samples_per_batch, diversity
        self.patience, self.max_skipped_updates, self.cache_folder = patience, max_skipped_updates, cache_folder
        self.gradient_norms = gradient_norms

    def _asks(self) -> dict[str, Any]:
        """The arguments that the base model's answers depend on, besides prompts and seed."""
        names = ("diffusion", "sampling", "reward", "judges", "truth", "diversity", "standardise")
        numbers = ("validation_prompts", "images_per_prompt", "samples_per_batch")
        return {name: getattr(self, name) for name in (*names, *numbers)}

    def _check_judges(self) -> None:
        """A judge is not what the run is trained on.

        Raises:
            ValueError: It has the same weights and settings.
        """
        members = self.reward.scorers.values() if isinstance(self.reward, Mix) else [self.reward]
        for name, judge in self.judges.items():
            for member in (member for member in members if type(member) is type(judge)):
                if member is judge or fingerprint(member) == fingerprint(judge):
                    raise ValueError(f"judges[{name!r}] is the reward that the run is trained on; leave it out")

    @property
    def splits(self) -> list[str]:
        """Splits of the preference data set that provide prompts."""
        sources = (self.prompts.train, self.prompts.validation, self.prompts.test)
        return [source.split for source in sources if hasattr(source, "dataset")]  # type: ignore[attr-defined]

    def run(
        self,
        run: RunFolder,
        trainer: MakeTrainer,
        logger: MakeLogger,
        seed: int = 0,
        resume: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Tune, evaluate, export, and write all results to the run's folder. Arguments as in `RewardTraining.run`.

        Returns:
            Content of `summary.json`.

        Raises:
            ValueError: The reward has no gradient, the settings are inconsistent, or memory is too small.
        """
        reject_reserved(trainer, "trainer", SET_BY_THE_RUN | SET_BY_TUNING)
        trainer = on_usable_device(trainer)
        precision = str(getattr(trainer, "keywords", {}).get("precision"))
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"trainer.precision={precision} would round the adapters' updates away; use "
                f"{precision.replace('true', 'mixed')}, and diffusion.precision for the frozen weights"
            )
        with (
            run.held() if first_process() else nullcontext(),
            explained_memory(self._savings, isinstance(self.method, ReFL)),
            true_float32(),
        ):
            return self._run(run, trainer, logger, seed, resume, dict(config or {}))

    def _run(
        self, run: RunFolder, trainer: MakeTrainer, logger: MakeLogger, seed: int, resume: Path | None, config: Any
    ) -> dict[str, Any]:
        started = time.monotonic()
        self._check_judges()
        if self.method.needs_gradient:
            check_differentiable(self.reward)
        if resume is None and first_process():
            (run.path / BASE).unlink(missing_ok=True)  # left by an earlier run in this folder
        texts = {split: self.prompts.of(split) for split in ("train", "validation", "test")}
        asked = texts["validation"][: self.validation_prompts] + texts["test"]
        check_known(self.truth, asked, "algorithm.truth=null")
        evaluator = self.evaluator("validation", seed)
        each = self.method.updates_per_experience
        data = PromptDataModule(texts["train"], self.batch_size, seed, len(evaluator), self.samples_per_batch, each)
        model = replace(self.diffusion, device="cpu").load()
        cut = {split: model.too_long(prompts) for split, prompts in texts.items()}
        if any(cut.values()) and first_process():
            print("prompts truncated to the text encoder's context: " + ", ".join(f"{n} {s}" for s, n in cut.items()))
        seed_everything(seed, workers=True, verbose=False)
        policy = Policy(model, self.lora, self.reward, self.rollout, seed)
        module = FineTuningModule(policy, self.method, self.optimizer, evaluator, **self.settings)
        metrics, guard, watch = (
            MetricsCSV(run),
            NanGuard(self.max_skipped_updates),
            ValidationCallback(run, evaluator, self.patience),
        )
        recorder = loggers.start(logger, run, config) if first_process() else False
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        steps = -(-steps // every) * every  # so that the last state is validated and saved
        watchers = [watch, *([TermGradients()] if self.gradient_norms else [])]
        engine = make_trainer(trainer, run, recorder, steps, every, "val/judges", metrics, guard, watchers)
        if min(self.batch_size, len(evaluator)) < engine.world_size:
            raise ValueError(
                f"{engine.world_size} processes need at least as many prompts per update and images per validation; "
                f"algorithm.batch_size={self.batch_size}, and {len(evaluator)} images"
            )
        if engine.strategy.root_device.type == "cpu" and str(engine.precision) == "bf16-mixed":
            _to_bf16(*(each for part, some in model.networks().items() if part != DECODER for each in some))
        engine.accelerator.setup_device(engine.strategy.root_device)  # as Lightning does at the start of training
        module.to(engine.strategy.root_device)
        base = BaselineCache(self.cache_folder, self._asks())
        unit = self.reward if self.standardise else None
        evaluator.base = evaluate_base(
            run, evaluator, model.device, lambda: base.of(evaluator, model, self.samples_per_batch), standardised=unit
        )
        metrics.start = {f"val/{name}": value for name, value in evaluator.figures(evaluator.base).items()}
        torch.cuda.empty_cache()  # `gpu_memory.LIFE` lists the phases between which this happens
        floors = kl_sums(rounding_floor(evaluator, self.rollout, model, engine.precision_plugin.forward_context))
        floor = {f"rounding_floor_{name}": float(nats) for name, nats in floors.items()}
        torch.cuda.empty_cache()
        last = run.last_checkpoint if resume is not None and run.last_checkpoint.exists() else None
        if recorder and last is None:
            recorder.log_metrics(metrics.start | floor, step=0)
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        engine.strategy.barrier()  # wait until the first process has written the checkpoints
        module.to(engine.strategy.root_device)
        test = self.evaluator("test", seed).to(engine.strategy.root_device)
        of_base = base.of(test, model, self.samples_per_batch)
        answers, best_step = evaluate_checkpoints(run, test, model, self.samples_per_batch, of_base)
        usual = self._at_usual_guidance(model, base, seed, engine.strategy.root_device)
        if not engine.is_global_zero:
            return {}
        rows = read_metrics(run.metrics)
        verdict = TuningResults(run, test, answers, rows, [REWARD], best_step, seed, usual)
        figures = verdict.write() | {
            "best_step": best_step,
            "chosen_by": "judges",
            "validation": validation_figures(rows, best_step),
            "steps": engine.global_step,
            "skipped_updates": guard.skipped,
            "overflowed_updates": guard.overflowed,
            "prompts_cut": cut,
            **floor,
            "seed": seed,
            "precision": str(engine.precision),
            "device": device_facts(engine.strategy.root_device),
            "wall_seconds": round(time.monotonic() - started + (metrics.seconds if last else 0), 1),
            "data": data.state_dict(),
        }
        recipe = self._recipe(run, best_step, seed, figures["precision"])
        meant_for = verdict.warning(self.rollout.guidance_scale)
        save_lora(model, make_folder(run.export), self.diffusion.source, verdict.card(recipe), meant_for)
        shutil.copyfile(run.path / "tuning_curves.png", run.export / "tuning_curves.png")
        summary = run.write_summary(figures | {"export": sha256_file(run.export / LORA_WEIGHTS)})
        loggers.finish(recorder, verdict.examples(), run, figures["validation"])
        return summary

    def _at_usual_guidance(
        self, model: TextToImageModel, base: BaselineCache, seed: int, device: torch.device
    ) -> UsualGuidance | None:
        """Compare the base model with the loaded adapters at the usual guidance scale, if that differs."""
        if self.usual_sampling == self.sampling:
            return None
        evaluator = self.evaluator("test", seed, self.usual_sampling, self.usual_guidance_prompts).to(device)
        answers = {
            "base": base.of(evaluator, model, self.samples_per_batch),
            "kept": evaluate(
                evaluator, model, self.samples_per_batch, f"guidance {self.usual_sampling.guidance_scale:g}"
            ),
        }
        return UsualGuidance(evaluator, answers, (REWARD,), seed)

    def _recipe(self, run: RunFolder, kept: int, seed: int, precision: str) -> dict[str, Any]:
        """Settings of the run, for the model card."""
        members = self.reward.scorers.values() if isinstance(self.reward, Mix) else [self.reward]
        names = [getattr(member, "name", type(member).__name__) for member in members]
        record = run.path / "reward.json"
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        hashes = [f"{Path(key).name} (SHA-256 {digest})" for key, digest in known.get("hashes", {}).items()]
        optimizer = getattr(self.optimizer, "func", self.optimizer)
        return {
            "base model": public_name(self.diffusion.source),
            "reward": ", ".join([*names, *hashes]),
            "judges that chose the checkpoint": ", ".join(
                f"{n} (weight {w:.2f})" for n, w in self.judge_weights.items()
            )
            or "none, the reward itself",
            "method": self.method,
            "optimiser": f"{getattr(optimizer, '__name__', optimizer)} {getattr(self.optimizer, 'keywords', {})}",
            "updates": f"{kept} of {self.batch_size} prompts each",
            **{
                name: f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}"
                for name, sampler in (("rollouts in training", self.rollout), ("images below", self.sampling))
            },
            "seed, precision": f"{seed}, {precision}",
        }

    def _savings(self) -> list[str]:
        """Settings that need less memory, largest usual savings first."""
        least = {
            "diffusion.gradient_checkpointing=true": self.diffusion.gradient_checkpointing,
            "algorithm.micro_batch_size=1": 1 in (self.settings["micro_batch_size"], self.batch_size),
            "algorithm.method.last_steps=1": getattr(self.method, "last_steps", 1) == 1,
            "diffusion.decoder_precision=bf16": self.diffusion.decoder_precision != "fp32" or not has_bf16(),
            "algorithm.samples_per_batch=1": self.samples_per_batch == 1,
            "diffusion.precision=fp16": self.diffusion.precision != "fp32",
            "algorithm.diversity=null": self.diversity is None,
        }
        return [setting for setting, is_so in least.items() if not is_so]

    def evaluator(self, split: str, seed: int, sampling: Sampler | None = None, most: int | None = None) -> Evaluator:
        """Evaluation on the prompts of `validation` or `test`, equal for all runs with these settings.

        All scorers are applied. The reward is one of them but has no weight in the selection.

        Args:
            split: `validation` or `test`.
            seed: Seed of the noise.
            sampling: Sampler of the images; the run's `sampling` by default.
            most: Maximum number of prompts, counted from the first; all by default.
        """
        prompts, images_per_prompt = self.prompts.of(split)[:most], 1
        if split == "validation":
            prompts, images_per_prompt = prompts[: self.validation_prompts], self.images_per_prompt
        judges = ScorerSet({REWARD: self.reward, **self.judges}, self.truth)
        embeds = self.diversity is not None and images_per_prompt > 1
        encoder = replace(self.diversity, device="cpu").load() if embeds else None
        chosen_by = {name: self.judge_weights[name] for name in self.judges} or {REWARD: 1.0}
        return Evaluator(prompts, sampling or self.sampling, judges, images_per_prompt, seed, split, encoder, chosen_by)


def _to_bf16(*networks: nn.Module) -> None:
    """Round weights from fp16 to bf16, because Lightning's mixed precision on a CPU is bf16."""
    rounded = [weight for network in networks for weight in network.parameters() if weight.dtype == torch.float16]
    for weight in rounded:
        weight.data = weight.data.bfloat16()
    if rounded and first_process():
        print(
            "mixed precision is bf16 on a CPU: the weights of denoiser and text encoder are rounded from fp16 to bf16"
        )


SET_BY_TUNING = {
    "gradient_clip_val": "give algorithm.gradient_clip_norm",
    "accumulate_grad_batches": "use algorithm.batch_size, and algorithm.micro_batch_size for less memory",
}
"""Trainer arguments that are set by a fine-tuning run's own settings, with the reason."""
