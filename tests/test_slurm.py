"""`docs/slurm.sh`, with commands of SLURM's names in the place of SLURM."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import CHECKOUT


def submit(folder: Path, srun: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder in which `srun` is what is given and `scontrol` says what it was asked."""
    for name, text in (("srun", srun), ("scontrol", 'echo "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "4"}
    return subprocess.run(
        [CHECKOUT / "docs" / "slurm.sh", *arguments],
        cwd=folder,
        env={**os.environ, **slurm, "PATH": path, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )


def test_what_it_calls_composes_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def config(*arguments: str) -> dict[str, object]:
        done = submit(tmp_path, 'exec "$@" --cfg job', *arguments)
        assert done.returncode == 0, done.stderr
        return dict(yaml.safe_load(done.stdout))

    first = config("optimizer.lr=3e-5")
    assert (first["resume"], first["optimizer"]["lr"], first["trainer"]["num_nodes"]) == (None, 3e-5, 2)  # type: ignore[index]
    run = Path("outputs/sd15/refl/two_nodes")
    (tmp_path / run / "checkpoints").mkdir(parents=True)
    (tmp_path / run / "checkpoints" / "last.ckpt").touch()
    assert config()["resume"] == str(run)


def test_it_queues_itself_again_only_when_it_was_told_to_stop(tmp_path: Path) -> None:
    assert submit(tmp_path, "exit 143").stdout == "requeue 7\n"
    failed = submit(tmp_path, "exit 1")
    assert failed.returncode == 1 and failed.stdout == ""
