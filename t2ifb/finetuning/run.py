"""Fine-tuning run: tunes adapters on a reward, evaluates them with held-out scorers, and exports them."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import seed_everything
from torch import nn

from t2ifb.data.datasets import open_dataset
from t2ifb.data.prompts import Prompts, prompt_splits
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.diffusion.lora import LORA_WEIGHTS, LoRA, save_lora, start_adapters
from t2ifb.diffusion.model import DECODER, ModelSource, TextToImageModel
from t2ifb.diffusion.models import source_of
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.guidance_sweep import check_scales
from t2ifb.evaluation.lazy import build
from t2ifb.evaluation.scoring import ScorerSet
from t2ifb.finetuning.algorithm import Algorithm
from t2ifb.finetuning.baseline_cache import BaselineCache
from t2ifb.finetuning.evaluator import (
    FIGURES,
    REWARD,
    Evaluator,
    evaluate_base,
    evaluate_checkpoints,
    rounding_floor,
)
from t2ifb.finetuning.guidance import guidance_of_run
from t2ifb.finetuning.judge_weights import check_weights
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.network_evaluations import NetworkEvaluations
from t2ifb.finetuning.out_of_memory import explained_memory
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.results import TuningResults
from t2ifb.finetuning.run_parts import (
    SET_BY_TUNING,
    TRAIN,
    check_algorithm,
    check_counts,
    check_shares,
    check_truth,
    prepare,
    recipe,
    savings,
    to_bf16,
    training_data,
    with_weights,
)
from t2ifb.finetuning.term_gradients import TermGradients
from t2ifb.finetuning.trained_on import Scorer, held_out, judge_parts, reward_part
from t2ifb.finetuning.validation import ValidationCallback
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.mix import Mix
from t2ifb.scorers.shorthand import clip_source
from t2ifb.training import loggers
from t2ifb.training.learning_rate import LinearDecay
from t2ifb.training.losses import kl_sums
from t2ifb.training.metrics import MetricsCSV, read_metrics
from t2ifb.training.nan_guard import NanGuard
from t2ifb.training.processes import start_processes
from t2ifb.training.reward_checks import check_known
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.settings import settings_of
from t2ifb.training.trainer import (
    ONE_DEVICE,
    SET_BY_THE_RUN,
    MakeLogger,
    MakeTrainer,
    check_mixed_precision,
    first_process,
    make_trainer,
    on_usable_device,
    reject_reserved,
    run_figures,
)
from t2ifb.utils.devices import true_float32
from t2ifb.utils.files import data_folder, make_folder, sha256_file

ADAMW = partial(torch.optim.AdamW, lr=1e-5, fused=True)


class FineTuner:
    """Stage 2 of the report: fine-tune a diffusion model on alpha * reward - beta * KL (see `FineTuningModule`).

    FineTuner("stable-diffusion-v1-5/stable-diffusion-v1-5", ImageReward.from_pretrained(), "prompts.txt",
              output_dir="outputs/tuned", algorithm=ReFL(window=(30, 39))).fit()
    """

    def __init__(
        self,
        model: ModelSource | str | Path,
        reward: Scorer,
        prompts: Prompts,
        output_dir: str | Path,
        algorithm: Algorithm | None = None,
        lora: LoRA | None = None,
        start_from: str | Path | None = None,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] = ADAMW,
        sampling: Sampler | None = None,
        rollout: Sampler | None = None,
        judges: Mapping[str, Scorer] | None = None,
        truth: nn.Module | None = None,
        judge_weights: Mapping[str, float] | None = None,
        rankings: PreferenceDataset | str | Path | None = None,
        guidance_scales: Sequence[float] = (),
        guidance_prompts: int = 64,
        best_of: int = 4,
        alpha: float | None = None,
        beta: float | None = None,
        standardise: bool | None = None,
        batch_size: int = 1,
        micro_batch_size: int | None = None,
        gradient_clip_norm: float | None = None,
        ema: float | None = None,
        lr_decay: bool = False,
        epochs: float = 10,
        validate_every: int = 100,
        validation_prompts: int = 64,
        images_per_prompt: int = 2,
        samples_per_batch: int = 32,
        diversity: CLIPSource | str | Path | None = None,
        patience: int | None = None,
        max_skipped_updates: int = 10,
        gradient_norms: bool = False,
        cache_folder: str | Path | Literal[False] | None = None,
        trainer: MakeTrainer = ONE_DEVICE,
        logger: MakeLogger = loggers.no_logger,
        seed: int = 0,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the settings and build the scorers. The diffusion model is not loaded yet.

        Args:
            model: Source of the diffusion model; or its hub id, folder or `.safetensors` file.
            reward: The reward to maximise: a scorer, differentiable with respect to the images, or an unbuilt one. Or
                a run folder or export of a reward model, `latest` (the reward run beside `output_dir` that was
                finished last), or a scorer's name such as `image_reward`.
            prompts: Prompts for training, validation and test; or a file or list of prompts (`prompt_splits`).
            output_dir: Folder of the run and the exported adapters, created by `fit`.
            algorithm: The algorithm; `ReFL` as in the report by default.
            lora: Configuration of the adapters; rank 4 by default.
            start_from: Run folder or export of an earlier run with the same `lora`, such as a guidance distillation,
                whose adapters are the start of this one; by default tuning starts at the base model. The base model,
                which the KL divergence and all comparisons refer to, is still the model without adapters.
            optimizer: Builds the optimiser from parameters; AdamW with a learning rate of 1e-5 by default.
            sampling: Sampler of evaluation images; by default 40 steps at guidance scale 7.5.
            rollout: Sampler of training rollouts; by default `sampling` without gradients through the unconditional
                branch.
            judges: Held-out scorers by name, given as `reward` is. Those that the run is trained on are left out.
            truth: Ground-truth scorer (`shapes`), for monitoring only.
            judge_weights: Weights of the judges in checkpoint selection, by name; by default their preference accuracy
                on `rankings` decides (`weights_of`), and without those they are equal.
            rankings: Data set, or its folder, whose training rankings an algorithm on preference pairs learns from, and
                whose validation rankings weigh the judges unless the validation prompts are a file or list of yours.
            guidance_scales: Guidance scales at which the run's end compares the kept adapters with the base model, each
                at its own best scale (`sweep_guidance`). The scale of `sampling` is added. Without any, they are
                compared at the scale of `sampling` alone.
            guidance_prompts: Maximum number of validation prompts that choose the scales, and of test prompts that the
                models are compared on, one image each.
            best_of: Number of the base model's images that the reward chooses from, for comparison with tuning.
            alpha: Replaces the algorithm's weight of the reward.
            beta: Replaces the algorithm's weight of the KL divergence.
            standardise: Standardise the reward (mean 0, standard deviation 1) on the base model's images of the
                validation prompts; a mix scorer by scorer. By default only a mix is standardised.
            batch_size: Prompts (or pairs) per experience, over all processes; an experience of some algorithms has
                several updates.
            micro_batch_size: Rows of an experience in memory together, see `FineTuningModule`.
            gradient_clip_norm: Maximum norm of an update's gradient.
            ema: Decay of a moving average of the adapters, which is evaluated and exported instead of them.
            lr_decay: Let the learning rate fall linearly to 0 at the run's end.
            epochs: Number of passes over the training prompts; may be fractional.
            validate_every: Updates between two validations.
            validation_prompts: Number of held-out prompts per validation.
            images_per_prompt: Images per validation prompt.
            samples_per_batch: Images per sampling batch.
            diversity: CLIP for the diversity of a prompt's images, or its name (`clip_source`).
            patience: Stop after this many validations without improvement; never by default.
            max_skipped_updates: Maximum skipped updates with NaN or infinity.
            gradient_norms: Log the gradient norms of reward and KL, see `TermGradients`.
            cache_folder: Folder of the base model's samples and the judges' scores, which runs share; `data_folder` by
                default, False for none.
            trainer: Builds the `lightning.Trainer`; by default one GPU if there is one, else the CPU.
            logger: Builds a logger from `run` and `config`, such as `wandb_logger`; `metrics.csv` is always written.
            seed: Random seed of the run.
            resume: Continue the unfinished run in `output_dir` from its last checkpoint, if it has one. All other
                arguments must be as before.
            config: Settings to record with the logger instead of these arguments; they change nothing else.

        Raises:
            ValueError: A number is out of range, a shorthand names nothing, or a scorer cannot be built.
        """
        if taken := sorted({REWARD, *FIGURES} & set(judges or {})):
            raise ValueError(f"judges[{taken[0]!r}]: the name is reserved for another metric; rename the judge")
        if odd := [name for name in judges or {} if not name or "." in name or hasattr(nn.ModuleDict, name)]:
            raise ValueError(f"judges[{odd[0]!r}]: a name has no dot and is no attribute of a module; rename the judge")
        if epochs <= 0:
            raise ValueError(f"epochs={epochs} must be above 0")
        check_counts(
            validate_every=validate_every,
            validation_prompts=validation_prompts,
            images_per_prompt=images_per_prompt,
            guidance_prompts=guidance_prompts,
            best_of=best_of,
            samples_per_batch=samples_per_batch,
            batch_size=batch_size,
        )
        self.output_dir, self.trainer, self.logger = Path(output_dir).expanduser(), trainer, logger
        self.seed, self.resume, self.config = seed, resume, dict(config or {})
        self.model = source_of(model) if isinstance(model, (str, Path)) else model
        self.prompts, self.lora, self.optimizer = prompt_splits(prompts), lora or LoRA(), optimizer
        self.start_from = start_from
        self.sampling = sampling or Sampler(40, 7.5)
        self.rollout = rollout or replace(self.sampling, unconditional="detached")
        self.guidance_scales, self.guidance_prompts = check_scales(guidance_scales), guidance_prompts
        self.best_of = best_of
        self.algorithm = with_weights(algorithm or ReFL(), alpha, beta)
        check_algorithm(self.algorithm, gradient_norms, rankings)
        self.reward_part, parts = reward_part(reward, self.output_dir, resume), judge_parts(judges, self.output_dir)
        built = build(self.reward_part)
        self.judges, self.truth = held_out(parts, built), truth
        check_truth(truth, built, self.judges)
        self.judge_parts = {name: parts[name] for name in self.judges}
        self.standardise = isinstance(built, Mix) if standardise is None else standardise
        self.reward = Mix({REWARD: built}) if self.standardise and not isinstance(built, Mix) else built
        self.find_weights = judge_weights is None and bool(self.judges)
        self.judge_weights = dict.fromkeys(self.judges, 1.0) if judge_weights is None else dict(judge_weights)
        check_weights(self.judge_weights, self.judges)
        self.rankings = None if rankings is None else open_dataset(rankings)
        self.micro_batch_size, self.gradient_clip_norm, self.ema = micro_batch_size, gradient_clip_norm, ema
        self.lr_decay = lr_decay
        self.batch_size, self.epochs, self.validate_every = batch_size, epochs, validate_every
        self.validation_prompts, self.images_per_prompt = validation_prompts, images_per_prompt
        self.samples_per_batch = samples_per_batch
        self.diversity = None if diversity is None else clip_source(diversity)
        self.patience, self.max_skipped_updates = patience, max_skipped_updates
        self.gradient_norms = gradient_norms
        self.cache_folder = None if cache_folder is False else Path(cache_folder or data_folder()).expanduser()

    def settings(self) -> dict[str, Any]:
        """All settings as plain containers."""
        return settings_of(self, reward=self.reward_part, judges=self.judge_parts)

    def baseline_cache(self) -> BaselineCache:
        """Cache of the base model's samples, keyed by the arguments that they depend on besides prompts and seed."""
        names = ("model", "sampling", "reward", "judges", "truth", "diversity", "standardise")
        numbers = ("validation_prompts", "images_per_prompt", "samples_per_batch")
        folder = None if self.cache_folder is None else self.cache_folder / "baseline_cache"
        return BaselineCache(folder, {name: getattr(self, name) for name in (*names, *numbers)})

    @property
    def splits(self) -> list[str]:
        """Splits of the preference data set that provide prompts or training pairs."""
        pairs = [TRAIN] if self.algorithm.data == "preference_pairs" else []
        return list(dict.fromkeys([*pairs, *self.prompts.ranked_splits]))

    def fit(self) -> dict[str, Any]:
        """Tune, evaluate, export, and write all results to `output_dir`.

        Returns:
            Content of `summary.json`; empty in all processes but the first.

        Raises:
            ValueError: The reward has no gradient, the settings are inconsistent, memory is too small, or the folder
                has a run that is not to be continued.
        """
        reject_reserved(self.trainer, "trainer", SET_BY_THE_RUN | SET_BY_TUNING)
        trainer, run = on_usable_device(self.trainer), RunFolder(self.output_dir)
        check_mixed_precision(trainer, "the adapters", ", and model.precision=… for the frozen weights")
        with (
            run.held() if first_process() else nullcontext(),
            explained_memory(lambda: savings(self), hasattr(self.algorithm, "work")),
            true_float32(),
        ):
            return self._fit(run, trainer)

    def _fit(self, run: RunFolder, trainer: MakeTrainer) -> dict[str, Any]:
        started, seed = time.monotonic(), self.seed
        self.judge_weights = prepare(self, run, trainer)
        texts = {split: self.prompts.of(split) for split in ("train", "validation", "test")}
        asked = texts["validation"][: self.validation_prompts] + texts["test"]
        check_known(self.truth, asked, "truth=None")
        evaluator = self.evaluator("validation", seed)
        model = replace(self.model, device="cpu").load()
        data = training_data(self, texts, model, len(evaluator))
        cut = {split: model.too_long(prompts) for split, prompts in texts.items()}
        if any(cut.values()) and first_process():
            print("prompts truncated to the text encoder's context: " + ", ".join(f"{n} {s}" for s, n in cut.items()))
        seed_everything(seed, workers=True, verbose=False)
        policy = Policy(model, self.lora, self.reward, self.rollout, seed)
        policy.samples_per_batch = self.samples_per_batch
        last = run.last_checkpoint if self.resume and run.last_checkpoint.exists() else None
        if self.start_from is not None and last is None:
            start_adapters(model, self.start_from)
        options = self.micro_batch_size, self.gradient_clip_norm, self.ema
        module = FineTuningModule(policy, self.algorithm, self.optimizer, evaluator, *options)
        metrics, guard, cost = MetricsCSV(run), NanGuard(self.max_skipped_updates), NetworkEvaluations()
        watch = ValidationCallback(run, evaluator, self.patience)
        config = {"seed": seed} | (self.config or self.settings())
        recorder = False if not first_process() else loggers.start(self.logger, run, config)
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        steps = -(-steps // every) * every  # so that the last state is validated and saved
        optional = {TermGradients: self.gradient_norms, LinearDecay: self.lr_decay}
        watchers = [watch, cost, *(make() for make, wanted in optional.items() if wanted)]
        engine = make_trainer(trainer, run, recorder, steps, every, "val/judges", metrics, guard, watchers)
        check_shares(engine.world_size, self.batch_size, len(evaluator))
        if engine.strategy.root_device.type == "cpu" and str(engine.precision) == "bf16-mixed":
            to_bf16(*(each for part, some in model.networks().items() if part != DECODER for each in some))
        start_processes(engine)
        known = [*data.prompts, *texts["validation"], *texts["test"]]
        model.encode_ahead(known, engine.strategy.root_device)
        module.to(engine.strategy.root_device)
        base = self.baseline_cache()
        unit = self.reward if self.standardise else None
        evaluator.base = evaluate_base(
            run, evaluator, lambda: base.of(evaluator, model, self.samples_per_batch), standardised=unit
        )
        metrics.start = {f"val/{name}": value for name, value in evaluator.figures(evaluator.base).items()}
        torch.cuda.empty_cache()  # `gpu_memory.LIFE` lists the phases between which this happens
        floors = kl_sums(rounding_floor(evaluator, self.rollout, model, engine.precision_plugin.forward_context))
        floor = {f"rounding_floor_{name}": float(nats) for name, nats in floors.items()}
        torch.cuda.empty_cache()
        if recorder and last is None:
            recorder.log_metrics(metrics.start | floor, step=0)
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        engine.strategy.barrier()  # wait until the first process has written the checkpoints
        module.to(engine.strategy.root_device)
        verdict = self._test(run, model, base, engine.strategy.root_device)
        if verdict is None:
            return {}
        seconds = time.monotonic() - started + (metrics.seconds if last else 0)
        figures = verdict.write() | {
            **run_figures(engine, run, guard, verdict.kept, "judges", seed, seconds),
            "steps": engine.global_step,
            "network_evaluations": cost.total,
            "prompts_cut": cut,
            **floor,
            "data": data.state_dict(),
        }
        summary = self._export(run, model, verdict, figures)
        loggers.finish(recorder, verdict.examples(), run, figures["validation"])
        return summary

    def _test(
        self, run: RunFolder, model: TextToImageModel, base: BaselineCache, device: torch.device
    ) -> TuningResults | None:
        """Compare the base model with the best and the last checkpoint on the test prompts; the best is left loaded.

        None in all processes but the first.
        """
        test = self.evaluator("test", self.seed).to(device)
        of_base = base.of(test, model, self.samples_per_batch)
        answers, best_step = evaluate_checkpoints(run, test, model, self.samples_per_batch, of_base)
        guidance = guidance_of_run(self, model, base, answers, device)
        if not first_process():
            return None
        rows = read_metrics(run.metrics)
        return TuningResults(run, test, answers, rows, [REWARD], best_step, self.seed, guidance)

    def _export(
        self, run: RunFolder, model: TextToImageModel, verdict: TuningResults, figures: dict[str, Any]
    ) -> dict[str, Any]:
        """Write the adapters with their model card, and `summary.json`."""
        card = verdict.card(recipe(self, run, verdict.kept, figures["precision"]))
        meant_for = verdict.warning(self.rollout.guidance_scale)
        quantisation = getattr(self.model, "quantisation", None)
        quantised = f", the denoiser in {quantisation}" if quantisation else ""
        judged_at = self.model.precision + quantised, self.sampling.guidance_scale
        save_lora(model, make_folder(run.export), self.model.source, card, meant_for, *judged_at)
        shutil.copyfile(run.path / "tuning_curves.png", run.export / "tuning_curves.png")
        return run.write_summary(figures | {"export": sha256_file(run.export / LORA_WEIGHTS)})

    def evaluator(self, split: str, seed: int) -> Evaluator:
        """Evaluation on the prompts of `validation` or `test`, equal for all runs with these settings.

        All scorers are applied. The reward is one of them but has no weight in the selection.

        Args:
            split: `validation` or `test`.
            seed: Seed of the noise.
        """
        prompts, images_per_prompt = self.prompts.of(split), 1
        if split == "validation":
            prompts, images_per_prompt = prompts[: self.validation_prompts], self.images_per_prompt
        judges = ScorerSet({REWARD: self.reward, **self.judges}, self.truth)
        encoder = None
        if self.diversity is not None and images_per_prompt > 1:
            encoder = replace(self.diversity, device="cpu").load()
        chosen_by = {name: self.judge_weights[name] for name in self.judges} or {REWARD: 1.0}
        return Evaluator(prompts, self.sampling, judges, images_per_prompt, seed, split, encoder, chosen_by)
