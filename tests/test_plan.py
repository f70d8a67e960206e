"""`plan` from its arguments to what it says; nothing is downloaded, nothing is written."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from t2ifb.config.command import run
from t2ifb.config.compose import compose_all
from t2ifb.data.rankings import RankedPrompt
from t2ifb.finetuning.dpo import DPO
from t2ifb.plan import length_of, plan, processes_of

Run = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def go(*arguments: str) -> int:
        experiment = [] if any(text.startswith("+experiment=") for text in arguments) else ["+experiment=refl"]
        monkeypatch.setattr(sys, "argv", ["plan", *experiment, *arguments])
        try:
            return run("plan", plan)
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


def rows(text: str) -> dict[str, list[str]]:
    """The tables' rows by their first cell."""
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if "│" in line]
    return {first: others for first, *others in cells}


@pytest.mark.slow
def test_stable_diffusion_on_a_card_of_16_gb(go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("+experiment=refl", "domain=sd15", "memory_gb=16") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["denoiser"][:2] == ["859.52 M", "797,184"]
    assert table["decoder"][0] == "83.65 M"
    assert table["reward"][0] == "429.49 M"
    assert "diversity encoder (shared)" in table
    assert table["one denoising step of one sample"] == ["1.609 TFLOP", ""]
    assert table["100,000 updates"]
    assert "ImageReward's list" in out  # the prompts are not here
    assert table["one update, 1 row"] == ["60.3 TFLOP", "7.146 TFLOP"]
    assert table["T4"][:2] == ["2.32 s", "1.26 s"]
    assert "guidance 7.5 in rollouts, unconditional branch without gradient" in " ".join(out.split())
    pool, peak = (float(table[name][0].split()[0]) for name in ("allocator's pool", "live tensors at the peak"))
    assert peak < pool < 1.1 * peak
    spare = re.search(r"The run needs \S+ GB.*fits into 16\.00 GB \(memory_gb\), with (\S+) GB free", out)
    assert spare is not None
    assert float(spare[1]) > 1
    assert "Settings that save memory" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.huge
def test_what_makes_it_fit(go: Run, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("diffusion.gradient_checkpointing=false", "trainer.precision=32-true")
    without = [f"~judges.{name}" for name in ("clip_score", "aesthetic_score", "image_reward")]  # for speed
    assert go("+experiment=refl", "domain=sd15", "memory_gb=11", *changes, *without) == 0
    out = capsys.readouterr().out
    assert "It does not fit into 11.00 GB" in out
    assert all(cell.endswith(" fits") for cell in rows(out)["diffusion.gradient_checkpointing=true"][1:])
    assert "With these settings the run fits." in out
    saved = re.search(r"saved activations: (\S+) GB with gradient_ch\w+; (\S+) GB without.*; (\S+) GB without", out)
    assert saved is not None
    assert saved.groups() == ("0.15", "1.04", "4.02")


def test_the_embedded_domain_on_this_machine(go: Run, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("algorithm.batch_size=2", "algorithm.algorithm.gradients_per_rollout=1", "prompts.most=10")
    assert go("trainer.accelerator=cpu", *changes, "+scorer@judges.truth=gold") == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["denoiser"][:2] == ["2.54 M", "25,600"]
    assert table["one update, 2 rows"]
    assert table["960 updates"]  # 0.4 of 4,800 prompts, and none of them missing
    assert table["48 validations of 20 images, and the report"]  # of 64 prompts, `most` leaves ten
    assert "note: the training" not in out
    assert "note: judges.truth is not counted: GoldScore has no `on_meta`" in out
    assert "the RAM of this machine" in out
    assert "CUDA" not in out


@pytest.mark.parametrize(
    ("trainer", "count", "note"),
    [
        ({}, 1, ""),
        ({"devices": 4}, 4, "one of 4 processes"),
        ({"devices": "2", "num_nodes": 3}, 6, "one of 6 processes"),
        ({"devices": [0, 2]}, 2, "one of 2 processes"),
        ({"devices": "0,1,3,"}, 3, "one of 3 processes"),
        ({"devices": "auto"}, 1, "trainer.devices=auto: planned for one device on each node"),
        ({"devices": -1, "num_nodes": 2}, 2, "trainer.devices=-1: planned for one device on each node"),
    ],
)
def test_the_processes_of_a_trainer(trainer: dict[str, Any], count: int, note: str) -> None:
    found, notes = processes_of(trainer)
    assert found == count and note in " ".join(notes) and bool(notes) == bool(note)


def test_one_of_several_processes_is_planned(go: Run, capsys: pytest.CaptureFixture[str]) -> None:
    four = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=4", "algorithm.batch_size=8")
    few = ("algorithm.algorithm.gradients_per_rollout=1", "algorithm.diversity=null", "prompts.most=10")
    assert go(*four, *few) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["one update, 2 rows"]
    assert table["240 updates"]  # 0.4 of 4,800 prompts, eight in an update
    assert table["12 validations of 5 images, and the report"]
    assert "note: memory, arithmetic and times are those of one of 4 processes" in out


@pytest.mark.slow
def test_one_of_several_rounds_is_planned(go: Run, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("algorithm.batch_size=1", "prompts.most=1", "algorithm.images_per_prompt=1", "algorithm.diversity=null")
    assert go("+experiment=iterate", "trainer.accelerator=cpu", "iteration.rounds=2", *few) == 0
    assert "note: the tuning of one of 2 rounds is planned" in capsys.readouterr().out


class Rankings:
    """Two prompts with three images each, the second with a tie, and as often in an epoch as is said."""

    def __init__(self, here: bool, times: float | None = None) -> None:
        self.here = here
        if times is not None:
            self.multiplicities = lambda split: [(1, 1.0), (1, times)]

    def available(self, split: str) -> bool:
        return self.here

    def rankings(self, split: str) -> list[RankedPrompt]:
        images = (Path("0.png"), Path("1.png"), Path("2.png"))
        return [RankedPrompt("a", "a", images, (1, 2, 3)), RankedPrompt("b", "b", images, (1, 1, 2))]


@pytest.mark.parametrize(
    ("rankings", "pairs"),
    [(Rankings(here=True), 3 + 2), (Rankings(here=True, times=3.0), 3 + 6), (Rankings(here=False), 0)],
)
def test_a_run_on_given_pairs_is_as_long_as_they_are_many(rankings: Rankings, pairs: int) -> None:
    training: Any = SimpleNamespace(
        algorithm=DPO(group_size=None), rankings=rankings, prompts=SimpleNamespace(most=9), epochs=1, validate_every=5,
        batch_size=4, guidance_prompts=20, guidance_scales=[1.0],
    )  # fmt: skip
    length, notes = length_of(training, 2)
    assert (length.prompts, length.batch_size, length.tests, length.compared) == (pairs or 10_000, 4, 5, 5)
    assert ("so that the run's length is unknown" in " ".join(notes)) == (not pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "row"),
    [
        ("draft", "one update, 1 row"), ("reward_weighted", "one update, 12 rows"), ("grpo", "one update, 80 rows"),
        ("best_of_n", "one update, 16 rows"), ("dpo", "one update, 32 rows"), ("nft", "one update, 8 rows"),
        ("dpo algorithm.algorithm.group_size=null", "one update, 1 row"),
    ],
)  # fmt: skip
def test_every_algorithm_is_planned(go: Run, experiment: str, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("algorithm.batch_size=1", "prompts.most=1", "algorithm.images_per_prompt=1", "algorithm.diversity=null")
    assert (
        go(*f"+experiment={experiment}".split(), "trainer.accelerator=cpu", "algorithm.samples_per_batch=1", *few) == 0
    )
    out = capsys.readouterr().out
    assert rows(out)[row][1], out
    assert "1 row of the loss at a time" in " ".join(out.split())


def test_the_groups_are_those_of_train() -> None:
    overrides = ["+experiment=refl", "domain=sd15", "algorithm.batch_size=2", "scheduler=ddpm", "seed=3"]
    train, plan = (compose_all(command, overrides)[0] for command in ("train", "plan"))
    assert not plan.errors
    choices = [dict(each.config.hydra.runtime.choices) for each in (train, plan)]
    for each in choices:
        for name in [name for name in each if name.startswith("hydra/")]:
            del each[name]
    assert choices[0] == choices[1]
    configs = [OmegaConf.to_container(each.config, resolve=False) for each in (train, plan)]
    assert all(isinstance(each, dict) for each in configs)
    same, planned = ({k: v for k, v in each.items() if k != "hydra"} for each in configs)  # type: ignore[union-attr]
    assert planned == same | {"memory_gb": None, "attention": "auto"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("+experiment=reward_mlp",), "only fine-tuning is planned; give its experiment, such as +experiment=refl"),
        (("trainer.precision=16-true",), "trainer.precision=16-true: fine-tuning takes 32-true"),
        (("diffusion.source=./nowhere",), "./nowhere does not exist"),
        (("algorithm.algorithm.window=[0,40]",), "window=[0, 40]: first and last step must lie within the steps"),
        (("algorithm.lora.targets=[to_x]",), "cannot add adapters to to_x"),
        (("algorithm.micro_batch_size=0",), "micro_batch_size=0"),
        (("algorithm.validation_prompts=0",), "validation_prompts=0"),
        (("algorithm.epochs=0",), "epochs=0 must be above 0"),
        (("algorithm.samples_per_batch=0",), "samples_per_batch=0 must be at least 1"),
        (("algorithm.batch_size=0",), "batch_size=0"),
        (
            ("trainer=ddp", "trainer.devices=4", "algorithm.batch_size=2"),
            "4 processes need at least as many prompts per update",
        ),
        (("memory_gb=1",), "memory_gb=1.0 must be above 1"),
        (("memory_gb=large",), "memory_gb"),
        (("memory_gp=16",), "did you mean 'memory_gb'"),
        (("attention=flash",), "expected auto, fused or plain"),
        (("encoder.model=ViT-L-15", "domain=sd15"), "open_clip has no model 'ViT-L-15'"),
    ],
)
def test_wrong_wishes_end_with_2(
    go: Run, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(*arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_the_algorithm_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["plan"])
    with pytest.raises(SystemExit, match="2"):
        run("plan", plan)
    assert "such as +experiment=refl" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gpu_that_pytorch_cannot_use_is_named(
    go: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2ifb.utils.devices.gpu_error", lambda: "the GPU P100 is too old.")
    changes = ("algorithm.batch_size=1", "algorithm.algorithm.gradients_per_rollout=1", "prompts.most=1")
    assert go("memory_gb=8", *changes) == 0
    assert "note: the GPU P100 is too old." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "size"), [("sdxl", "2,567.46 M"), ("sd35", "2,243.17 M")])
def test_newer_models_have_their_published_size(
    go: Run, capsys: pytest.CaptureFixture[str], domain: str, size: str
) -> None:
    assert go(f"domain={domain}", "memory_gb=80") == 0
    out = capsys.readouterr().out
    assert rows(out)["denoiser"][0] == size
    assert "the text encoders run before training and are not counted" in " ".join(out.split())
