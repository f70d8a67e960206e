"""The reward run: a head trained on comparisons of images embedded once, tested with its best state, exported."""

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

from t2ifb.data.comparisons import RewardDataModule
from t2ifb.data.devices import device_facts, true_float32
from t2ifb.data.embedding_cache import EmbeddingCache
from t2ifb.data.pixel_feed import PixelFeed
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.evaluation.figures import learning_curves
from t2ifb.learning import loggers
from t2ifb.learning.engine import (
    SET_BY_THE_RUN,
    MakeLogger,
    MakeTrainer,
    first_process,
    make_engine,
    named_gpu,
    on_usable_device,
    refuse,
)
from t2ifb.learning.fault_guard import FaultGuard
from t2ifb.learning.metrics_csv import MetricsCSV, read_metrics, validation_figures
from t2ifb.learning.reward_check import check_known
from t2ifb.learning.reward_module import RewardModule
from t2ifb.learning.reward_verdict import RewardVerdict, embedded
from t2ifb.learning.run_folder import RunFolder
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.reward_files import export_hash, write_export


class RewardTraining:
    """Stage 1 of the report: a reward model from rankings.

    Attributes:
        splits: Of the data set: to train on, to choose the best state by, and to test it on.
        grouping: `prompt` scores each image of a ranking once; `comparison` shuffles single comparisons.
    """

    def __init__(
        self,
        dataset: PreferenceDataset,
        encoder: CLIPSource,
        head: Callable[..., nn.Module],
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        cache_folder: str | Path,
        cache_storage: Literal["fp32", "fp16", "bf16"] = "fp32",
        grouping: Literal["prompt", "comparison"] = "prompt",
        batch_size: int = 256,
        epochs: int = 20,
        validations_per_epoch: float = 1,
        test_splits: Sequence[str] = ("test",),
        baselines: Mapping[str, nn.Module] | None = None,
        ceiling: nn.Module | None = None,
        ceiling_parts: Sequence[str] = (),
        published: Mapping[str, float] | None = None,
        most_faults: int = 10,
        train_prompts: int | None = None,
        encoder_lr: float = 1e-5,
    ) -> None:
        """Put the parts together; nothing is loaded yet.

        Args:
            dataset: Rankings, with the splits train, validation and test.
            encoder: Frozen, each image and prompt passes it once; with `trainable_layers` its last layers are tuned
                with the head, end to end from pixels, and nothing is cached.
            head: Makes the head from `embedding_dim`.
            optimizer: Makes the optimiser from groups of parameters.
            cache_folder: Where embeddings are kept.
            cache_storage: Their precision on disk.
            grouping: See the class.
            batch_size: About how many comparisons make a batch.
            epochs: How often every comparison is seen.
            validations_per_epoch: How often the state may become the best one; 0.5 is after each second epoch.
            test_splits: What the best state is tested on; pictures and model card show the first.
            baselines: Scorers for the table at the end, by name.
            ceiling: A scorer that knows the truth (`shapes`): no scorer can agree better with the annotators.
            ceiling_parts: Which of `ceiling.parts(images, prompts)` the scorers are held against besides.
            published: Published accuracies in per cent, by name.
            most_faults: Updates with NaN or infinity that may be skipped before the run stops.
            train_prompts: How many training rankings are used, drawn by the seed; all by default.
            encoder_lr: Learning rate of the encoder's layers if they are tuned.

        Raises:
            ValueError: A number is out of range.
        """
        if ceiling_parts and not hasattr(ceiling, "parts"):
            raise ValueError(f"ceiling_parts={list(ceiling_parts)} needs a ceiling that has parts.")
        if not test_splits:
            raise ValueError("test_splits is empty: name at least one split, such as test.")
        if epochs < 1 or validations_per_epoch * epochs < 1:
            raise ValueError(
                f"epochs={epochs} must be at least 1, and validations_per_epoch={validations_per_epoch} so much that "
                "one happens."
            )
        self.cache = EmbeddingCache(Path(cache_folder), encoder, cache_storage)
        self.splits = ("train", "validation", *test_splits)
        self.data = partial(
            RewardDataModule,
            dataset,
            grouping=grouping,
            batch_size=batch_size,
            splits=self.splits,
            train_prompts=train_prompts,
        )
        self.encoder, self.head, self.optimizer, self.encoder_lr = encoder, head, optimizer, encoder_lr
        self.epochs, self.validations_per_epoch, self.most_faults = epochs, validations_per_epoch, most_faults
        self.baselines, self.published = dict(baselines or {}), dict(published or {})
        self.ceiling, self.ceiling_parts = ceiling, tuple(ceiling_parts)

    def run(
        self,
        run: RunFolder,
        trainer: MakeTrainer,
        logger: MakeLogger,
        seed: int = 0,
        resume: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Train, test with the best state, export, and write everything into the run's folder.

        Args:
            run: Where to.
            trainer: Makes the `lightning.Trainer`.
            logger: Makes the logger from `run` and `config`.
            seed: Of everything random.
            resume: The run's folder if it goes on from its last checkpoint.
            config: The resolved configuration, to be recorded.

        Returns:
            What `summary.json` says.

        Raises:
            ValueError: The data or the settings do not fit.
        """
        refuse(self.head, "head", {"embedding_dim": "it is the encoder's"})
        refuse(trainer, "trainer", SET_BY_THE_RUN)
        trainer = on_usable_device(trainer)
        if self.encoder.device == "auto":  # images are embedded where the head is trained
            self.cache.source = replace(self.encoder, device=named_gpu(trainer) or "auto")
        self._check_precision(str(getattr(trainer, "keywords", {}).get("precision")))
        with run.held() if first_process() else nullcontext(), true_float32():
            return self._run(run, trainer, logger, seed, resume, dict(config or {}))

    def _check_precision(self, precision: str) -> None:
        """Tuned weights are not rounded to half precision.

        Raises:
            ValueError: They would be.
        """
        if self.encoder.trainable_layers and precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"trainer.precision={precision} keeps tuned layers in half precision, and updates would be rounded "
                f"away; give {precision.replace('true', 'mixed')}"
            )

    def _run(
        self,
        run: RunFolder,
        trainer: MakeTrainer,
        logger: MakeLogger,
        seed: int,
        resume: Path | None,
        config: dict[str, Any],
    ) -> dict[str, Any]:
        started = time.monotonic()
        tuned = replace(self.encoder, device="cpu").load() if self.encoder.trainable_layers else None
        data = self.data(feed=self.cache if tuned is None else PixelFeed(tuned), seed=seed)
        tested = [ranked.prompt for split in self.splits[2:] for ranked in data.rankings(split)]
        check_known(self.ceiling, tested, "algorithm.ceiling=null algorithm.ceiling_parts=[]")
        data.prepare_data()
        some = slice(0, 1)
        width = data.encoded("train").images.gather(some).shape[1] if tuned is None else tuned.embedding_dim
        seed_everything(seed, workers=True, verbose=False)  # here, as filling the cache may have drawn from it
        module = RewardModule(self.head(embedding_dim=width), self.optimizer, seed, tuned, self.encoder_lr)
        metrics, guard = MetricsCSV(run), FaultGuard(self.most_faults)
        recorder = loggers.start(logger, run, config) if first_process() else False
        steps = self.epochs * data.steps_per_epoch
        every = max(1, int(data.steps_per_epoch / self.validations_per_epoch))
        engine = make_engine(trainer, run, recorder, steps, every, "val/accuracy", metrics, guard)
        last = run.last_checkpoint if resume is not None and run.last_checkpoint.exists() else None
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        if not engine.is_global_zero:
            return {}
        best = torch.load(run.best_checkpoint, weights_only=True)
        missing, unknown = module.load_state_dict(best["state_dict"], strict=False)
        assert not unknown and all(name.startswith("encoder.") for name in missing), (missing, unknown)
        module.eval()
        embeddings = {s: embedded(module, data.encoded(s), engine.strategy.root_device) for s in self.splits[2:]}
        head = module.cpu().head
        judges = self.baselines, self.ceiling, self.ceiling_parts
        verdicts = [RewardVerdict(data, s, head, pair, *judges, self.published, seed) for s, pair in embeddings.items()]
        figures: dict[str, Any] = {key: value for verdict in verdicts for key, value in verdict.write(run).items()}
        learning_curves(run.metrics, run.path / "learning_curves.png")
        verdicts[0].draw(run)
        changed = tuned.tuned_state() if tuned is not None else {}
        write_export(run.export, head, self.encoder, verdicts[0].card(), changed)
        figures |= {
            "best_step": best["global_step"],
            "chosen_by": "accuracy",
            "validation": validation_figures(read_metrics(run.metrics), best["global_step"]),
            "skipped_updates": guard.skipped,
            "overflowed_updates": guard.overflowed,
            "seed": seed,
            "precision": str(engine.precision),
            "device": device_facts(engine.strategy.root_device),
            "wall_seconds": round(time.monotonic() - started + (metrics.seconds if last else 0), 1),
            "encoder": self.encoder.fingerprint(),
            "data": data.state_dict() | {"splits": data.hashes()},
            "export": export_hash(run.export),
        }
        summary = run.write_summary(figures)
        loggers.finish(recorder, verdicts[0].examples(), run, figures["validation"])
        return summary
