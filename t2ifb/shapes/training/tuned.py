"""Adapters for the world's U-Net, by the commands that a user types: a reward model, then Diffusion-DPO."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

COMMAND = (sys.executable, "-m", "t2ifb.train")
REWARD = ("+experiment=reward_mlp", "head=interaction")
TUNING = ("+experiment=dpo", "algorithm.epochs=0.125", "algorithm.validate_every=250")
"""1,000 updates, of which the held-out scorers choose the best checkpoint."""


def train(folder: Path, seed: int = 0, extra: Sequence[str] = (), tuning: Sequence[str] = TUNING) -> Path:
    """Train both stages. Finished ones are kept, an unfinished one is resumed.

    Args:
        folder: Folder of the two runs.
        seed: Random seed of both.
        extra: Further arguments of both.
        tuning: Arguments of the second stage.

    Returns:
        The tuning run's folder.

    Raises:
        subprocess.CalledProcessError: A run failed.
    """
    reward, tuned = folder / "reward", folder / "dpo"
    common = (f"seed={seed}", "logger=none", *extra)
    run(reward, [*REWARD, *common])
    run(tuned, [*tuning, *common, f"reward.source={reward}"])
    return tuned


def run(folder: Path, arguments: Sequence[str]) -> None:
    """Train or resume one run, unless it is finished."""
    if (folder / "summary.json").exists():
        return
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    how = [f"resume={folder}"] if begun else [*arguments, f"hydra.run.dir={folder}"]
    subprocess.run([*COMMAND, *how], check=True)


def install(tuning: Path, target: Path) -> None:
    """Copy a run's adapters and their card into the package, with pictures of 64 colours."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tuning / "export", target)
    for picture in target.glob("*.png"):
        Image.open(picture).quantize(64).save(picture, optimize=True)
