"""`python -m t2ifb.generate`: images of the base model and of a tuned one, side by side from the same noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components

if TYPE_CHECKING:
    from torch import Tensor

SHEET = 24
"""Prompts in the picture."""


def generate(parts: Components) -> None:
    """Draw every image twice, by the base model and with the adapters if there are some; write files and one sheet.

    With `merge` also write the pipeline with the adapters merged; without prompts only that.
    """
    from t2ifb.evaluation.tuning_plots import progress_sheet

    if parts.value("merge"):
        _merge(parts)
        if not any(parts.value(key) for key in ("prompt", "file", "split")):
            return
    prompts, copies = _prompts(parts), int(parts.value("images_per_prompt"))
    drawn = _draw(parts, [prompt for prompt in prompts for _ in range(copies)])
    folder = parts.run_folder
    index = [
        {"prompt": prompt, "images": _write(folder, number, copies, drawn)} for number, prompt in enumerate(prompts)
    ]
    (folder / "prompts.json").write_text(json.dumps(index, indent=2, ensure_ascii=False), encoding="utf-8")
    shown = prompts[:SHEET]
    columns = {
        name if copies == 1 else f"{name} {copy + 1}": images[copy : len(shown) * copies : copies]
        for copy in range(copies)
        for name, images in drawn.items()
    }
    progress_sheet(shown, columns, folder / "sheet.png")
    print(f"{sum(map(len, drawn.values()))} images, prompts.json and sheet.png: {folder}")


def _merge(parts: Components) -> None:
    """Write the base model with the adapters of `lora` merged into its weights.

    Raises:
        ConfigError: There are no adapters, or the folder is not empty.
    """
    from t2ifb.diffusion.lora import exported_file
    from t2ifb.diffusion.lora_export import save_merged

    if not parts.value("lora"):
        raise ConfigError(["merge: there is nothing to merge; also give lora=<run folder>"])
    try:
        save_merged(parts.build("diffusion"), exported_file(parts.value("lora")), parts.value("merge"))
    except ValueError as error:
        raise ConfigError([f"merge: {error}"]) from error
    print(f"merged pipeline: {parts.value('merge')}")


def _prompts(parts: Components) -> list[str]:
    """Texts from the command line, a file, or a split of the domain's prompts.

    Raises:
        ConfigError: None or more than one of the three is given.
    """
    from t2ifb.data.prompts import PromptFile

    texts, file, split = parts.value("prompt"), parts.value("file"), parts.value("split")
    if sum(map(bool, (texts, file, split))) != 1:
        raise ConfigError(["what to draw: give prompt='[\"…\"]', or file=<text or JSON file>, or split=<name>"])
    if parts.value("images_per_prompt") < 1 or parts.value("most") < 1:
        raise ConfigError(["images_per_prompt and most must be at least 1"])
    if split and split not in ("train", "validation", "test"):
        raise ConfigError([f"split={split}: expected train, validation or test"])
    found: list[str] = texts or (
        PromptFile(file, parts.value("on_error")).prompts() if file else parts.build("prompts").of(split)
    )
    return found[: parts.value("most")]


def _draw(parts: Components, prompts: list[str]) -> "dict[str, Tensor]":
    """Images (N, 3, H, W) uint8 by model, `base` and, with adapters, `tuned`."""
    import torch
    from rich.progress import track

    from t2ifb.diffusion.lora import load_lora, without_adapters
    from t2ifb.diffusion.sampling import generate as draw
    from t2ifb.utils.devices import device_of

    model = replace(parts.build("diffusion"), device=str(device_of(parts.value("device")))).load()
    if cut := model.too_long(list(dict.fromkeys(prompts))):
        print(f"longer than the text encoder's context and cut: {cut} prompts")
    if parts.value("lora"):
        load_lora(model, parts.value("lora"))
    model.encode_ahead(prompts, model.device)
    sampler, size = parts.build("sampling"), parts.value("batch_size")
    keys = [(parts.value("seed"), number) for number in range(len(prompts))]

    def images(name: str) -> torch.Tensor:
        batches = draw(model, sampler, prompts, keys, size)
        return torch.cat(list(track(batches, f"drawing with the {name} model", total=-(-len(prompts) // size))))

    with without_adapters(model.denoiser):
        drawn = {"base": images("base")}
    return drawn | ({"tuned": images("tuned")} if parts.value("lora") else {})


def _write(folder: Path, number: int, copies: int, drawn: "dict[str, Tensor]") -> dict[str, list[str]]:
    """The files of one prompt, by model; names are numbers, independent of the prompt."""
    from PIL import Image

    names: dict[str, list[str]] = {}
    for model, images in drawn.items():
        for copy in range(copies):
            name = f"{number:04d}_{copy}_{model}.png"
            Image.fromarray(images[number * copies + copy].permute(1, 2, 0).numpy()).save(folder / name)
            names.setdefault(model, []).append(name)
    return names


main = command("generate", generate)

if __name__ == "__main__":
    main()
