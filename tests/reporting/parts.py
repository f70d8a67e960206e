"""Made-up run folders, as the trainers write them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

SCORERS = ("reward", "clip_score", "gold")
PROMPTS = ("a red circle", "a blue square above a green star", "two yellow stars")
EVIL = "</script><script>window.broken = 1</script><!-- <img src=x onerror='window.broken = 2'> & \"quotes\""


def write_tuning_run(
    folder: Path,
    *,
    beta: float = 0.1,
    lr: float = 0.001,
    seed: int = 0,
    steps: Sequence[int] = (0, 10, 20, 30),
    prompts: Sequence[str] = PROMPTS,
    size: int = 16,
    finished: bool = True,
    noise: bool = False,
    base: int = 0,
) -> Path:
    """A fine-tuning run whose reward rises by lr, and whose judges fall after the second validation.

    `base` is the seed of the base model's images, `seed` that of the others.
    """
    (folder / "samples").mkdir(parents=True)
    config = {
        "domain": "shapes",
        "seed": seed,
        "data_folder": "${data_folder:}",
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": lr},
        "algorithm": {
            "_target_": "t2ifb.finetuning.run.FineTuner",
            "optimizer": "${optimizer}",
            "alpha": 1.0,
            "beta": beta,
            "algorithm": {"_target_": "t2ifb.finetuning.refl.ReFL", "window": [2, 5]},
        },
    }
    write_config(folder, config)
    rows: list[dict[str, Any]] = []
    for n, step in enumerate(steps):
        row = {"step": step, "wall_seconds": 6.0 * n, "val/reward": 100 * lr * n, "val/clip_score": 0.6 + 0.01 * n}
        row |= {"val/gold": 0.7 - 0.01 * beta * n, "val/kl": 10.0 * n * lr / 0.001, "val/diversity": 0.1}
        row["val/kl_without_last_two"] = row["val/kl"] / 4
        rows += [row | {"val/judges": (0.0, 0.2, 0.1, -0.1)[n % 4] + beta * (n > 0)}]
        if step:
            rows.append({"step": step + 1, "wall_seconds": 6.0 * n + 1, "train/loss": 1.0 / n, "train/kl": 10.0 * n})
        write_samples(folder / "samples", step, prompts, size, seed + 1000 * n if n else base, noise)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(folder / "metrics.csv", [columns, *([row.get(key, "") for key in columns] for row in rows)])
    gains = [gain("reward", 0.1, trained_on=True), gain("clip_score", -0.01), gain("gold", 0.02)]
    if finished:
        sentence = (
            "Kept step 10: reward +0.100, judges +0.200, gold -0.001; KL 10.00 nats, 2.50 without the last two steps."
        )
        summary = {"sentence": sentence, "best_step": steps[1] if len(steps) > 1 else 0, "seed": seed}
        (folder / "summary.json").write_text(json.dumps(summary | {"git_commit": "ab" * 20}))
        for name in ("kept", "last"):
            (folder / f"table_{name}.json").write_text(json.dumps(gains))
    return folder


def write_guidance(folder: Path, *more: dict[str, Any]) -> None:
    """Scores over guidance scales in a run's folder; the base model gains a tenth of the scale, the tuned one 0.1."""
    change = {"mean": 0.1, "low": 0.0, "high": None}
    rows = [
        {"name": name, "scale": scale, "base": 0.7, "tuned": 0.8, "trained_on": False}
        | {"difference": change, "base_gain": change | {"mean": scale / 10}, "tuned_gain": change}
        for name in ("clip_score", "gold")
        for scale in (1.0, 4.0)
    ]
    (folder / "guidance_scales.json").write_text(json.dumps([*rows, *more]))


def write_reward_run(folder: Path, *, lr: float = 1e-5, seed: int = 0) -> Path:
    """A reward run."""
    folder.mkdir(parents=True)
    algorithm = {"_target_": "t2ifb.reward_learning.run.RewardTrainer", "epochs": 2}
    write_config(folder, {"seed": seed, "optimizer": {"lr": lr}, "algorithm": algorithm})
    lines = [["step", "wall_seconds", "train/loss", "val/accuracy", "val/loss"]]
    lines += [[str(n), str(n / 10), str(1 / n), str(0.5 + n / 100), "0.6"] for n in range(1, 11)]
    write_csv(folder / "metrics.csv", lines)
    (folder / "table_test.json").write_text(json.dumps([row("CLIP Score", 0.67), row("this model", 0.73)]))
    (folder / "summary.json").write_text(json.dumps({"test/accuracy": 0.73, "best_step": 8, "seed": seed}))
    return folder


def write_evaluations(folder: Path) -> Path:
    """A Table 1 and a figure 8 below a folder."""
    for name in ("table1", "figure8"):
        (folder / name).mkdir(parents=True)
        target = {"table1": "ScorerBenchmark", "figure8": "ModelComparison"}[name]
        write_config(folder / name, {"evaluation": {"_target_": f"t2ifb.evaluation.{name}.{target}"}, "seed": 0})
    (folder / "table1" / "table1.json").write_text(json.dumps([row("CLIP Score", 0.67), row(EVIL, None)]))
    (folder / "table1" / "summary.json").write_text(json.dumps({"split": "test", "table": {"CLIP Score": 0.67}}))
    models = {name: {g["name"]: g for g in (gain("gold", 0.1), gain("reward", 0.2, True))} for name in ("A", "B")}
    (folder / "figure8" / "summary.json").write_text(json.dumps({"figure8": models}))
    return folder


def gain(name: str, difference: float, trained_on: bool = False) -> dict[str, Any]:
    found = {"mean": difference, "low": difference - 0.05, "high": difference + 0.05}
    wins = {"mean": 0.6, "low": 0.5, "high": 0.7}
    return {"name": name, "base": 0.5, "tuned": 0.5 + difference, "difference": found, "win_rate": wins} | {
        "trained_on": trained_on
    }


def row(name: str, accuracy: float | None) -> dict[str, Any]:
    found = None if accuracy is None else {"mean": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02}
    empty = dict.fromkeys(("ties", "comparisons", "against", "tau", "images_per_second", "published"))
    return {"name": name, "accuracy": found, "by_prompt": found} | empty


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_samples(folder: Path, step: int, prompts: Sequence[str], size: int, seed: int, noise: bool = False) -> None:
    """Two images of each prompt are scored, the first one is shown."""
    lines = [["prompt", *SCORERS, "kl", "kl_without_last_two"]]
    for n, prompt in enumerate(prompts):
        lines += [[prompt, str(0.1 * n + copy), "0.6", "0.7", str(step), str(step / 4)] for copy in (0, 1)]
    write_csv(folder / f"step_{step:06d}.csv", lines)
    random = np.random.default_rng(seed)
    tiles = [random.integers(0, 256, (size, size, 3) if noise else (1, 1, 3), np.uint8) for _ in prompts]
    strip = np.concatenate([np.broadcast_to(tile, (size, size, 3)) for tile in tiles], axis=1)
    Image.fromarray(strip).save(folder / f"step_{step:06d}_strip.png", compress_level=1)  # for speed


def write_csv(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
