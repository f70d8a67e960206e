"""A real SIGKILL of the server: every answer that the page has confirmed is on disk."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from t2ifb.annotation.answers import AnswerLog
from t2ifb.annotation.items import read_items
from tests.annotation.parts import write_generated


def start(folder: Path, port: int = 0, *arguments: str) -> tuple["subprocess.Popen[str]", str]:
    """A server, by default on a free port, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "t2ifb.annotate", f"source={folder}", f"port={port}", *arguments],
        stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[\d.:]+", line):
            return process, found[0]
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_no_confirmed_answer_is_lost(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "images", 30)
    confirmed = []
    for _ in range(3):
        process, address = start(folder)
        with httpx2.Client(base_url=address, trust_env=False, timeout=60) as client:
            state = client.get("/api/next?annotator=ada").json()
            assert state["done"] == len(confirmed)
            for _ in range(5):
                key = state["item"]["key"]
                answer = {"annotator": "ada", "item": key, "answer": "ranks", "ranks": [1, 2, 3, 4]}
                state = client.post("/api/answer", json=answer).json()
                confirmed.append(key)
        process.send_signal(signal.SIGKILL)
        process.wait()
    items = read_items(folder)
    log = AnswerLog(folder / "annotations", items)
    assert [answer.item for answer in log.answers] == confirmed
    log.close()
