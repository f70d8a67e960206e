"""The fine-tuning run: adapters tuned by a reward, judged by others while it goes on and at the end, exported."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from rich.progress import track
from torch import Tensor, nn

from t2ifb.data.prompt_batches import PromptDataModule
from t2ifb.data.prompts import PromptSplits
from t2ifb.diffusion.lora import LoRA, load_adapter_state, save_lora
from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.evaluation.judges import Judges
from t2ifb.learning import loggers
from t2ifb.learning.engine import SET_BY_THE_RUN, MakeLogger, MakeTrainer, first_process, make_engine, refuse
from t2ifb.learning.exam import Answers, Exam
from t2ifb.learning.fault_guard import FaultGuard
from t2ifb.learning.metrics_csv import MetricsCSV
from t2ifb.learning.refl_module import ReFLModule
from t2ifb.learning.run_folder import RunFolder
from t2ifb.learning.tuning_verdict import TuningVerdict
from t2ifb.learning.tuning_watch import TuningWatch
from t2ifb.scorers.mix import Mix

REWARD = "reward"
"""How the scorer that a run is trained on is called among its judges."""


class ReFLTraining:
    """Stage 2 of the report: a diffusion model tuned by alpha * reward - beta * KL (see `ReFLModule`)."""

    def __init__(
        self,
        diffusion: DiffusionSource,
        lora: LoRA,
        reward: nn.Module,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        prompts: PromptSplits,
        rollout: Sampler,
        sampling: Sampler,
        judges: Mapping[str, nn.Module] | None = None,
        truth: nn.Module | None = None,
        alpha: float = 100.0,
        beta: float = 0.01,
        window: Sequence[int] | None = None,
        gradients_per_rollout: int = 1,
        standardise: bool = True,
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
            judges: Scorers that the run is not trained on, by name.
            truth: A scorer that knows how good an image is (`shapes`); only looked at.
            alpha: See `ReFLModule`, as the next three.
            beta: Weight of the KL divergence.
            window: First and last step that gradients are taken at.
            gradients_per_rollout: m.
            standardise: Give the reward mean 0 and standard deviation 1 on the base model's images of the validation
                prompts. A mix is standardised scorer by scorer.
            batch_size: Prompts an update, over all processes.
            micro_batch_size: Prompts in memory together.
            gradient_clip_norm: Largest norm of an update's gradient.
            epochs: How often every training prompt is seen; may be a part of one.
            validate_every: Updates between two validations.
            validation_prompts: How many of the held-out prompts a validation looks at.
            images_per_prompt: Images of each of them.
            samples_per_batch: Images that are drawn together.
            diversity: A `CLIPSource` whose embeddings measure how different the images of a prompt are.
            patience: Validations without a better one after which the run stops; never by default.
            most_faults: Updates with NaN or infinity that may be skipped before the run stops.

        Raises:
            ValueError: A number is out of range.
        """
        if epochs <= 0 or validate_every < 1 or validation_prompts < 1 or images_per_prompt < 1:
            raise ValueError(
                f"epochs={epochs} must be above 0, and validate_every={validate_every}, validation_prompts="
                f"{validation_prompts}, images_per_prompt={images_per_prompt} at least 1"
            )
        self.diffusion, self.lora, self.optimizer = diffusion, lora, optimizer
        self.reward = Mix({REWARD: reward}) if standardise and not isinstance(reward, Mix) else reward
        self.standardise = standardise
        self.prompts, self.rollout, self.sampling = prompts, rollout, sampling
        self.judges, self.truth = dict(judges or {}), truth
        self.settings: dict[str, Any] = {
            "alpha": alpha,
            "beta": beta,
            "window": window,
            "gradients_per_rollout": gradients_per_rollout,
            "micro_batch_size": micro_batch_size,
            "gradient_clip_norm": gradient_clip_norm,
        }
        self.batch_size, self.epochs, self.validate_every = batch_size, epochs, validate_every
        self.validation_prompts, self.images_per_prompt = validation_prompts, images_per_prompt
        self.samples_per_batch, self.diversity = samples_per_batch, diversity
        self.patience, self.most_faults = patience, most_faults

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
            ValueError: The reward has no gradient, or the settings do not fit.
        """
        refuse(trainer, "trainer", SET_BY_THE_RUN)
        with run.held() if first_process() else nullcontext():
            return self._run(run, trainer, logger, seed, resume, dict(config or {}))

    def _run(
        self, run: RunFolder, trainer: MakeTrainer, logger: MakeLogger, seed: int, resume: Path | None, config: Any
    ) -> dict[str, Any]:
        started = time.monotonic()
        check_differentiable(self.reward)
        texts = {split: self.prompts.of(split) for split in ("train", "validation", "test")}
        exam = self._exam(texts["validation"][: self.validation_prompts], self.images_per_prompt, seed)
        data = PromptDataModule(texts["train"], self.batch_size, seed, len(exam), self.samples_per_batch)
        model = replace(self.diffusion, device="cpu").load()
        seed_everything(seed, workers=True, verbose=False)
        module = ReFLModule(
            model, self.lora, self.reward, self.optimizer, self.rollout, exam, seed=seed, **self.settings
        )
        metrics, guard = MetricsCSV(run), FaultGuard(self.most_faults)
        watch = TuningWatch(run, exam, self.patience)
        recorder = logger(run=run, config=config) if first_process() else False
        steps = max(1, round(self.epochs * data.steps_per_epoch))
        every = min(self.validate_every, steps)
        engine = make_engine(trainer, run, recorder, steps, every, "val/judges", metrics, guard, [watch])
        device = engine.strategy.root_device
        self._look_at_base(run, exam, model.to(device), device)
        metrics.start = {f"val/{name}": value for name, value in exam.figures(exam.base).items()}  # type: ignore[arg-type]
        last = run.last_checkpoint if resume is not None and run.last_checkpoint.exists() else None
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        if not engine.is_global_zero:
            return {}
        module.to(device)
        test = self._exam(texts["test"], 1, seed)
        answers = self._answers_of_states(run, test, model, device)
        best = torch.load(run.best_checkpoint, weights_only=True)
        load_adapter_state(model.unet, best["state_dict"])
        verdict = TuningVerdict(test, answers, metrics.rows, [REWARD], best["global_step"], seed)
        run.export.mkdir(exist_ok=True)
        save_lora(model.unet, run.export)
        figures = verdict.write(run) | {
            "best_step": best["global_step"],
            "steps": engine.global_step,
            "skipped_updates": guard.skipped,
            "prompts_cut": len(model.too_long),
            "seed": seed,
            "precision": str(engine.precision),
            "wall_seconds": round(time.monotonic() - started + (metrics.seconds if last else 0), 1),
            "data": data.state_dict(),
        }
        loggers.finish(recorder, verdict.examples(), run.export)
        return run.write_summary(figures)

    def _exam(self, prompts: Sequence[str], images_per_prompt: int, seed: int) -> Exam:
        """Questions with every scorer; the reward is among them but does not choose."""
        judges = Judges({REWARD: self.reward, **self.judges}, self.truth)
        encoder = self.diversity.load() if self.diversity is not None and images_per_prompt > 1 else None
        embed = encoder.encode_images if encoder is not None else None
        return Exam(prompts, self.sampling, judges, images_per_prompt, seed, embed, list(self.judges) or [REWARD])

    def _look_at_base(self, run: RunFolder, exam: Exam, model: DiffusionModel, device: torch.device) -> None:
        """The base model's answers, kept in the run's folder, and the reward's units from them."""
        path = run.path / "base.safetensors"
        if not path.exists():
            exam.judges.to(device)
            with model.base():
                answers = self._ask(exam, model, device, "the base model")
            answers.save(path)
        exam.base = Answers.read(path)
        if self.standardise and isinstance(self.reward, Mix):
            raw = {}
            for name, scorer in self.reward.scorers.items():
                raw[name] = Judges({name: scorer})(exam.base.images, exam.prompts, device)[name]
            self.reward.standardise(raw)
            own = self.reward.combine(torch.stack([raw[name] for name in self.reward.scorers]).to(device)).cpu()
            exam.base.scores[REWARD] = own

    def _ask(self, exam: Exam, model: DiffusionModel, device: torch.device, whom: str) -> Answers:
        size = self.samples_per_batch
        for start in track(range(0, len(exam), size), f"drawing samples of {whom}"):
            exam.look(model, range(start, min(start + size, len(exam))))
        return exam.answers(device)

    def _answers_of_states(
        self, run: RunFolder, test: Exam, model: DiffusionModel, device: torch.device
    ) -> dict[str, Answers]:
        """Of the base model, of the kept checkpoint and of the last one, on the test prompts."""
        with model.base():
            answers = {"base": self._ask(test, model, device, "the base model")}
        for name, path in (("kept", run.best_checkpoint), ("last", run.last_checkpoint)):
            load_adapter_state(model.unet, torch.load(path, weights_only=True)["state_dict"])
            answers[name] = self._ask(test, model, device, f"the {name} checkpoint")
        return answers


def check_differentiable(reward: nn.Module) -> None:
    """Refuse a reward that no gradient comes back from, before anything is spent on it.

    Raises:
        ValueError: It is one.
    """
    generator = torch.Generator().manual_seed(0)
    device = next((tensor.device for tensor in [*reward.parameters(), *reward.buffers()]), torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64, generator=generator).to(device).requires_grad_()
    with torch.enable_grad():
        score: Tensor = reward(images, ["a red circle on a gray background"])
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score.sum(), images, allow_unused=True)
    if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        raise ValueError(
            f"{type(reward).__name__} gives the images no gradient, so nothing can be tuned by it; choose a "
            "differentiable scorer by scorer@reward=<option>"
        )
