"""`make gpu-check`: fine-tuning on a real GPU, with random weights at a published model's geometry.

Prints one line of JSON for each figure and PASS or FAIL at the end, and writes `gpu_check.json` after each figure, so
that nothing is lost if it is stopped. Stable Diffusion v1.5 (the default) needs one GPU, 12 GB of RAM, 6 GB of disk and
no network, and is made to take less than 5 minutes; `--domain sdxl` and `--domain sd35` need a GPU of 40 GB, 24 GB of
RAM and 10 GB of disk. `--domain shapes` checks the embedded domain, on any device: that tries the script.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from t2ifb.profiling.gpu_memory import GB
from t2ifb.utils.devices import device_facts
from tests.gpu_check.calls import bare_calls, gradient_error, throughput
from tests.gpu_check.runs import in_little_memory, memory, planned, repeated, run
from tests.gpu_check.world import KINDS, SMALL_STEPS, STEPS, Report, World, free


def check(world: World, report: Report) -> None:
    """Everything."""
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, **device_facts(world.device)}
    report.figure("machine", **facts)
    gradient_error(world, report)
    free()
    seconds = {}
    for batch in (1,) if world.small else (1, 8):
        seconds[batch] = bare_calls(world, report, batch)
        free()
    if world.cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = run(world, "one")
    update = statistics.median(clock.seconds[1:])
    times = {"seconds": round(update, 3), "bare_seconds": round(seconds[1], 3), "ratio": round(update / seconds[1], 3)}
    report.figure("an update", **times)
    report.figure("loss scale after each update", powers=[float(np.log2(scale)) for scale in clock.scales])
    plan = planned(world)
    report.figure("plan", peak_gb=round(plan.peak / GB, 2), pool_gb=round(plan.pool / GB, 2))
    if world.cuda:
        memory(report, clock, plan)
    repeated(world, report)
    if world.cuda:
        in_little_memory(world, report, plan)
    throughput(world, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; gives 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--domain", choices=KINDS, default="sd15", help="whose model; shapes runs on any device")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the figures go")
    given = parser.parse_args(arguments)
    small = given.domain == "shapes"
    if not small and not given.device.startswith("cuda"):
        parser.error("a GPU is needed, and none is found; --domain shapes tries the script on any device")
    report, start = Report(given.output), time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    try:
        check(World(given.domain, torch.device(given.device), folder, SMALL_STEPS if small else STEPS), report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.figure("all of it", seconds=round(time.perf_counter() - start, 1))
    print("PASS" if not report.failed else f"FAIL: {'; '.join(report.failed)}", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
