"""Training loop of all `shapes` models: seeded by (seed, step), resumable, with a progress bar."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from t2ifb.shapes.grammar import Scene, scenes
from t2ifb.shapes.renderer import SIZE, Placed, layout, paint
from t2ifb.utils.devices import fast_cpu_dtype


def fast_autocast() -> torch.autocast:
    """Mixed precision where bf16 is faster on this CPU; float32 elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_cpu_dtype() == torch.bfloat16)


def fit(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    folder: Path,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    ema_decay: float | None = None,
    save_every: int = 100,
) -> nn.Module:
    """Minimise `loss_at(step)` with AdamW, warm-up and a cosine to zero.

    `loss_at` must derive all randomness from its argument. A run that is killed and restarted with the same folder then
    ends with the same weights.

    Args:
        name: Label of the progress bar, and stem of the state file.
        model: Trained in place.
        loss_at: Loss as a function of the step 0, 1, ...
        folder: Folder for the training state.
        steps: Number of steps.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of AdamW.
        ema_decay: Decay of an exponential moving average of the weights; no average by default.
        save_every: Steps between two saves.

    Returns:
        The averaged model if `ema_decay` is given, otherwise the model.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    warmup = min(200, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay else None
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule} | (
        {"average": average} if average else {}
    )
    state_file = folder / f"{name}.pt"
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    running: float | None = None
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("loss {task.fields[loss]}")) as bar:
        task = bar.add_task(name, total=steps, completed=start, loss="-")
        for step in range(start, steps):
            loss = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if average:
                average.update_parameters(model)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            bar.update(task, advance=1, loss=f"{running:.4f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                folder.mkdir(parents=True, exist_ok=True)
                temporary = state_file.with_suffix(".tmp")
                torch.save({"step": step + 1} | {key: part.state_dict() for key, part in parts.items()}, temporary)
                os.replace(temporary, state_file)
                if not bar.console.is_terminal:  # a log file shows no bar
                    print(f"{name} {step + 1}/{steps} loss {running:.4f}", flush=True)
    return average.module if average else model


def averaged(name: str, model: nn.Module, folder: Path) -> nn.Module:
    """The model with the averaged weights that `fit` saved last.

    Args:
        name: As in `fit`.
        model: A model of the same architecture.
        folder: As in `fit`.

    Raises:
        ValueError: Nothing was saved.
    """
    state_file = folder / f"{name}.pt"
    if not state_file.exists():
        raise ValueError(f"{state_file} does not exist; train {name} first")
    average = AveragedModel(model)
    average.load_state_dict(torch.load(state_file, weights_only=True)["average"])
    found: nn.Module = average.module
    return found


def generator(*key: int) -> torch.Generator:
    """A generator seeded by the key alone."""
    mixed = 0
    for part in key:
        mixed = (mixed * 1_000_003 + part) % (1 << 63)
    return torch.Generator().manual_seed(mixed)


class Renders(NamedTuple):
    """Scenes, the positions of their objects, and their pictures (N, 3, 64, 64) as uint8."""

    scenes: list[Scene]
    layouts: list[list[Placed]]
    images: Tensor


def rendered(split: str, count: int, seed: int) -> Renders:
    """Draw scenes of a split and render each several times with new layouts."""
    distinct = min(count, 2000)
    drawn = [scene for round_ in range(math.ceil(count / distinct)) for scene in scenes(split, distinct, seed + round_)]
    images, layouts = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8), []
    rng = np.random.default_rng(seed)
    for index, scene in enumerate(track(drawn[:count], description=f"rendering {split} scenes")):
        layouts.append(layout(scene, rng))
        picture = paint(layouts[-1], scene.background)
        images[index] = torch.from_numpy((picture * 255).round().astype("uint8")).permute(2, 0, 1)
    return Renders(drawn[:count], layouts, images)
