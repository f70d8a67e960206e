"""A scorer that is another program, and what happens when that program fails."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb.scorers import CommandScore
from t2ifb.utils.fingerprints import identity

PROGRAM = """
import base64, io, json, os, sys, time
from PIL import Image
print("loading", flush=True)
mode, memory = sys.argv[1], sys.argv[2]
starts = open(memory).read().count("start") if os.path.exists(memory) else 0
open(memory, "a").write("start\\n")
for line in sys.stdin:
    request = json.loads(line)
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in request["images"]]
    scores = [image.getpixel((0, 0))[0] / 255 for image in images]
    if mode == "die" or (mode == "die once" and starts == 0):
        print("CUDA out of memory", file=sys.stderr, flush=True)
        sys.exit(3)
    if mode == "sleep":
        time.sleep(60)
    if mode == "few":
        scores.pop()
    print(json.dumps({"scores": scores}), flush=True)
"""


def scorer(folder: Path, mode: str = "", **settings: Any) -> CommandScore:
    program = folder / "judge.py"
    program.write_text(PROGRAM)
    return CommandScore([sys.executable, str(program), mode, str(folder / "starts")], name="judge", **settings)


def starts(folder: Path) -> int:
    return (folder / "starts").read_text().count("start")


IMAGES = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
PROMPTS = ["a", "b", "c"]


def test_one_program_answers_all_requests_and_ends_with_its_scorer(tmp_path: Path) -> None:
    judge = scorer(tmp_path, batch_size=2)
    for _ in range(2):
        torch.testing.assert_close(judge(IMAGES, PROMPTS), torch.tensor([0.0, 0.2, 1.0]))
    assert starts(tmp_path) == 1
    twin = copy.deepcopy(judge)
    assert judge._running is not None and twin._running is None
    process = judge._running.process
    del judge
    assert process.wait(timeout=10) is not None


def test_a_program_that_stops_is_started_again(tmp_path: Path) -> None:
    torch.testing.assert_close(scorer(tmp_path, "die once")(IMAGES, PROMPTS), torch.tensor([0.0, 0.2, 1.0]))
    assert starts(tmp_path) == 2


def test_failures_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"judge.py.* stopped with exit status 3: CUDA out of memory, 2 times"):
        scorer(tmp_path, "die")(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="did not answer within 0.5 s$"):
        scorer(tmp_path, "sleep", start_limit=0.5, retries=0)(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="judge returned 2 scores for 3 images"):
        scorer(tmp_path, "few")(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="cannot start no-such-program --fast: No such file"):
        CommandScore("no-such-program --fast")(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="command is empty"):
        CommandScore("")


def test_a_changed_program_has_other_kept_scores(tmp_path: Path) -> None:
    def key() -> Any:
        from functools import partial

        from t2ifb.utils.files import sha256_file

        return identity(partial(CommandScore, command=[sys.executable, str(tmp_path / "judge.py")]), sha256_file, "s")

    (tmp_path / "judge.py").write_text("1")
    first = key()
    assert key() == first
    (tmp_path / "judge.py").write_text("2")
    assert key() != first
