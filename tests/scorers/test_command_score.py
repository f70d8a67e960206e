"""A scorer that is another program, and what happens when that program fails."""

import copy
import queue
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb.evaluation.scorer_benchmark import ScorerBenchmark
from t2ifb.scorers import CommandScore
from t2ifb.utils.files import sha256_file
from t2ifb.utils.fingerprints import identity
from tests.data.parts import RANKS, FolderDataset, make_split

PROGRAM = """
import base64, io, json, os, subprocess, sys, time
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
    if mode == "log":
        print(json.dumps({"level": "info"}), flush=True)
    if mode == "close":
        os.close(1)
        time.sleep(60)
    if mode == "child":
        subprocess.Popen(["sleep", "600"])
        sys.exit(3)
    answer = {"scores": scores}
    if mode == "stale":
        answer["id"] = request["id"] - 1
    if mode == "few":
        scores.pop()
    os.write(1, bytes([255, 10]))
    print("\\n".join([json.dumps(answer)] * (2 if mode == "twice" else 1)), flush=True)
"""


def scorer(folder: Path, mode: str = "", **settings: Any) -> CommandScore:
    program = folder / "judge.py"
    program.write_text(PROGRAM)
    return CommandScore([sys.executable, str(program), mode, str(folder / "starts")], name="judge", **settings)


def starts(folder: Path) -> int:
    return (folder / "starts").read_text().count("start")


IMAGES = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
PROMPTS = ["a", "b", "c"]


def test_it_is_a_row_of_table_1_and_its_scores_are_kept(tmp_path: Path) -> None:
    dataset = FolderDataset({"test": make_split(tmp_path / "images", "test", RANKS)})
    program = tmp_path / "judge.py"  # without a changing file among its arguments, which would be another scorer
    program.write_text(PROGRAM.replace("sys.argv[1], sys.argv[2]", "'', __file__ + '.starts'"))
    part = partial(CommandScore, command=[sys.executable, str(program)])
    table = ScorerBenchmark(dataset, {"judge": part}, cache_folder=tmp_path / "scores", device="cpu", published={})
    first = table.run(tmp_path)["table"]
    assert 0 <= first["judge"] <= 1
    assert table.run(tmp_path)["table"] == first
    assert (tmp_path / "judge.py.starts").read_text().count("start") == 1  # the second time nothing was asked


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


def test_a_late_or_wrong_answer_is_never_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = scorer(tmp_path, "twice")
    judge(IMAGES, PROMPTS)
    assert judge._running is not None
    deadline = time.monotonic() + 60
    while judge._running.lines.empty() and time.monotonic() < deadline:  # another thread reads the second line
        time.sleep(0.01)
    with pytest.raises(ValueError, match=r"wrote '\{\"scores\": .*' before it was asked; expected one line"):
        judge(IMAGES.flip(0), PROMPTS)
    judge = scorer(tmp_path, "log")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"answered '\{\"level\": \"info\"\}'; expected"):
            judge(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="judge answered request 0; expected the answer to request 1"):
        scorer(tmp_path, "stale")(IMAGES, PROMPTS)
    judge = scorer(tmp_path)
    judge(IMAGES, PROMPTS)
    assert judge._running is not None
    first = judge._running

    def interrupted(block: bool = True, timeout: float | None = None) -> None:
        raise KeyboardInterrupt if block else queue.Empty

    monkeypatch.setattr(first.lines, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge(IMAGES, PROMPTS)
    assert first.process.poll() is not None
    assert judge(IMAGES.flip(0), PROMPTS).tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_no_program_exceeds_its_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did not answer within 0.3 s"):  # more than a pipe holds, and nobody reads
        CommandScore("sleep 60", start_limit=0.3, retries=0)(torch.rand(8, 3, 64, 64), ["x"] * 8)
    with pytest.raises(ValueError, match="closed its output"):
        scorer(tmp_path, "close", retries=0)(IMAGES, PROMPTS)
    with pytest.raises(ValueError, match="stopped with exit status 3"):
        scorer(tmp_path, "child", start_limit=60, retries=0)(IMAGES, PROMPTS)


@pytest.mark.parametrize("form", ["{0} {1}", "{0} --script={1}"])
def test_a_changed_script_of_a_command_as_text_has_other_kept_scores(tmp_path: Path, form: str) -> None:
    script = tmp_path / "judge.py"
    part = partial(CommandScore, command=form.format("python", script))
    keys = []
    for content in ("1", "2", "1"):
        script.write_text(content)
        keys.append(identity(part, sha256_file, "s"))
    assert keys[0] == keys[2] != keys[1]
    assert identity(partial(part, version="2"), sha256_file, "s") != keys[2]


def test_a_changed_program_has_other_kept_scores(tmp_path: Path) -> None:
    def key() -> Any:
        return identity(partial(CommandScore, command=[sys.executable, str(tmp_path / "judge.py")]), sha256_file, "s")

    (tmp_path / "judge.py").write_text("1")
    first = key()
    assert key() == first
    (tmp_path / "judge.py").write_text("2")
    assert key() != first
