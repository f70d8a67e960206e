"""`python -m t2ifb.annotate`, from a folder of images to what people prefer."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2ifb.annotate import _address, _chosen, _listening, _some, _take_settings
from t2ifb.annotation.items import read_items
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import Components
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.prompts import ScenePrompts
from tests.annotation.parts import write_generated
from tests.conftest import Command
from tests.evaluation.tuned_run import write_tuned_run
from tests.finetuning.tuning_worlds import make_tuning, tune


def shapes_images(folder: Path, prompts: int = 3) -> Path:
    """Images of 64 x 64 pixels for prompts of the embedded domain: gray ones and noise."""
    folder.mkdir()
    index = []
    for number, scene in enumerate(scenes("train", prompts, seed=0)):
        for model, deviation in (("base", 80), ("tuned", 0)):
            pixels = np.random.default_rng(number).normal(128, deviation, (64, 64, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_{model}.png")
        images = {model: [f"{number}_{model}.png"] for model in ("base", "tuned")}
        index.append({"prompt": scene.prompt, "images": images})
    (folder / "prompts.json").write_text(json.dumps(index))
    return folder


def test_simulated_annotators_answer_and_the_results_are_printed(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images")
    arguments = (f"source={folder}", "simulate=true", "overlap=1", "mode=compare")
    done = run_here("t2ifb.annotate", *arguments)
    assert done.returncode == 0, done.stderr
    assert "6 answers of 2 simulated annotators" in done.stdout
    assert "answers of simulated 0: 3 ranked" in done.stdout
    assert "tuned preferred to base: " in done.stdout
    assert f"domain=shapes dataset=own_rankings dataset.source={folder / 'annotations'}" in done.stdout
    assert json.loads((folder / "annotations/results.json").read_text())["counts"]["simulated 1"] == {"ranks": 3}
    rankings = OwnRankings(folder / "annotations", shares={"train": 1.0}).rankings("train")
    assert len(rankings) == 3
    again = run_here("t2ifb.annotate", *arguments)
    assert "0 answers of 2 simulated annotators" in again.stdout  # nothing is left to answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mode=guess",), "mode=guess: expected rank or compare"),
        (("source=nowhere",), "nowhere does not exist"),
        (("split=test",), "source: give a folder of images, or what to draw .*; both are given"),
        (("source=null",), "source: give a folder of images, or what to draw .*; neither is given"),
        (("source=null", "split=test", "output=x", "most=0"), "order=random most=0: expected random or disagreement"),
        (("source=null", "split=test"), "output: give a folder for the images and the answers"),
        (("source=null", "split=test", "output=x", "images_per_prompt=1"), "images_per_prompt=1: expected at least 2"),
        (("source=null", "run=nowhere", "output=x"), "nowhere has no pytorch_lora_weights"),
        (("order=disagreement",), "order=disagreement: give .scorer@reward=ensemble"),
        (("simulate=true", "annotators=0"), "annotators=0: expected at least 1"),
        (("host=192.0.2.1",), "host=192.0.2.1 port=8765: .*; give another port"),
    ],
)
def test_wrong_arguments_are_one_message(
    run_here: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_generated(tmp_path / "images", 1)
    done = run_here("t2ifb.annotate", "source=images", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(message, done.stderr)


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("fe80::2", "http://[fe80::2]:80")],
)
def test_the_printed_address_can_be_opened(host: str, address: str) -> None:
    assert _address(host, 80) == address


def test_the_address_accepts_connections_before_the_server_runs() -> None:
    with _listening("127.0.0.1", 0) as (_, port), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        assert client.getpeername()[1] == port


def test_rankings_of_a_round_continue_the_rounds(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "rounds" / ".hydra").mkdir(parents=True)
    (tmp_path / "rounds" / "round_01").mkdir()
    folder = shapes_images(tmp_path / "rounds" / "round_01" / "rankings")
    done = run_here("t2ifb.annotate", f"source={folder}", "simulate=true", "annotators=1")
    assert done.returncode == 0, done.stderr
    assert f"continue the rounds: python -m t2ifb.train resume={tmp_path / 'rounds'}" in done.stdout
    assert "train a reward on them" not in done.stdout


def write_run(folder: Path, steps: int) -> Path:
    """A fine-tuning run with the settings that it was made with."""
    record = write_tuned_run(folder) / ".hydra" / "config.yaml"
    record.parent.mkdir()
    sampling = {"_target_": "t2ifb.diffusion.sampling.Sampler", "num_inference_steps": steps, "guidance_scale": 2.0}
    record.write_text(json.dumps({"sampling": sampling}))
    return folder


def test_images_of_a_run_are_drawn_once_with_the_settings_of_the_run(run_here: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "outputs/shapes/refl/one", 2)
    arguments = ("most=3", "mode=compare", "simulate=true", "annotators=1", "prompts.test.count=9", "device=cpu")
    done = run_here("t2ifb.annotate", f"run={run}", *arguments)
    assert done.returncode == 0, done.stderr
    assert "sampling from one" in done.stdout and "3 answers of 1 simulated" in done.stdout
    assert "one preferred to base: " in done.stdout
    images = sorted((run / "annotations/images").glob("*/*.png"))
    assert len(images) == 2 * 3
    again = run_here("t2ifb.annotate", f"source={run}", *arguments)
    assert again.returncode == 0, again.stderr
    assert "sampling from" not in again.stdout and "0 answers of 1 simulated" in again.stdout
    other = write_run(tmp_path / "outputs/shapes/refl/two", 3)
    both = run_here("t2ifb.annotate", f"run=[{run},{other}]", "output=both", *arguments)
    assert "run: the runs differ in sampling; compare them one at a time" in both.stderr


@pytest.mark.slow
def test_a_run_that_python_started_is_compared_with_the_base_model(run_here: Command, tmp_path: Path) -> None:
    tune(make_tuning(epochs=1), tmp_path / "run")
    done = run_here(
        "t2ifb.annotate", f"run={tmp_path / 'run'}", "mode=compare", "simulate=true", "annotators=1", "device=cpu"
    )
    assert done.returncode == 0, done.stderr
    assert "2 answers of 1 simulated annotators" in done.stdout  # its two test prompts
    assert "run preferred to base: " in done.stdout


def test_settings_of_a_run_are_taken_except_those_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "one", 2)
    for typed, expected in (
        ((), (2, 2.0, None)),
        (("domain=sd15", "sampling.num_inference_steps=7"), (7, 2.0, None)),
        (("scheduler=ddpm",), (2, 2.0, "DDPM")),
        (("sampling=shapes",), (20, 1.0, "DDIM")),
    ):
        config = compose_all("annotate", [f"run={run}", *typed])[0].config
        monkeypatch.setattr(Components, "arguments", [f"run={run}", *typed])
        parts = Components(config)
        _take_settings(parts, [str(run)])
        sampling = parts.value("sampling")
        assert (sampling["num_inference_steps"], sampling["guidance_scale"]) == expected[:2]
        schedule = sampling.get("schedule")
        assert expected[2] is None if schedule is None else str(expected[2]).lower() in str(schedule).lower()


def test_a_wrong_reward_is_named_before_anybody_answers(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images")
    arguments = (f"source={folder}", "simulate=true", "mode=compare")
    done = run_here("t2ifb.annotate", *arguments, "+scorer@reward=reward_model", "reward.source=nowhere")
    assert done.returncode == 2 and "nowhere" in done.stderr
    assert not (folder / "annotations" / "rankings.jsonl").exists()


def test_answers_do_not_wait_for_a_reward_that_fails(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images")
    (tmp_path / "failing.py").write_text(
        "class Failing:\n    def __call__(self, images, prompts):\n        raise OSError('the server is gone')\n"
    )
    reward = ("+scorer@reward=module", f"reward.path={tmp_path / 'failing.py'}", "reward.class_name=Failing")
    done = run_here("t2ifb.annotate", f"source={folder}", "simulate=true", "mode=compare", *reward)
    assert done.returncode == 0, done.stderr
    assert "the answers are not compared with the reward" in done.stdout
    assert "tuned preferred to base: " in done.stdout


def test_a_number_of_prompts_is_asked_about_with_all_their_questions(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=5, copies=1, models=("base", "one", "two")), "compare")
    config = compose_all("annotate", [f"source={tmp_path}", "most=2"])[0].config
    chosen = _chosen(Components(config), items, None, torch.device("cpu"))
    assert len(chosen) == 2 * 3 and len({item.prompt for item in chosen}) == 2
    assert chosen == [item for item in items if item in chosen]


def test_the_base_model_draws_for_a_folder(run_here: Command, tmp_path: Path) -> None:
    done = run_here(
        "t2ifb.annotate", "split=train", "most=2", "output=mine", "simulate=true", "annotators=1", "device=cpu",
        "sampling.num_inference_steps=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 answers of 1 simulated annotators" in done.stdout
    assert len(list((tmp_path / "mine/images").glob("*/*.png"))) == 2 * 4
    rankings = OwnRankings(tmp_path / "mine", shares={"train": 1.0}).rankings("train")
    assert len(rankings) == 2
    assert not {ranking.prompt for ranking in rankings} & {*ScenePrompts("train", 2).prompts()}  # random ones of 4,800


def test_the_prompts_to_draw_are_random_ones() -> None:
    prompts = [f"prompt {n}" for n in range(100)]
    few, more = (_some([*prompts, *prompts], most, seed=0) for most in (5, 20))
    assert few == more[:5] != prompts[:5]
    assert len(set(more)) == 20 and more == _some(prompts, None, 0)[:20]
    assert sorted(_some(prompts, 200, 0)) == sorted(prompts)
    assert _some(prompts, 5, seed=1) != few


@pytest.mark.slow
def test_rewards_choose_what_is_asked_and_are_compared_with_the_answers(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images", 6)
    brief = ("algorithm.epochs=1", "algorithm.train_prompts=20", "logger=none", "build.size=small")
    for seed in (0, 1):
        done = run_here("t2ifb.train", "+experiment=reward_mlp", f"seed={seed}", *brief, f"hydra.run.dir=run{seed}")
        assert done.returncode == 0, done.stderr
    runs = f"reward.sources=[{tmp_path / 'run0'},{tmp_path / 'run1'}]"
    done = run_here(
        "t2ifb.annotate", f"source={folder}", "simulate=true", "order=disagreement", "most=4",
        "+scorer@reward=ensemble", runs, "export=exported", "device=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 answers of 2 simulated annotators" in done.stdout
    assert "agreement with the scorer: " in done.stdout
    assert "4 rankings in ImageRewardDB's layout: exported" in done.stdout
    found = json.loads((folder / "annotations/results.json").read_text())
    assert 0 <= found["reward_agreement"]["mean"] <= 1
    exported = ImageRewardDB(tmp_path / "exported")
    assert sum(len(exported.rankings(s)) for s in ("train", "validation", "test") if exported.available(s)) == 4


@pytest.mark.slow
def test_a_reward_is_trained_on_what_was_annotated(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images", 40)
    assert run_here("t2ifb.annotate", f"source={folder}", "simulate=true").returncode == 0
    done = run_here(
        "t2ifb.train", "+experiment=reward_mlp", "dataset=own_rankings", f"dataset.source={folder / 'annotations'}",
        "algorithm.epochs=1", "logger=none", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").is_file()
