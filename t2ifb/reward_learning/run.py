"""Reward run: trains a head on cached embeddings, tests its best state, and exports it."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import seed_everything
from torch import nn

from t2ifb.data.datamodules import RewardDataModule
from t2ifb.data.datasets import open_dataset
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.pixel_features import PixelFeatures
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.evaluation.plots import learning_curves
from t2ifb.reward_learning.module import RewardModule
from t2ifb.reward_learning.results import RewardResults, embedded
from t2ifb.reward_learning.warm_start import warm_start
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.reward_model import Source, export_hash, write_export
from t2ifb.scorers.shorthand import clip_source
from t2ifb.training import loggers
from t2ifb.training.metrics import MetricsCSV
from t2ifb.training.nan_guard import NanGuard
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
    named_gpu,
    on_usable_device,
    reject_reserved,
    run_figures,
)
from t2ifb.utils.devices import true_float32
from t2ifb.utils.files import data_folder

ADAM = partial(torch.optim.Adam, lr=1e-5, betas=(0.9, 0.99), fused=True)
"""The report's optimiser."""


class RewardTrainer:
    """Stage 1 of the report: a reward model from rankings.

        RewardTrainer("path/to/ImageRewardDB", "ViT-L-14-quickgelu/openai", output_dir="outputs/reward").fit()

    Attributes:
        splits: Splits for training, for selection of the best state, and for tests.
        grouping: `prompt` scores each image of a ranking once; `comparison` shuffles single comparisons.
    """

    def __init__(
        self,
        dataset: PreferenceDataset | str | Path,
        encoder: CLIPSource | str | Path,
        output_dir: str | Path,
        head: Callable[..., nn.Module] = MLPHead,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer] = ADAM,
        cache_folder: str | Path | None = None,
        cache_storage: Literal["fp32", "fp16", "bf16"] = "fp32",
        grouping: Literal["prompt", "comparison"] = "prompt",
        batch_size: int = 256,
        epochs: int = 20,
        validations_per_epoch: float = 1,
        baselines: Mapping[str, nn.Module] | None = None,
        max_skipped_updates: int = 10,
        train_prompts: int | None = None,
        encoder_lr: float = 1e-5,
        trainer: MakeTrainer = ONE_DEVICE,
        logger: MakeLogger = loggers.no_logger,
        seed: int = 0,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the settings. Nothing is loaded yet.

        Args:
            dataset: Rankings with the splits train, validation and test, or their folder or hub id (`open_dataset`).
                Of its attributes, `test_splits` are the splits for testing the best state (figures and model card show
                the first), `ceiling` is a ground-truth scorer, the upper limit of agreement with the annotators,
                `ceiling_parts` names its components for additional comparisons, and `published` has published
                accuracies in per cent, by name.
            encoder: Source of the encoder, or its name such as `ViT-L-14-quickgelu/openai` (`clip_source`). A frozen
                encoder embeds each image and prompt once. With `trainable_layers` its last layers are tuned with the
                head, end to end from pixels, and nothing is cached. With `init` training starts from a preference
                model, which also is a row of the final table (`warm_start`).
            output_dir: Folder of the run and its export, created by `fit`.
            head: Builds the head from `embedding_dim`.
            optimizer: Builds the optimiser from parameter groups.
            cache_folder: Folder of the embedding cache; by default `embeddings` in `data_folder`.
            cache_storage: Precision of embeddings on disk.
            grouping: See the class.
            batch_size: Approximate number of comparisons per batch.
            epochs: Number of passes over the comparisons.
            validations_per_epoch: Validations per epoch; 0.5 validates every second epoch.
            baselines: Scorers in the final table, by name.
            max_skipped_updates: Maximum skipped updates with NaN or infinity.
            train_prompts: Number of training rankings, drawn with the seed; all by default.
            encoder_lr: Learning rate of the encoder's tuned layers.
            trainer: Builds the `lightning.Trainer`; by default one GPU if there is one, else the CPU.
            logger: Builds a logger from `run` and `config`, such as `wandb_logger`; `metrics.csv` is always written.
            seed: Random seed of the run.
            resume: Continue the unfinished run in `output_dir` from its last checkpoint, if it has one. All other
                arguments must be as before.
            config: Settings to record with the logger instead of these arguments; they change nothing else.

        Raises:
            ValueError: A number is out of range, or a shorthand names nothing.
        """
        dataset = open_dataset(dataset)
        self.ceiling, self.ceiling_parts = getattr(dataset, "ceiling", None), getattr(dataset, "ceiling_parts", ())
        if self.ceiling_parts and not hasattr(self.ceiling, "parts"):
            raise ValueError(f"dataset.ceiling_parts={list(self.ceiling_parts)} needs a dataset.ceiling with parts")
        if not (tested := tuple(getattr(dataset, "test_splits", ("test",)))):
            raise ValueError("dataset.test_splits=[]: expected at least one split, such as test")
        if epochs < 1 or validations_per_epoch * epochs < 1:
            raise ValueError(
                f"epochs={epochs} must be at least 1, and validations_per_epoch={validations_per_epoch} so much that "
                "one happens."
            )
        self.encoder: Source = clip_source(encoder)
        self.start = warm_start(self.encoder)
        if self.start is not None:
            self.encoder, head = self.start.encoder, self.start.head
        cache = data_folder() / "embeddings" if cache_folder is None else Path(cache_folder)
        self.cache = EmbeddingCache(cache, self.encoder, cache_storage)
        self.splits = ("train", "validation", *tested)
        self.data = partial(
            RewardDataModule,
            dataset,
            grouping=grouping,
            batch_size=batch_size,
            splits=self.splits,
            train_prompts=train_prompts,
        )
        self.head, self.optimizer, self.encoder_lr = head, optimizer, encoder_lr
        self.epochs, self.validations_per_epoch = epochs, validations_per_epoch
        self.max_skipped_updates = max_skipped_updates
        self.baselines, self.published = dict(baselines or {}), dict(getattr(dataset, "published", {}))
        self.output_dir, self.trainer, self.logger = Path(output_dir).expanduser(), trainer, logger
        self.seed, self.resume, self.config = seed, resume, dict(config or {})

    def fit(self) -> dict[str, Any]:
        """Train, test the best state, export it, and write all results to `output_dir`.

        Returns:
            Content of `summary.json`; empty in all processes but the first.

        Raises:
            ValueError: Data or settings are inconsistent, or the folder has a run that is not to be continued.
        """
        trainer, run = self.trainer, RunFolder(self.output_dir)
        reject_reserved(self.head, "head", {"embedding_dim": "it is determined by the encoder"})
        reject_reserved(trainer, "trainer", SET_BY_THE_RUN | {"accumulate_grad_batches": "give batch_size=…"})
        trainer = on_usable_device(trainer)
        if self.encoder.device == "auto":  # images are embedded on the head's device
            self.cache.source = replace(self.encoder, device=named_gpu(trainer) or "auto")
        if self.encoder.trainable_layers:
            check_mixed_precision(trainer, "the tuned layers")
        with run.held() if first_process() else nullcontext(), true_float32():
            if first_process():
                run.check_new(self.resume)
                run.write_settings(self.settings())
            return self._fit(run, trainer)

    def settings(self) -> dict[str, Any]:
        """All settings as plain containers."""
        return settings_of(self, **self.data.keywords, dataset=self.data.args[0])

    def _tuned_encoder(self) -> CLIPEncoder | None:
        """The encoder, if its last layers are tuned."""
        if not isinstance(self.encoder, CLIPSource) or not self.encoder.trainable_layers:
            return None
        return replace(self.encoder, device="cpu").load()

    def _fit(self, run: RunFolder, trainer: MakeTrainer) -> dict[str, Any]:
        started, seed = time.monotonic(), self.seed
        tuned = self._tuned_encoder()
        baselines = self.baselines
        if self.start is not None:
            before = self.start.model()
            baselines = {before.name: before, **baselines}
            if tuned is not None and self.start.tuned:
                tuned.load_tuned(self.start.tuned)
        data = self.data(feed=self.cache if tuned is None else PixelFeatures(tuned), seed=seed)
        tested = [ranked.prompt for split in self.splits[2:] for ranked in data.rankings(split)]
        check_known(self.ceiling, tested, "dataset.ceiling=None and dataset.ceiling_parts=[]")
        data.prepare_data()
        some = slice(0, 1)
        width = data.encoded("train").images.gather(some).shape[1] if tuned is None else tuned.embedding_dim
        seed_everything(
            seed, workers=True, verbose=False
        )  # here, because filling the cache may have used the generator
        module = RewardModule(self.head(embedding_dim=width), self.optimizer, seed, tuned, self.encoder_lr)
        metrics, guard = MetricsCSV(run), NanGuard(self.max_skipped_updates)
        config = {"seed": seed} | (self.config or self.settings())
        recorder = False if not first_process() else loggers.start(self.logger, run, config)
        if not data.encoded(self.splits[1]).decided:
            raise ValueError(
                f"the split {self.splits[1]} has no comparison with a better image, so no state of the head could be "
                "chosen by it; add rankings without ties"
            )
        every = max(1, int(data.steps_per_epoch / self.validations_per_epoch))
        steps = -(-self.epochs * data.steps_per_epoch // every) * every  # the last state is validated too
        engine = make_trainer(trainer, run, recorder, steps, every, "val/accuracy", metrics, guard)
        last = run.last_checkpoint if self.resume and run.last_checkpoint.exists() else None
        engine.fit(module, data, ckpt_path=last, weights_only=True)
        if not engine.is_global_zero:
            return {}
        best = torch.load(run.best_checkpoint, map_location="cpu", weights_only=True)
        missing, unknown = module.load_state_dict(best["state_dict"], strict=False)
        assert not unknown and all(name.startswith("encoder.") for name in missing), (missing, unknown)
        module.eval()
        embeddings = {s: embedded(module, data.encoded(s), engine.strategy.root_device) for s in self.splits[2:]}
        head = module.cpu().head
        judges = baselines, self.ceiling, self.ceiling_parts
        published = {self.splits[2]: self.published}  # on the first test split
        verdicts = [
            RewardResults(data, s, head, pair, *judges, published.get(s, {}), seed) for s, pair in embeddings.items()
        ]
        figures: dict[str, Any] = {key: value for verdict in verdicts for key, value in verdict.write(run).items()}
        learning_curves(run.metrics, run.path / "learning_curves.png")
        verdicts[0].draw(run)
        changed = tuned.tuned_state() if tuned is not None else {}
        write_export(run.export, head, self.encoder, verdicts[0].card(), changed)
        seconds = time.monotonic() - started + (metrics.seconds if last else 0)
        figures |= {
            **run_figures(engine, run, guard, best["global_step"], "accuracy", seed, seconds),
            "encoder": self.encoder.fingerprint(),
            "init": None if self.start is None else self.start.name,
            "data": data.state_dict() | {"splits": data.hashes()},
            "export": export_hash(run.export),
        }
        summary = run.write_summary(figures)
        loggers.finish(recorder, verdicts[0].examples(), run, figures["validation"])
        return summary
