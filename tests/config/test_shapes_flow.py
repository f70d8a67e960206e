"""Everything that `domain=shapes` runs, with the rectified flow: two updates, and what is made of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from t2ifb import report
from t2ifb.config.compose import compose_all
from t2ifb.evaluate import evaluate
from t2ifb.generate import generate
from t2ifb.plan import plan
from t2ifb.shapes.weights import FLOW, FLOW_T5_TOKENS
from t2ifb.train import train
from tests.command_parts import Run, runner
from tests.shapes.flow_parts import write_untrained
from tests.shapes.parts import write_database

TASKS = {"train": train, "evaluate": evaluate, "generate": generate, "plan": plan}
QUICK = (
    "algorithm.batch_size=2", "algorithm.validation_prompts=2", "prompts.most=2", "algorithm.guidance_scales=[4]",
    "algorithm.best_of=2", "sampling.num_inference_steps=2", "logger=none", "trainer.accelerator=cpu",
    "prompts.train.count=40", "prompts.validation.count=2", "prompts.test.count=2", "scorer@reward=clip_score",
    "algorithm.epochs=0.1",
)  # fmt: skip
ONE_UPDATE = ("algorithm.algorithm.updates=1", "algorithm.algorithm.group_size=2")
EXPERIMENTS: Mapping[str, tuple[str, ...]] = {
    "refl": ("rollout.num_inference_steps=18",),
    "draft": ("rollout.num_inference_steps=6",),
    "grpo": (*ONE_UPDATE, "rollout.num_inference_steps=11"),
    "dpo": (
        *ONE_UPDATE, "algorithm.algorithm.best=1", "algorithm.algorithm.pairs_per_update=2",
        "rollout.num_inference_steps=12",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of the domain with untrained weights and few pictures."""
    folder = tmp_path_factory.mktemp("flow")
    pipeline, data = write_untrained(folder / "pipeline"), write_database(folder / "data")
    return ["domain=shapes_flow", f"diffusion.source={pipeline}", f"dataset.source={data}", "build=null"]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(TASKS, tmp_path, monkeypatch)


def test_only_the_model_with_its_layers_and_its_sampler_differ_from_shapes() -> None:
    for experiment in ("refl", "dpo", "iterate"):
        flow, unet = (
            compose_all("train", [f"+experiment={experiment}", f"domain={domain}"])[0].config
            for domain in ("shapes_flow", "shapes")
        )
        assert {key for key in flow if flow[key] != unet[key]} - {"hydra"} == {
            "domain", "usual_guidance_scale", "diffusion", "sampling", "rollout", "algorithm"
        }  # fmt: skip
        differ = {key for key in flow.algorithm if flow.algorithm[key] != unet.algorithm[key]}
        own_layers = {"lora"} if experiment != "refl" else set()  # Diffusion-DPO tunes all layers of the U-Net
        assert differ == {"model", "rollout", "sampling"} | own_layers
        assert flow.algorithm.model.max_sequence_length == FLOW_T5_TOKENS
        assert Path(flow.algorithm.model.source) == FLOW


@pytest.mark.slow
def test_the_plan_needs_no_weights(go: Run, world: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert go("plan", "+experiment=refl", "memory_gb=8", *world) == 0
    assert "2.31 M" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_fine_tuning_takes_two_steps_and_its_adapters_draw(
    go: Run, world: list[str], tmp_path: Path, experiment: str
) -> None:
    run = tmp_path / "run"
    options = [*EXPERIMENTS[experiment], f"hydra.run.dir={run}"]
    assert go("train", f"+experiment={experiment}", *world, *QUICK, *options) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 and "gold/alignment" in summary["test_kept"]
    few = ["sampling.num_inference_steps=2", "prompts.test.count=2", "device=cpu"]
    assert go("generate", "lora=run", "split=test", *world, *few) == 0
    (index,) = (tmp_path / "outputs" / "shapes_flow" / "generate").glob("*/prompts.json")
    assert [list(entry["images"]) for entry in json.loads(index.read_text())] == [["base", "tuned"]] * 2
    assert go("generate", "lora=run", "merge=merged", *world) == 0
    merged, plain = (
        StableDiffusion3Pipeline.from_pretrained(place, text_encoder_3=None, tokenizer_3=None).transformer.state_dict()
        for place in ("merged", world[1].partition("=")[2])
    )
    assert any(not torch.equal(merged[name], plain[name]) for name in plain)
    card = (run / "export" / "README.md").read_text()
    assert "text_encoder_3=None, tokenizer_3=None" in card and "with `max_sequence_length=1`, as the run did" in card
    if experiment == "refl":
        few = [*few, "prompts.most=2", "evaluation.images_per_prompt=2"]
        assert go("evaluate", "+experiment=figure8", "run=run", *world, *few) == 0
        (table,) = (tmp_path / "outputs" / "shapes_flow" / "figure8").glob("*/summary.json")
        (rows,) = json.loads(table.read_text())["figure8"].values()
        assert {"gold", "alignment", "clip_score", "image_reward"} <= rows.keys()
        with pytest.raises(SystemExit, match="^0$"):
            report.main(["run", "--output", "page.html"])
        assert "shapes_flow" in (tmp_path / "page.html").read_text()
