"""A scorer behind a real HTTP server: in a table, as a reward, and when the server fails."""

import csv
import json
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from t2ifb.evaluation.scorer_benchmark import ScorerBenchmark
from t2ifb.finetuning.grpo import GRPO
from t2ifb.scorers import HTTPScore
from t2ifb.training.reward_checks import check_differentiable
from tests.conftest import Command
from tests.data.parts import RANKS, FolderDataset, make_split
from tests.finetuning.method_parts import BATCH, gradient, make_module
from tests.scorers.parts import requested


class Judge(BaseHTTPRequestHandler):
    """Scores by redness; the address says how it fails first."""

    def do_POST(self) -> None:  # noqa: N802  # the library's name
        server: Any = self.server
        server.requests.append(dict(self.headers))
        images, prompts = requested(self.rfile.read(int(self.headers["Content-Length"])))
        scores = (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2)).tolist()
        state, answer = 200, json.dumps({"scores": scores})
        if self.path == "/busy" and len(server.requests) < 3:
            state, answer = 503, "busy"
        elif self.path == "/slow":
            time.sleep(0.5)
        elif self.path == "/broken":
            state, answer = 500, "Traceback: no such model"
        elif self.path == "/nan":
            answer = json.dumps({"scores": [float("nan")] * len(prompts)})
        elif self.path == "/long":
            answer = " " * 2**21
        self.send_response(state)
        self.end_headers()
        if self.path == "/drip":
            for _ in range(20):
                self.wfile.write(b" ")
                time.sleep(0.05)
        self.wfile.write(answer.encode())

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.requests = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def scorer(server: ThreadingHTTPServer, path: str = "/score", **settings: Any) -> HTTPScore:
    return HTTPScore(f"http://127.0.0.1:{server.server_port}{path}", **({"retry_seconds": 0.01} | settings))


def red(amount: float) -> torch.Tensor:
    return torch.tensor([amount, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def test_scores_come_back_in_order(server: Any) -> None:
    images = torch.cat([red(0.2), red(1.0), red(0.6)])
    scores = scorer(server, batch_size=2)(images, ["a", "b", "c"])
    torch.testing.assert_close(scores, torch.tensor([0.2, 1.0, 0.6]), atol=1 / 255, rtol=0)
    assert len(server.requests) == 2


def test_a_busy_server_is_asked_again(server: Any) -> None:
    assert scorer(server, "/busy", retries=2)(red(1.0), ["a"]).tolist() == [1.0]
    server.requests.clear()
    with pytest.raises(ValueError, match=r"/busy answered with state 503, 2 times"):
        scorer(server, "/busy", retries=1)(red(1.0), ["a"])


def test_failures_are_named(server: Any) -> None:
    with pytest.raises(ValueError, match="answered with state 500: Traceback: no such model$"):
        scorer(server, "/broken")(red(1.0), ["a"])
    with pytest.raises(ValueError, match="judge returned nan for image 0 of 1"):
        scorer(server, "/nan", name="judge")(red(1.0), ["a"])
    assert len(server.requests) == 2  # neither was asked again
    with pytest.raises(ValueError, match=r"/slow did not answer within 0.1 s$"):
        scorer(server, "/slow", time_limit=0.1, retries=0)(red(1.0), ["a"])
    with pytest.raises(ValueError, match=r"/drip did not answer within 0.2 s$"):
        scorer(server, "/drip", time_limit=0.2, retries=0)(red(1.0), ["a"])
    with pytest.raises(ValueError, match="/long answered with more than 1048576 bytes"):
        scorer(server, "/long")(red(1.0), ["a"])
    with pytest.raises(ValueError, match=r"http://127.0.0.1:1/ cannot be reached: .*, 2 times"):
        HTTPScore("http://127.0.0.1:1/", retries=1, retry_seconds=0.0)(red(1.0), ["a"])


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://[::1", "http://host:port/", "ftp://host/", None])
def test_a_wrong_address_is_named(url: Any) -> None:
    with pytest.raises(ValueError, match="expected an address such as http://localhost:8000/score"):
        HTTPScore(url)


def test_a_token_comes_from_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = scorer(server, token_variable="JUDGE_TOKEN")
    with pytest.raises(ValueError, match="the environment variable JUDGE_TOKEN with a token is not set"):
        judge(red(1.0), ["a"])
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    judge(red(1.0), ["a"])
    assert server.requests[-1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("JUDGE_TOKEN", "secret\n")  # as $(cat file) may leave it
    judge(red(1.0), ["a"])
    assert server.requests[-1]["Authorization"] == "Bearer secret"
    for token in ("sec\nret", "sécret"):
        monkeypatch.setenv("JUDGE_TOKEN", token)
        with pytest.raises(ValueError, match=r"the token in JUDGE_TOKEN has characters that cannot be sent$") as raised:
            judge(red(1.0), ["a"])
        assert "ret" not in str(raised.value)


def test_a_proxy_receives_nothing(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert scorer(server, retries=0)(red(1.0), ["a"]).tolist() == [1.0]


def test_it_is_a_row_of_table_1_and_its_scores_are_kept(server: Any, tmp_path: Path) -> None:
    dataset = FolderDataset({"test": make_split(tmp_path / "images", "test", RANKS)})
    part = partial(HTTPScore, url=f"http://127.0.0.1:{server.server_port}/score")
    table = ScorerBenchmark(dataset, {"redness": part}, cache_folder=tmp_path / "scores", device="cpu", published={})
    first = table.run(tmp_path)["table"]
    assert 0 <= first["redness"] <= 1
    asked = len(server.requests)
    assert table.run(tmp_path)["table"] == first
    patient = {"redness": partial(part, time_limit=7.0, batch_size=3, name="red")}
    again = ScorerBenchmark(dataset, patient, cache_folder=tmp_path / "scores", device="cpu", published={})
    assert again.run(tmp_path)["table"] == first
    assert len(server.requests) == asked


def test_it_rewards_an_algorithm_without_gradients_but_no_other(server: Any) -> None:
    module = make_module(GRPO(group_size=2, window=[0, 1]))
    module.policy.reward = scorer(server, batch_size=4)
    module.training_step(BATCH, 0)
    assert gradient(module).isfinite().all() and gradient(module).any()
    assert len(server.requests) == 1
    with pytest.raises(ValueError, match="has no gradient with respect to the images"):
        check_differentiable(module.policy.reward)


@pytest.mark.slow
def test_it_is_the_reward_of_a_whole_grpo_run(server: Any, run_here: Command, tmp_path: Path) -> None:
    """As the guide Scorers types it: each score of the run is the server's of that image, and adapters come out."""
    url = f"http://127.0.0.1:{server.server_port}/score"
    done = run_here(
        "t2ifb.train", "+experiment=grpo", "scorer@reward=http", f"reward.url={url}", "reward.name=redness",
        "algorithm.algorithm.group_size=2", "algorithm.algorithm.window=[0,1]",
        "algorithm.algorithm.steps_per_sample=1", "rollout.num_inference_steps=3", "sampling.num_inference_steps=3",
        "algorithm.batch_size=2", "algorithm.epochs=1", "algorithm.standardise=false", "algorithm.images_per_prompt=1",
        "algorithm.validation_prompts=2", "algorithm.guidance_scales=[]", "algorithm.best_of=1",
        "prompts.train.count=4", "prompts.validation.count=2", "prompts.test.count=2", "logger=none",
        "+scorer@judges.other=http", f"judges.other.url={url}?", "judges.other.name=other judge",
        "trainer.accelerator=cpu", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert len(server.requests) >= 2 + 2  # both updates, and the images before and after them
    with (run / "samples" / "step_000002.csv").open() as file:
        scores = [float(row["reward"]) for row in csv.DictReader(file)]
    strip = np.asarray(Image.open(run / "samples" / "step_000002_strip.png").convert("RGB")) / 255
    images = [strip[:, :64], strip[:, 64:]]
    assert scores == pytest.approx([(image[..., 0] - image[..., 1:].mean(-1)).mean() for image in images], abs=1e-4)
    adapters = load_file(run / "export" / "pytorch_lora_weights.safetensors")
    second = [weight for name, weight in adapters.items() if "lora_B" in name or "lora.up" in name]
    assert second and all(weight.any() for weight in second)  # they begin as zeros
    assert summary["test_kept"]["reward"]["trained_on"] and not summary["test_kept"]["other"]["trained_on"]
    record = json.loads((run / "reward.json").read_text())["reward"]
    assert (record["_target_"], record["url"]) == ("t2ifb.scorers.HTTPScore", url)
    assert "| reward | redness |" in " ".join((run / "export" / "README.md").read_text().split())
