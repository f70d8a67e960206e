"""An interrupted build of the embedded world's images."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

BUILD = """
import signal
import sys
from pathlib import Path
from t2ifb.shapes.samples import chunks, make_images
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs that a shell starts in the background
    print("ready", flush=True)
    make_images(list(chunks("train", 150, (4, 9), seed=0)), Path(sys.argv[1]))
"""


def alive(group: int) -> bool:
    """Whether a process of a group runs; one that has ended and waits to be noticed does not."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process groups are tried on Linux")
@pytest.mark.parametrize("seconds", [1, 12], ids=["workers starting", "workers busy"])
def test_ctrl_c_ends_the_workers_and_saved_images_are_kept(tmp_path: Path, seconds: float) -> None:
    (tmp_path / "build.py").write_text(BUILD)
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "build.py", str(tmp_path)]
    with (tmp_path / "output").open("w+") as output:
        build = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=output, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert build.stdout is not None and build.stdout.readline() == "ready\n"
        time.sleep(seconds)
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does
        began = time.monotonic()
        assert build.wait(60) != 0
        assert time.monotonic() - began < 20  # a chunk takes longer, and three are to be made
        while alive(build.pid) and time.monotonic() - began < 20:
            time.sleep(0.1)
        assert not alive(build.pid)
        output.seek(0)
        said = output.read()
    assert said.count("Traceback") <= 1  # none of a worker
    assert "leaked" not in said
