"""Figures 8 and 9: a base model against tuned ones on the same prompts and noise, with every scorer (PAPER)."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2ifb.data.images import load_image
from t2ifb.data.prompts import PromptSplits
from t2ifb.diffusion.sampling import Sampler
from t2ifb.evaluation.comparison import HEADINGS, Gain, gains, write_gains
from t2ifb.evaluation.guidance_sweep import GuidanceSweep, Images, Scores, check_scales, in_words, sweep_guidance
from t2ifb.evaluation.guidance_verdict import show_sweep, write_sweep
from t2ifb.evaluation.image_cache import Generations, Sample, place_of, samples_of, tuned_runs
from t2ifb.evaluation.lazy import Unbuilt, build
from t2ifb.evaluation.metrics import diversity, embed
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.evaluation.scoring import GROUND_TRUTH
from t2ifb.evaluation.selection import deviation
from t2ifb.evaluation.tables import screen, show
from t2ifb.evaluation.tuning_plots import gain_bars, progress_sheet
from t2ifb.utils.files import atomic_write

SHOWN = 8
"""Number of prompts in each grid."""


class ModelComparison:
    """Sample test prompts with the base model and tuned ones from the same noise, and score all images.

    Attributes:
        splits: Splits of the preference data that are needed.
    """

    def __init__(
        self,
        diffusion: Unbuilt,
        sampling: Unbuilt,
        prompts: PromptSplits,
        scorers: Mapping[str, Unbuilt],
        runs: str | Sequence[str],
        cache_folder: str | Path,
        trained_on: Mapping[str, Sequence[str]] | None = None,
        encoder: Unbuilt | None = None,
        judges: Sequence[str] | None = None,
        images_per_prompt: int = 5,
        guidance_scales: Sequence[float] | None = None,
        validation_prompts: int = 64,
        best_of: int = 4,
        batch_size: int = 32,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        """Store the settings. Nothing is loaded yet.

        Args:
            diffusion: A `ModelSource`, unbuilt.
            sampling: A `Sampler`, unbuilt.
            prompts: The `test` prompts are used, and with `guidance_scales` the `validation` prompts. `most` sets their
                number (the report's figure has 200 of 466, drawn with a seed) and `seed` the choice.
            scorers: Unbuilt scorers by name.
            runs: Folders of one or more finished fine-tuning runs.
            cache_folder: Folder for images and scores.
            trained_on: Names of the scorers that each run, by folder, was trained on; they are not its judges.
            encoder: Unbuilt image encoder for the diversity, which needs it and at least two images per prompt.
            judges: Names of the scorers that select the best and worst prompts; by default all that no run was trained
                on, if any. Unknown names are reported and ignored.
            images_per_prompt: Number of images per prompt.
            guidance_scales: Further guidance scales of the base model and of every run, with one image per prompt each
                (`sweep_guidance`). None or an empty list compares at the scale of `sampling` alone.
            validation_prompts: Maximum number of validation prompts that choose the best scales.
            best_of: Number of base model's images that the run's reward chooses from, for comparison with tuning.
            batch_size: Images per batch in sampling and scoring.
            device: Device; `auto` is the GPU if one exists.
            seed: Seed of noise and bootstrap.

        Raises:
            ValueError: Runs, scorers or judges are missing, a run is not finished, or a number is out of range.
        """
        if not runs:
            raise ValueError("no runs to compare with the base model: set run=<folder>, or run=[<folder>,<folder>]")
        if not scorers:
            raise ValueError("scorers={}: expected at least one scorer")
        if images_per_prompt < 1:
            raise ValueError(f"images_per_prompt={images_per_prompt} must be at least 1")
        if validation_prompts < 1 or best_of < 1:
            raise ValueError(f"validation_prompts={validation_prompts} and best_of={best_of} must be at least 1")
        self.scales = check_scales(guidance_scales or ())
        self.models = tuned_runs([runs] if isinstance(runs, str) else runs)
        trained = {str(place_of(Path(run).expanduser()).absolute()): names for run, names in (trained_on or {}).items()}
        self.trained_on = {
            name: list(trained.get(str(place_of(export).absolute()), ())) for name, export in self.models.items()
        }
        of_runs = {scorer for names in self.trained_on.values() for scorer in names}
        honest = [name for name in scorers if name not in GROUND_TRUTH]
        free = [name for name in honest if name not in of_runs]
        wished = (free or honest or list(scorers)) if judges is None else list(judges)
        self.judges = [name for name in wished if name in scorers]
        if not self.judges:
            raise ValueError(
                f"judges={wished} names none of the scorers {', '.join(scorers)}; null selects the default"
            )
        if unknown := [name for name in wished if name not in scorers]:
            print(f"ignored: judges names {', '.join(unknown)}, which are not among the scorers", file=sys.stderr)
        self.prompts, self.scorers, self.encoder = prompts, dict(scorers), encoder
        self.images_per_prompt, self.batch_size, self.seed = images_per_prompt, batch_size, seed
        self.validation_prompts, self.best_of = validation_prompts, best_of
        folder = Path(cache_folder).expanduser()
        self.generations = Generations(folder / "generations", diffusion, sampling, batch_size, device, seed)
        self.cache = ScoreCache(folder / "scores", device, batch_size)
        needed = (prompts.test, prompts.validation) if self.scales else (prompts.test,)
        self.splits = [s.split for s in needed if hasattr(s, "dataset")]  # type: ignore[attr-defined]

    def run(self, folder: Path) -> dict[str, Any]:
        """Sample and score missing images, print the tables and write them with their figures to a folder.

        Returns:
            The results, for `summary.json`.

        Raises:
            ValueError: No prompts are given, or a model cannot be loaded.
            UnusableScorers: Some scorers cannot be built.
        """
        started = time.monotonic()
        prompts = self.prompts.of("test")
        samples = samples_of(prompts, self.images_per_prompt)
        # Sample a few images first, so that an unusable scorer or encoder fails early.
        first = self.generations.fill("the base model", None, samples[: self.batch_size])
        self.cache.try_out(self.scorers, first[0], samples[0].prompt)
        embeds = self.encoder is not None and self.images_per_prompt > 1
        encoder = replace(build(self.encoder), device="cpu").load() if embeds else None
        files = {"base": self.generations.fill("the base model", None, samples)}
        files |= {name: self.generations.fill(name, export, samples) for name, export in self.models.items()}
        scores = self._scores(files, samples, encoder)
        rows = {
            name: gains(scores["base"], scores[name], self.images_per_prompt, self.trained_on[name], self.seed)
            for name in self.models
        }
        sweeps = {name: self._sweep(name, prompts) for name in self.models} if self.scales else {}
        for name, found in rows.items():
            if name in sweeps:
                show_sweep(sweeps[name], name)
            title = f"{name}: {len(prompts)} test prompts, {self.images_per_prompt} images each, same noise"
            show(screen(title, HEADINGS, [row.cells() for row in found]))
        self._write(rows, files, scores, prompts, folder)
        stems = self._suffixes()
        swept = {name: write_sweep(found, folder, stems[name]) for name, found in sweeps.items()}
        return {
            "prompts": len(prompts),
            "images_per_prompt": self.images_per_prompt,
            "models": {name: str(place_of(export)) for name, export in self.models.items()},
            "trained_on": self.trained_on,
            "figure8": {name: {row.name: asdict(row) for row in found} for name, found in rows.items()},
            **({"guidance": swept} if swept else {}),
            "seed": self.seed,
            "wall_seconds": round(time.monotonic() - started, 1),
        }

    def _scores(
        self, files: Mapping[str, list[Path]], samples: Sequence[Sample], encoder: Any
    ) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Scores (N,) by model and scorer. Each image also has its prompt's diversity if `encoder` is given."""
        every = [file for some in files.values() for file in some]
        kept = self.cache.fill(self.scorers, every, [sample.prompt for sample in samples] * len(files))
        of = {name: kept.of(name).astype(np.float64).reshape(len(files), -1) for name in self.scorers}
        scores = {model: {name: values[row] for name, values in of.items()} for row, model in enumerate(files)}
        if encoder is not None:
            device = self.generations.device
            encoder = encoder.to(device)
            for model, some in files.items():
                vectors = embed(encoder, some, self.batch_size, device).unflatten(0, (-1, self.images_per_prompt))
                scores[model]["diversity"] = np.repeat(diversity(vectors).numpy(), self.images_per_prompt)
        return scores

    def _sweep(self, name: str, test: Sequence[str]) -> GuidanceSweep:
        """Compare a run with the base model over guidance scales, with one image per prompt each."""
        own: Sampler = build(self.generations.sampling)
        texts = {"test": test, "validation": self.prompts.of("validation")[: self.validation_prompts]}

        def draw(wanted: Sequence[Images]) -> list[Scores]:
            files: list[Path] = []
            prompts: list[str] = []
            for each in wanted:
                generations = self.generations if each.sampler == own else self.generations.at(each.sampler)
                samples = samples_of(texts[each.split], each.copies)
                title, export = (name, self.models[name]) if each.model == "tuned" else ("the base model", None)
                files += generations.fill(f"{title}, {in_words(each.sampler, own)}", export, samples)
                prompts += [sample.prompt for sample in samples]
            kept = self.cache.fill(self.scorers, files, prompts) if files else None
            of = {scorer: kept.of(scorer).astype(np.float64) for scorer in self.scorers} if kept else {}
            ends = np.cumsum([len(texts[each.split]) * each.copies for each in wanted])[:-1]
            parts = {scorer: np.split(values, ends) for scorer, values in of.items()}
            return [
                {scorer: some[number].reshape(-1, each.copies) for scorer, some in parts.items()}
                for number, each in enumerate(wanted)
            ]

        judges = dict.fromkeys(self._judges_of(name), 1.0)
        return sweep_guidance(draw, own, self.scales, judges, self.trained_on[name], self.best_of, self.seed)

    def _suffixes(self) -> dict[str, str]:
        """End of the names of each model's files."""
        if len(self.models) == 1:
            return dict.fromkeys(self.models, "")
        return {name: f"_{number}_{name.replace('/', '_')}" for number, name in enumerate(self.models, 1)}

    def _write(
        self,
        rows: Mapping[str, list[Gain]],
        files: Mapping[str, list[Path]],
        scores: Mapping[str, Mapping[str, NDArray[np.float64]]],
        prompts: Sequence[str],
        folder: Path,
    ) -> None:
        stems = self._suffixes()
        for name, found in rows.items():
            write_gains(found, folder, f"figure8{stems[name]}")
        gain_bars(rows, folder / "figure8.png")
        by_prompt = {name: self._gain_of_prompts(scores["base"], scores[name], name) for name in self.models}
        mean = np.mean(list(by_prompt.values()), 0)
        for title, picked in picks(mean, SHOWN, self.seed).items():
            columns = {name: self._pixels(some_files, picked) for name, some_files in files.items()}
            notes = [f"gain {mean[number]:+.2f}" for number in picked]
            progress_sheet([prompts[number] for number in picked], columns, folder / f"figure9_{title}.png", notes)
        index = [
            {"prompt": prompt, "gain": {name: float(values[number]) for name, values in by_prompt.items()}}
            for number, prompt in enumerate(prompts)
        ]
        with atomic_write(folder / "prompts.json") as file:
            file.write(json.dumps(index, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    def _gain_of_prompts(
        self, base: Mapping[str, NDArray[np.float64]], tuned: Mapping[str, NDArray[np.float64]], name: str
    ) -> NDArray[np.float64]:
        """Mean gain over the judges that a run was not trained on, in units of the base's standard deviation, (P,).

        If a run was trained on all judges, their mean is used.
        """
        gained = [(tuned[j] - base[j]) / deviation(base[j]) for j in self._judges_of(name)]
        return np.asarray(np.mean(gained, 0).reshape(-1, self.images_per_prompt).mean(1))

    def _judges_of(self, name: str) -> list[str]:
        """The judges that a run was not trained on; all of them if there is none."""
        return [judge for judge in self.judges if judge not in self.trained_on[name]] or self.judges

    def _pixels(self, files: Sequence[Path], prompts: Sequence[int]) -> NDArray[np.uint8]:
        """First images (P, 3, H, W) of the given prompts."""
        pixels = [load_image(files[number * self.images_per_prompt]) for number in prompts]
        return np.stack([(image * 255).round().byte().numpy() for image in pixels])


def picks(gains: NDArray[np.float64], most: int, seed: int) -> dict[str, list[int]]:
    """Select prompts to show by rule: `random`, `best` and `worst`, the most extreme first.

    Args:
        gains: (P,), gain of each prompt.
        most: Maximum number of each kind.
        seed: Seed of the random choice.
    """
    order = np.argsort(gains)
    some = np.sort(np.random.default_rng(seed).permutation(len(gains))[:most])
    return {"random": some.tolist(), "best": order[::-1][:most].tolist(), "worst": order[:most].tolist()}
