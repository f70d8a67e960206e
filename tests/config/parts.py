"""Small real components, and a command that runs them, for the tests of the configuration."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t2ifb.config.command import command
from t2ifb.config.instantiate import Components
from t2ifb.config.sweeps import in_sweep, known_figures, resolve_job
from t2ifb.train import after_sweep
from t2ifb.training.run_folder import RunFolder


@dataclass
class Data:
    source: str | Path
    subset: Literal["small", "large"] = "small"
    limit: int | None = None


@dataclass
class Source:
    model: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale has to be positive, got {self.scale}")

    @classmethod
    def from_name(cls, model: str) -> "Source":
        return cls(model)


@dataclass
class Layers:
    width: int
    hidden: Sequence[int] = (2, 1)
    dropout: tuple[float, float] = (0.1, 0.2)


@dataclass
class Step:
    parameters: list[int]
    lr: float
    named: bool = False


@dataclass
class Loop:
    dataset: Data
    encoder: Source
    head: Callable[..., Layers]
    optimizer: Callable[..., Step]
    baselines: dict[str, Source]
    batch_size: int
    epochs: int = 1

    def run(self) -> dict[str, float]:
        return {"lr": self.optimizer([1]).lr, "width": float(self.head(3).width), "epochs": self.epochs}


def go(parts: Components) -> None:
    """Write what a run was built with into its folder; `fail.txt` in the working folder says how it fails.

    With `fail_seed.txt` only the run with that seed does.
    """
    if in_sweep():
        resolve_job(parts.run_folder, parts.written())
        if known_figures(parts.run_folder) is not None:
            return
    with RunFolder(parts.run_folder).held():
        work(parts)


def work(parts: Components) -> None:
    kind, _, text = Path("fail.txt").read_text().partition(":") if Path("fail.txt").exists() else ("", "", "")
    only = Path("fail_seed.txt").read_text() if Path("fail_seed.txt").exists() else str(parts.value("seed"))
    if kind and only == str(parts.value("seed")):
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"value": ValueError, "os": OSError, "bug": RuntimeError, "stop": KeyboardInterrupt}[kind](text)
    if parts.value("dataset")["source"] == "nowhere":
        Path("nowhere/data.json").read_text()
    figures = parts.build("algorithm").run()
    figures |= {"seed": parts.value("seed"), "resume": parts.value("resume")}
    (parts.run_folder / "figures.json").write_text(json.dumps(figures))
    if not Path("stay_unfinished").exists():
        (parts.run_folder / "summary.json").write_text("{}")


main = command("train", go, after_sweep)

if __name__ == "__main__":
    main()
