"""Adapters for the world's U-Net, by the commands that a user types: a reward model, Diffusion-DPO, and a verdict."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from t2ifb.utils.files import read_text, write_text

REWARD = ("+experiment=reward_mlp", "head=interaction")
TUNING = ("+experiment=dpo", "algorithm.epochs=0.4", "algorithm.validate_every=256", "optimizer.lr=7e-4")
"""64 pools, 1,024 updates and 570,000 network evaluations; the held-out scorers choose the best checkpoint."""
VERDICT = (
    "+experiment=figure8", "sampling.guidance_scale=4", "guidance_scales=[2.5,4,6]", "prompts.most=400",
    "evaluation.images_per_prompt=1", "evaluation.best_of=1",
)  # fmt: skip
"""On all test prompts; that of the run itself is on 64 of them."""


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
    run("train", reward, [*REWARD, *common])
    run("train", tuned, [*tuning, *common, f"reward.source={reward}"])
    return tuned


def judge(tuning: Path, extra: Sequence[str] = ()) -> Path:
    """Compare a tuning run with the base model over guidance scales, unless that is done; gives the folder.

    Raises:
        subprocess.CalledProcessError: The comparison failed.
    """
    folder = tuning.with_name(f"{tuning.name}_judged")
    run("evaluate", folder, [*VERDICT, f"run={tuning}", *extra])
    return folder


def run(command: str, folder: Path, arguments: Sequence[str]) -> None:
    """Start or resume a command, unless its folder is finished."""
    if (folder / "summary.json").exists():
        return
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    how = [f"resume={folder}"] if begun else [*arguments, f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, "-m", f"t2ifb.{command}", *how], check=True)


def install(tuning: Path, judged: Path, target: Path) -> None:
    """Copy a run's adapters into the package, with pictures of 64 colours and the verdict at the top of the card."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tuning / "export", target)
    for picture in target.glob("*.png"):
        Image.open(picture).quantize(64).save(picture, optimize=True)
    (verdict,) = json.loads(read_text(judged / "summary.json"))["guidance"].values()
    heading, _, rest = read_text(target / "README.md").partition("\n")
    table = read_text(judged / "guidance_scales.md").strip()
    text = f"{heading}\n\n{verdict['sentence']}\n\n{table}\n\nThe run's own verdict, on fewer prompts:{rest}"
    write_text(target / "README.md", text)
