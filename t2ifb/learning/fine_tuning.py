"""The fine-tuning run: adapters tuned by a reward, judged by others while it goes on and at the end, exported."""

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

from t2ifb.data.devices import device_facts, has_bf16
from t2ifb.data.files import make_folder, public_name, sha256_file
from t2ifb.data.prompt_batches import PromptDataModule
from t2ifb.data.prompts import PromptSplits
from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA, save_lora
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.evaluation.judges import Judges
from t2ifb.learning import loggers
from t2ifb.learning.algorithm import Algorithm
from t2ifb.learning.base_answers import BaseAnswers, fingerprint
from t2ifb.learning.engine import (
    SET_BY_THE_RUN,
    MakeLogger,
    MakeTrainer,
    first_process,
    make_engine,
    on_usable_device,
    refuse,
)
from t2ifb.learning.exam import FIGURES, Exam
from t2ifb.learning.fault_guard import FaultGuard
from t2ifb.learning.losses import kl_sums
from t2ifb.learning.metrics_csv import MetricsCSV, read_metrics, validation_figures
from t2ifb.learning.out_of_memory import explained_memory
from t2ifb.learning.policy import Policy
from t2ifb.learning.refl import ReFL
from t2ifb.learning.reward_check import check_differentiable, check_known
from t2ifb.learning.run_folder import RunFolder
from t2ifb.learning.term_gradients import TermGradients
from t2ifb.learning.tuned_states import BASE, REWARD, ask, ask_states, look_at_base, rounding_floor
from t2ifb.learning.tuning_module import FineTuningModule
from t2ifb.learning.tuning_verdict import TuningVerdict
from t2ifb.learning.tuning_watch import TuningWatch
from t2ifb.learning.usual_guidance import UsualGuidance
from t2ifb.scorers.mix import Mix


class FineTuning:
    """Stage 2 of the report: a diffusion model tuned by alpha * reward - beta * KL (see `FineTuningModule`)."""

    def __init__(
        self,
        diffusion: DiffusionSource,
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
        most_faults: int = 10,
        gradient_norms: bool = False,
        cache_folder: str | Path | None = None,
    ) -> None:
        """Put the parts together; the diffusion model is not loaded yet.

        Args:
            diffusion: Which model.
            lora: Which adapters.
            reward: What is raised: a scorer, differentiable with respect to the images.
            optimizer: Makes the optimiser.
            prompts: To tune on, to choose by, to report on.
            rollout: How training trajectories are made.
            sampling: How images are drawn when they are judged.
            method: The algorithm; `ReFL` as in the report by default.
            judges: Scorers that the run is not trained on, by name.
            truth: A scorer that knows how good an image is (`shapes`); only looked at.
            judge_weights: How much each judge counts in the choice of the checkpoint, by name (`weights_of` in
                `t2ifb.evaluation.judge_weights` makes them from preference accuracies); equally by default.
            usual_guidance_scale: The scale that the base model is usually sampled with. Where it is not that of
                `sampling`, the end of the run also compares the kept adapters with the base model there.
            usual_guidance_prompts: How many test prompts that comparison takes, one image each.
            alpha: Takes the place of the algorithm's weight of the reward.
            beta: Takes the place of its weight of the KL divergence.
            standardise: Give the reward mean 0 and standard deviation 1 on the base model's images of the validation
                prompts, a mix scorer by scorer. By default only a mix is.
            batch_size: Prompts an update, over all processes.
            micro_batch_size: Rows of an experience in memory together, see `FineTuningModule`.
            gradient_clip_norm: Largest norm of an update's gradient.
            epochs: How often every training prompt is seen; may be a part of one.
            validate_every: Updates between two validations.
            validation_prompts: How many of the held-out prompts a validation looks at.
            images_per_prompt: Images of each of them.
            samples_per_batch: Images that are drawn together.
            diversity: A `CLIPSource` whose embeddings measure how different the images of a prompt are.
            patience: Validations without a better one after which the run stops; never by default.
            most_faults: Updates with NaN or infinity that may be skipped before the run stops.
            gradient_norms: Log how large the gradients of reward and KL are, see `TermGradients`.
            cache_folder: Where the base model's answers are kept for other runs that ask the same.

        Raises:
            ValueError: A number is out of range.
        """
        if taken := sorted({REWARD, *FIGURES} & set(judges or {})):
            raise ValueError(f"a judge is called {taken[0]!r}, as another figure of a validation is: rename it")
        members = [*(reward.scorers.values() if isinstance(reward, Mix) else [reward]), *(judges or {}).values()]
        if truth is not None and any(type(member) is type(truth) for member in members):
            raise ValueError("the truth only looks: it is neither what a run is trained on nor a judge that chooses")
        weights = dict.fromkeys(judges or {}, 1.0) if judge_weights is None else dict(judge_weights)
        total = sum(weights.values())
        if weights.keys() != set(judges or {}) or min(weights.values(), default=0) < 0 or (judges and not total > 0):
            raise ValueError(
                f"judge_weights={weights}: give one for each of the judges {', '.join(judges or {}) or '(none)'}, none "
                "below 0 and at least one above"
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
        self.settings: dict[str, Any] = {
            "micro_batch_size": micro_batch_size,
            "gradient_clip_norm": gradient_clip_norm,
        }
        self.batch_size, self.epochs, self.validate_every = batch_size, epochs, validate_every
        self.validation_prompts, self.images_per_prompt = validation_prompts, images_per_prompt
        self.samples_per_batch, self.diversity = samples_per_batch, diversity
        self.patience, self.most_faults, self.cache_folder = patience, most_faults, cache_folder
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
        """Of the preference data set, which splits prompts are taken from."""
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
        """Tune, judge, export, and write everything into the run's folder; arguments as of `RewardTraining.run`.

        Returns:
            What `summary.json` says.

        Raises:
            ValueError: The reward has no gradient, the settings do not fit, or the memory is too small.
        """
        refuse(trainer, "trainer", SET_BY_THE_RUN | SET_BY_TUNING)
        trainer = on_usable_device(trainer)
        precision = str(getattr(trainer, "keywords", {}).get("precision"))
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"trainer.precision={precision} would round the adapters' updates away; give "
                f"{precision.replace('true', 'mixed')}, and diffusion.precision for the frozen weights"
            )
        with (
            run.held() if first_process() else nullcontext(),
            explained_memory(self._savings, isinstance(self.method, ReFL)),
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
            (run.path / BASE).unlink(missing_ok=True)  # of an earlier run in this folder
        texts = {split: self.prompts.of(split) for split in ("train", "validation", "test")}
        asked = texts["validation"][: self.validation_prompts] + texts["test"]
        check_known(self.truth, asked, "algorithm.truth=null")
        exam = self.exam("validation", seed)
        each = self.method.updates_per_experience
        data = PromptDataModule(texts["train"], self.batch_size, seed, len(exam), self.samples_per_batch, each)
        model = replace(self.diffusion, device="cpu").load()
        cut = {split: model.too_long(prompts) for split, prompts in texts.items()}
        if any(cut.values()) and first_process():
            print("longer than the text encoder's context and cut: " + ", ".join(f"{n} {s}" for s, n in cut.items()))
        seed_everything(seed, workers=True, verbose=False)
        policy = Policy(model, self.lora, self.reward, self.rollout, seed)
        module = FineTuningModule(policy, self.method, self.optimizer, exam, **self.settings)
        metrics, guard, watch = MetricsCSV(run), FaultGuard(self.most_faults), TuningWatch(run, exam, self.patience)
        recorder = loggers.start(logger, run, config) if first_process() else False
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        steps = -(-steps // every) * every  # so that the last state is looked at, and saved
        watchers = [watch, *([TermGradients()] if self.gradient_norms else [])]
        engine = make_engine(trainer, run, recorder, steps, every, "val/judges", metrics, guard, watchers)
        if min(self.batch_size, len(exam)) < engine.world_size:
            raise ValueError(
                f"{engine.world_size} processes need at least as many prompts an update and images a validation; "
                f"algorithm.batch_size={self.batch_size}, and {len(exam)} images"
            )
        if engine.strategy.root_device.type == "cpu" and str(engine.precision) == "bf16-mixed":
            _to_bf16(model.denoiser, model.text_encoder)
        engine.accelerator.setup_device(engine.strategy.root_device)  # as Lightning does when training begins
        module.to(engine.strategy.root_device)
        base = BaseAnswers(self.cache_folder, self._asks())
        unit = self.reward if self.standardise else None
        exam.base = look_at_base(
            run, exam, model.device, lambda: base.of(exam, model, self.samples_per_batch), standardised=unit
        )
        metrics.start = {f"val/{name}": value for name, value in exam.figures(exam.base).items()}
        torch.cuda.empty_cache()  # `gpu_memory.LIFE` has the phases between which the run does so
        floors = kl_sums(rounding_floor(exam, self.rollout, model, engine.precision_plugin.forward_context))
        floor = {f"rounding_floor_{name}": float(nats) for name, nats in floors.items()}
        torch.cuda.empty_cache()
        last = run.last_checkpoint if resume is not None and run.last_checkpoint.exists() else None
        if recorder and last is None:
            recorder.log_metrics(metrics.start | floor, step=0)
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        engine.strategy.barrier()  # until the first process has written the checkpoints
        module.to(engine.strategy.root_device)
        test = self.exam("test", seed).to(engine.strategy.root_device)
        of_base = base.of(test, model, self.samples_per_batch)
        answers, best_step = ask_states(run, test, model, self.samples_per_batch, of_base)
        usual = self._at_usual_guidance(model, base, seed, engine.strategy.root_device)
        if not engine.is_global_zero:
            return {}
        rows = read_metrics(run.metrics)
        verdict = TuningVerdict(run, test, answers, rows, [REWARD], best_step, seed, usual)
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
        save_lora(model.denoiser, make_folder(run.export), self.diffusion.source, verdict.card(recipe), meant_for)
        shutil.copyfile(run.path / "tuning_curves.png", run.export / "tuning_curves.png")
        summary = run.write_summary(figures | {"export": sha256_file(run.export / LORA_WEIGHTS)})
        loggers.finish(recorder, verdict.examples(), run, figures["validation"])
        return summary

    def _at_usual_guidance(
        self, model: DiffusionModel, base: BaseAnswers, seed: int, device: torch.device
    ) -> UsualGuidance | None:
        """Base model against the adapters that are in the model, where the usual guidance scale is another."""
        if self.usual_sampling == self.sampling:
            return None
        exam = self.exam("test", seed, self.usual_sampling, self.usual_guidance_prompts).to(device)
        answers = {
            "base": base.of(exam, model, self.samples_per_batch),
            "kept": ask(exam, model, self.samples_per_batch, f"guidance {self.usual_sampling.guidance_scale:g}"),
        }
        return UsualGuidance(exam, answers, (REWARD,), seed)

    def _recipe(self, run: RunFolder, kept: int, seed: int, precision: str) -> dict[str, Any]:
        """What the run was made with, for the model card."""
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
            "alpha, beta": f"{self.method.alpha}, {self.method.beta}",
            "optimiser": f"{getattr(optimizer, '__name__', optimizer)} {getattr(self.optimizer, 'keywords', {})}",
            "updates": f"{kept} of {self.batch_size} prompts each",
            **{
                name: f"{sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}"
                for name, sampler in (("rollouts in training", self.rollout), ("images below", self.sampling))
            },
            "seed, precision": f"{seed}, {precision}",
        }

    def _savings(self) -> list[str]:
        """Settings that would need less memory than these, what usually saves most first."""
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

    def exam(self, split: str, seed: int, sampling: Sampler | None = None, most: int | None = None) -> Exam:
        """What a run is asked on the prompts of `validation` or `test`, the same for every run with these parts.

        Every scorer looks; the reward is among them but does not choose.

        Args:
            split: `validation` or `test`.
            seed: Of the noise.
            sampling: How images are drawn; the run's own `sampling` by default.
            most: How many prompts at the most, the first ones; all by default.
        """
        prompts, images_per_prompt = self.prompts.of(split)[:most], 1
        if split == "validation":
            prompts, images_per_prompt = prompts[: self.validation_prompts], self.images_per_prompt
        judges = Judges({REWARD: self.reward, **self.judges}, self.truth)
        embeds = self.diversity is not None and images_per_prompt > 1
        encoder = replace(self.diversity, device="cpu").load() if embeds else None
        chosen_by = {name: self.judge_weights[name] for name in self.judges} or {REWARD: 1.0}
        return Exam(prompts, sampling or self.sampling, judges, images_per_prompt, seed, split, encoder, chosen_by)


def _to_bf16(*networks: nn.Module) -> None:
    """Round weights from fp16 to bf16: on a CPU Lightning's mixed precision is bf16, and the two do not mix."""
    rounded = [weight for network in networks for weight in network.parameters() if weight.dtype == torch.float16]
    for weight in rounded:
        weight.data = weight.data.bfloat16()
    if rounded and first_process():
        print("mixed precision is bf16 on a CPU: the weights of U-Net and text encoder are rounded from fp16 to bf16")


SET_BY_TUNING = {
    "gradient_clip_val": "give algorithm.gradient_clip_norm",
    "accumulate_grad_batches": "give algorithm.batch_size, and algorithm.micro_batch_size for less memory",
}
"""Arguments of the trainer that a fine-tuning run has its own words for."""
