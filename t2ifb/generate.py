"""`python -m t2ifb.generate`: images of the base model and of a tuned one, side by side from the same noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components
from t2ifb.config.reward_source import resolve_scorer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SHEET = 24
"""Prompts in the picture."""


@dataclass(frozen=True)
class Drawn:
    """Images of one model.

    Attributes:
        images: (N, 3, H, W) uint8, the kept images.
        scores: (N, n), scores of the n images that each kept one was chosen from; None without a scorer.
    """

    images: "Tensor"
    scores: "NDArray[np.float64] | None"

    def kept_scores(self) -> "NDArray[np.float64]":
        """Scores (N,) of the kept images."""
        from t2ifb.evaluation.selection import best_of

        assert self.scores is not None
        return self.scores[range(len(self.scores)), best_of(self.scores)]


def generate(parts: Components) -> None:
    """Draw every image twice, by the base model and with the adapters if there are some; write files and one sheet.

    With `merge` also write the pipeline with the adapters merged; without prompts only that.
    """
    from t2ifb.data.drawn import write_index
    from t2ifb.evaluation.tuning_plots import progress_sheet

    if parts.value("merge"):
        _merge(parts)
        if not any(parts.value(key) for key in ("prompt", "file", "split")):
            return
    copies = int(parts.value("images_per_prompt"))
    if copies < 1 or parts.value("most") < 1:
        raise ConfigError(["images_per_prompt and most must be at least 1"])
    prompts = wished_prompts(parts)
    if parts.value("split") and (most := parts.value("most")) < len(prompts):
        print(f"{most} of {len(prompts)} prompts of {parts.value('split')}; most={len(prompts)} draws all")
        prompts = prompts[:most]
    _check_choice(parts)
    drawn = _draw(parts, [prompt for prompt in prompts for _ in range(copies)])
    folder = parts.run_folder
    index = [
        {"prompt": prompt, "images": _write(folder, number, copies, drawn)} | _kept_scores(number, copies, drawn)
        for number, prompt in enumerate(prompts)
    ]
    write_index(folder, index)
    shown = prompts[:SHEET]
    columns = {
        name if copies == 1 else f"{name} {copy + 1}": each.images[copy : len(shown) * copies : copies]
        for copy in range(copies)
        for name, each in drawn.items()
    }
    progress_sheet(shown, columns, folder / "sheet.png")
    if parts.value("scorer"):
        _report_scores(parts, prompts, copies, drawn)
    print(f"{sum(len(each.images) for each in drawn.values())} images, prompts.json and sheet.png: {folder}")


def _check_choice(parts: Components) -> None:
    """Check `best_of` and `scorer`, and replace a scorer's `source: latest` by the newest reward run.

    Raises:
        ConfigError: `best_of` is below 1 or has no scorer, or there is no reward run.
    """
    best_of, scorer = parts.value("best_of"), parts.value("scorer")
    if best_of < 1:
        raise ConfigError([f"best_of={best_of} must be at least 1"])
    if best_of > 1 and not scorer:
        raise ConfigError([f"best_of={best_of} needs the scorer that chooses: add scorer=<option>, such as clip_score"])
    if scorer:
        resolve_scorer(parts, "scorer")


def _merge(parts: Components) -> None:
    """Write the base model with the adapters of `lora` merged into its weights.

    Raises:
        ConfigError: There are no adapters, or the folder is not empty.
    """
    from t2ifb.diffusion.lora import exported_file
    from t2ifb.diffusion.lora_export import save_merged

    if not parts.value("lora"):
        raise ConfigError(["merge: there is nothing to merge; also give lora=<run folder>"])
    source = parts.build("diffusion")
    try:
        save_merged(source, exported_file(parts.value("lora")), parts.value("merge"))
    except ValueError as error:
        raise ConfigError([f"merge: {error}"]) from error
    lacking = f" (without {', '.join(source.absent())})" if source.absent() else ""
    print(f"merged pipeline: {parts.value('merge')}{lacking}")


def wished_prompts(parts: Components) -> list[str]:
    """All texts from the command line, from a file, or of a split of the domain's prompts.

    Raises:
        ConfigError: None or more than one of the three is given.
    """
    from t2ifb.data.prompts import PromptFile

    texts, file, split = parts.value("prompt"), parts.value("file"), parts.value("split")
    if sum(map(bool, (texts, file, split))) != 1:
        raise ConfigError(["what to draw: give prompt='[\"…\"]', or file=<text or JSON file>, or split=<name>"])
    if split and split not in ("train", "validation", "test"):
        raise ConfigError([f"split={split}: expected train, validation or test"])
    if texts or file:
        return list(texts or PromptFile(file, parts.value("on_error")).prompts())
    found: list[str] = parts.build("prompts").of(split)
    return found


def _draw(parts: Components, prompts: list[str]) -> dict[str, Drawn]:
    """Images for N prompts by model, `base` and, with adapters, `tuned`. Each is the best of `best_of` by the scorer.

    Both models choose among images from the same noise.
    """
    from t2ifb.diffusion.lora import load_lora, without_adapters
    from t2ifb.diffusion.model import load_for_sampling
    from t2ifb.utils.devices import device_of

    device = device_of(parts.value("device"))
    model = load_for_sampling(parts.build("diffusion"), prompts, device)
    if cut := model.too_long(list(dict.fromkeys(prompts))):
        print(f"longer than the text encoder's context and cut: {cut} prompts")
    if parts.value("lora"):
        load_lora(model, parts.value("lora"))
    scorer = parts.build("scorer")
    if scorer is not None:
        scorer = scorer.to(device).eval()
    with without_adapters(model.denoiser):
        drawn = {"base": _best(parts, model, scorer, prompts, "base")}
    return drawn | ({"tuned": _best(parts, model, scorer, prompts, "tuned")} if parts.value("lora") else {})


def _best(parts: Components, model: Any, scorer: Any, prompts: list[str], name: str) -> Drawn:
    """One model's images. Few prompts are drawn at a time, so that only their images are in memory."""
    import numpy as np
    import torch
    from rich.progress import track

    from t2ifb.diffusion.sampling import generate as draw
    from t2ifb.evaluation.selection import best_of

    sampler, size, count = parts.build("sampling"), parts.value("batch_size"), int(parts.value("best_of"))
    together, seed = max(1, size // count), parts.value("seed")
    kept, scores = [], []
    for start in track(range(0, len(prompts), together), f"drawing with the {name} model"):
        some = [prompt for prompt in prompts[start : start + together] for _ in range(count)]
        keys = [(seed, start * count + number) for number in range(len(some))]
        batches = list(draw(model, sampler, some, keys, size))
        images = torch.cat(batches)
        if scorer is None:
            kept.append(images)
            continue
        with torch.inference_mode():
            pixels = [batch.to(model.device).float() / 255 for batch in batches]
            values = [scorer(each, some[n * size : (n + 1) * size]).cpu().double() for n, each in enumerate(pixels)]
        scores.append(torch.cat(values).numpy().reshape(-1, count))
        if wrong := int((~np.isfinite(scores[-1])).all(1).sum()):
            raise ConfigError([f"scorer: it gave no finite score for any image of {wrong} prompts; none can be chosen"])
        kept.append(images[best_of(scores[-1]) + count * np.arange(len(scores[-1]))])
    return Drawn(torch.cat(kept), np.concatenate(scores) if scores else None)


def _write(folder: Path, number: int, copies: int, drawn: dict[str, Drawn]) -> dict[str, list[str]]:
    """The files of one prompt, by model; names are numbers, independent of the prompt."""
    from t2ifb.data.drawn import file_name, write_image

    names: dict[str, list[str]] = {}
    for model, each in drawn.items():
        for copy in range(copies):
            name = file_name(number, copy, model)
            write_image(folder / name, each.images[number * copies + copy])
            names.setdefault(model, []).append(name)
    return names


def _kept_scores(number: int, copies: int, drawn: dict[str, Drawn]) -> dict[str, dict[str, list[float]]]:
    """`scores` of the kept images of one prompt by model; empty without a scorer."""
    rows = slice(number * copies, (number + 1) * copies)
    found = {model: each.kept_scores()[rows].tolist() for model, each in drawn.items() if each.scores is not None}
    return {"scores": found} if found else {}


def _report_scores(parts: Components, prompts: list[str], copies: int, drawn: dict[str, Drawn]) -> None:
    """Print mean scores by model, and write the scores of all images that were drawn to `scores.csv`."""
    from pandas import DataFrame

    from t2ifb.data.drawn import file_name
    from t2ifb.evaluation.selection import best_of
    from t2ifb.evaluation.tables import screen, show
    from t2ifb.utils.files import write_text

    count, cost = int(parts.value("best_of")), parts.build("sampling").network_evaluations
    rows, lines = [], []
    for model, each in drawn.items():
        assert each.scores is not None
        for row, (scores, best) in enumerate(zip(each.scores, best_of(each.scores), strict=True)):
            number, copy = divmod(row, copies)
            rows += [
                (prompts[number], model, file_name(number, copy, model), k, score, k == best)
                for k, score in enumerate(scores)
            ]
        lines.append([model, f"{each.scores.mean():.4f}", f"{each.kept_scores().mean():.4f}", str(count * cost)])
    fields = ["prompt", "model", "image", "drawn", "score", "kept"]
    write_text(parts.run_folder / "scores.csv", DataFrame(rows, columns=fields).to_csv(index=False))
    headings = ["model", f"mean of {count}" if count > 1 else "mean", "kept", "network evaluations per image"]
    show(screen(f"best of {count} by {parts.value('scorer')['_target_']}", headings, lines))


main = command("generate", generate)

if __name__ == "__main__":
    main()
