"""Rounds of human feedback: draw images, collect rankings, retrain the reward, tune on."""

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2ifb.annotation.items import MOST
from t2ifb.data.datasets import open_dataset
from t2ifb.data.datasets.mixture import Mixture
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.rankings import PreferenceDataset
from t2ifb.finetuning.evaluator import REWARD
from t2ifb.finetuning.run import FineTuner
from t2ifb.finetuning.run_parts import check_counts
from t2ifb.iteration.collection import COLLECTED, Judge, collect, draw, held_out_count, prompts_of_rounds
from t2ifb.iteration.results import PAGE, best_round, figures_of, show_rounds, write_rounds
from t2ifb.reward_learning.run import RewardTrainer
from t2ifb.training.run_folder import SUMMARY, RunFolder
from t2ifb.training.settings import settings_of
from t2ifb.training.trainer import on_usable_device, work_device
from t2ifb.utils.devices import device_of, true_float32
from t2ifb.utils.trainers import has_several

INITIAL = "initial"
"""Name of the initial data set in the mixture of all rankings."""
SEEDS_APART = 1000
"""Difference between the seeds of two rounds."""
HELD_OUT = 0.1
"""Default share of a round's prompts for validation, and for test, without an initial data set."""


class Iteration:
    """Rounds of feedback. Each draws images with the newest model, has them ranked, retrains the reward and tunes on.

        Iteration(
            tuner=partial(FineTuner, "stable-diffusion-v1-5/stable-diffusion-v1-5", prompts="prompts.txt"),
            reward_trainer=partial(RewardTrainer, encoder="ViT-L-14-quickgelu/openai"),
            output_dir="outputs/rounds",
        ).fit()

    A round has the folders `rankings`, `reward` and `tuning` below `round_01/`, `round_02/`, ...; the last two are run
    folders like any other. The reward is trained anew on all rankings so far. Tuning starts from the adapters of the
    round before, which DPO's loss refers to; the KL divergence and all comparisons still refer to the base model.
    """

    def __init__(
        self,
        tuner: Callable[..., FineTuner],
        reward_trainer: Callable[..., RewardTrainer],
        output_dir: str | Path,
        dataset: PreferenceDataset | str | Path | None = None,
        dataset_weight: float = 1.0,
        rounds: int = 3,
        prompts_per_round: int = 100,
        images_per_prompt: int = 4,
        annotators: Mapping[str, Judge] | None = None,
        answered: float = 1.0,
        held_out: float | None = None,
        seed: int = 0,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Store the settings and check them, as far as that is possible without a reward.

        Args:
            tuner: Builds the `FineTuner` of a round; all of its arguments except `reward`, `output_dir`, `rankings`,
                `seed` and `resume`. Its `sampling` also draws the images that are ranked, of its training prompts, and
                its `start_from` is the start of the first round. An algorithm on preference pairs learns from the
                rankings that the reward is trained on.
            reward_trainer: Builds the `RewardTrainer` of a round; all of its arguments except `dataset`, `output_dir`,
                `seed` and `resume`.
            output_dir: Folder of all rounds, created by `fit`.
            dataset: Initial rankings, which the reward is trained on too, and validated and tested on in every round;
                or their folder or hub id. Without them, a part of each round's rankings is held out for that.
            dataset_weight: How often each initial training ranking appears in an epoch; 0 leaves them for validation
                and test.
            rounds: Number of rounds.
            prompts_per_round: Prompts that are ranked in each round, different ones in all rounds.
            images_per_prompt: Images per prompt, from 2 to 9.
            annotators: Programs that rank images, by name; each ranks all. By default people do, on the page of
                `python -m t2ifb.annotate`.
            answered: Share of a round's prompts that people must have answered before it continues.
            held_out: Share of each round's prompts whose rankings are for validation, and for test; by default 0.1
                without `dataset`, and 0 with one.
            seed: Random seed. The runs of round n have the seed `seed + 1000 (n - 1)`, so that rounds see different
                prompts and noise.
            resume: Continue the unfinished iteration in `output_dir`. All other arguments must be as before.
            config: Settings to record with the loggers of all runs instead of their arguments.

        Raises:
            ValueError: A number is out of range, the trainer has several processes, or a run refuses its arguments.
        """
        check_counts(rounds=rounds, prompts_per_round=prompts_per_round)
        if not 2 <= images_per_prompt <= MOST:
            raise ValueError(f"images_per_prompt={images_per_prompt} must be from 2 to {MOST}, to be ranked")
        if not 0 < answered <= 1:
            raise ValueError(f"answered={answered} must be above 0 and at most 1, the share of all prompts")
        self.output_dir, self.tuner, self.reward_trainer = Path(output_dir).expanduser(), tuner, reward_trainer
        self.dataset = None if dataset is None else open_dataset(dataset)
        self.held_out = HELD_OUT * (dataset is None) if held_out is None else held_out
        if not 0 <= self.held_out < 0.5 or (dataset is None and self.held_out == 0):
            least = "above 0" if dataset is None else "at least 0"
            raise ValueError(f"held_out={self.held_out} must be {least} and below 0.5")
        if self.held_out and prompts_per_round <= 2 * held_out_count(prompts_per_round, self.held_out):
            raise ValueError(
                f"prompts_per_round={prompts_per_round} with held_out={self.held_out:g} leaves no prompt to train on, "
                f"as {held_out_count(prompts_per_round, self.held_out)} each are for validation and test"
            )
        if annotators is not None and not annotators:
            raise ValueError("annotators={}: expected at least one program, or None for people")
        self.dataset_weight, self.rounds = dataset_weight, rounds
        self.prompts_per_round, self.images_per_prompt = prompts_per_round, images_per_prompt
        self.annotators, self.answered = annotators, answered
        self.seed, self.resume, self.config = seed, resume, dict(config or {})
        self.start_from = getattr(tuner, "keywords", {}).get("start_from")
        # Judges need the time and memory of their weights, and a round builds them again.
        unjudged = {"judges": None, "judge_weights": None, "truth": None}
        self._example = self._tuner(1, reward=nn.Identity(), **unjudged)
        reward_run = self._reward_trainer(1)
        if reward_run.data.keywords.get("train_prompts") is not None:
            raise ValueError("reward_trainer: leave train_prompts out; a round's reward is trained on all rankings")
        for trainer in (self._example.trainer, reward_run.trainer):
            if has_several(getattr(trainer, "keywords", {})):
                raise ValueError(
                    "an iteration works in one process on one device; give trainer=partial(Trainer, devices=1), or run "
                    "reward training and fine-tuning one by one"
                )

    @property
    def splits(self) -> list[str]:
        """Splits of a preference data set that are needed: of the initial one, or of that with the prompts."""
        own = [] if self.dataset is None else ["train", "validation", "test"]
        return list(dict.fromkeys([*own, *self._example.prompts.ranked_splits]))

    def fit(self) -> dict[str, Any]:
        """Do all rounds, or those that are left. Finished steps are skipped, an unfinished one is continued.

        Returns:
            Content of `summary.json`: `rounds`, the figures of each (`figures_of`); `best_round`, whose adapters are in
            `export/`, and `chosen_by_judges` (`best_round`); its `validation` and `judge_weights`, and `chosen_by`, as
            of a fine-tuning run; and `network_evaluations` of all.

        Raises:
            RankingsNeeded: People have to rank images first; the message says how.
            ValueError: Data or settings are inconsistent, or the folder has an iteration that is not to be continued.
        """
        run = RunFolder(self.output_dir)
        with run.held():
            run.check_new(self.resume)
            if not self.resume and self.folder(1).exists():
                raise ValueError(
                    f"output_dir={str(run.path)!r}: there is an unfinished iteration in it; continue it with "
                    "resume=True, or give another folder"
                )
            run.write_settings(settings_of(self))
            rounds: list[dict[str, Any]] = []
            for number in range(1, self.rounds + 1):
                rounds.append(self._round(number, rounds))
                write_rounds(run.path, rounds)
                # A page that is newer than the round shows it already; that of the last round is written at the end.
                if number < self.rounds and not _newer(run.path / PAGE, self.folder(number) / "tuning" / SUMMARY):
                    show_rounds(run.path, rounds)
            return self._conclude(run, rounds)

    def folder(self, number: int) -> Path:
        """Folder of a round.

        Args:
            number: Number of the round, from 1.
        """
        return self.output_dir / f"round_{number:02d}"

    def _round(self, number: int, before: list[dict[str, Any]]) -> dict[str, Any]:
        folder = self.folder(number)
        collected = _summary(folder / "rankings") or self._collect(number)
        reward = _summary(folder / "reward") or self._reward_trainer(number).fit()
        _free()
        tuning = _summary(folder / "tuning") or self._tuner(number).fit()
        _free()
        images = self.prompts_per_round * self.images_per_prompt
        drawing = images * self._example.sampling.network_evaluations
        return figures_of(number, collected, reward, tuning, folder / "tuning" / "metrics.csv", drawing, before)

    def _collect(self, number: int) -> dict[str, Any]:
        """Draw the images of a round and collect their rankings."""
        folder, example = self.folder(number) / "rankings", self._example
        prompts = prompts_of_rounds(example.prompts.of("train"), self.rounds, self.prompts_per_round, self.seed)
        device = device_of(work_device(on_usable_device(example.trainer)))
        adapters, reward = self._start(number), self.folder(number - 1) / "reward" if number > 1 else None
        batch, key = example.samples_per_batch, (self.seed, number)
        with true_float32():
            draw(
                folder, example.model, adapters, example.sampling, prompts[number - 1], self.images_per_prompt, key,
                batch, device,
            )  # fmt: skip
            _free()
            return collect(folder, self.annotators, self.answered, self.held_out, reward, device, self._seed(number))

    def _start(self, number: int) -> Path | None:
        """The adapters that a round starts from: those of the round before, or of `start_from`."""
        if number > 1:
            return self.folder(number - 1) / "tuning"
        return None if self.start_from is None else Path(self.start_from).expanduser()

    def _rankings(self, number: int) -> Mixture:
        """All rankings up to a round."""
        new = {f"round_{n:02d}": OwnRankings(self.folder(n) / "rankings" / COLLECTED) for n in range(1, number + 1)}
        held_out = [*([INITIAL] if self.dataset is not None else []), *(new if self.held_out else [])]
        initial = {} if self.dataset is None else {INITIAL: self.dataset}
        weights = {INITIAL: self.dataset_weight} if initial else {}
        return Mixture(initial | new, weights, held_out)

    def _reward_trainer(self, number: int) -> RewardTrainer:
        return self.reward_trainer(
            dataset=self._rankings(number), output_dir=self.folder(number) / "reward", **self._common(number)
        )

    def _tuner(self, number: int, **changes: Any) -> FineTuner:
        folder = self.folder(number)
        # The judges count alike in all rounds, so that their scores can be compared.
        first = (_summary(self.folder(1) / "tuning") or {}).get("judge_weights", {}) if number > 1 else {}
        given = {
            "reward": folder / "reward",
            "output_dir": folder / "tuning",
            "start_from": self._start(number),
            "rankings": self._rankings(number),
        } | ({} if first.keys() <= {REWARD} else {"judge_weights": first})
        return self.tuner(**(given | self._common(number) | changes))

    def _common(self, number: int) -> dict[str, Any]:
        """Arguments of both runs of a round. A run that has not begun starts, also with `resume`."""
        seed = self._seed(number)
        config = {"config": self.config | {"seed": seed}} if self.config else {}
        return {"seed": seed, "resume": True} | config

    def _seed(self, number: int) -> int:
        return self.seed + SEEDS_APART * (number - 1)

    def _conclude(self, run: RunFolder, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        """Export the best round's adapters, write `summary.json` and the page."""
        best, by_judges = best_round(rounds)
        shutil.copytree(self.folder(best) / "tuning" / "export", run.export, dirs_exist_ok=True)
        evaluations = sum(figures["network_evaluations"] + figures["drawing_evaluations"] for figures in rounds)
        figures = {
            "rounds": rounds, "best_round": best, "chosen_by_judges": by_judges, "chosen_by": "judges",
            **{name: rounds[best - 1][name] for name in ("validation", "judge_weights")},
            "network_evaluations": evaluations, "seed": self.seed,
        }  # fmt: skip
        summary = run.write_summary(figures)
        show_rounds(run.path, rounds)
        return summary


def _summary(folder: Path) -> dict[str, Any] | None:
    """Content of a finished step's `summary.json`; None for other steps."""
    file = folder / SUMMARY
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _free() -> None:
    """Free the memory of the models of a finished step."""
    gc.collect()
    torch.cuda.empty_cache()


def _newer(file: Path, other: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= other.stat().st_mtime_ns
