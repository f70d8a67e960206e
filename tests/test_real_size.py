"""Models at their published geometry with random weights: real steps on a CPU, a kill, adapters in plain diffusers.

Stable Diffusion v1.5 takes them at 512 x 512 in bf16, the larger ones at 256 x 256 in float32, with up to 20 GB of RAM.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from t2ifb.diffusion.models import sdxl, stable_diffusion, stable_diffusion_3
from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from tests.diffusion.random_pipeline import write_random_pipeline
from tests.scorers.parts import tiny_clip
from tests.shapes.parts import write_database

BF16 = (
    "diffusion.precision=bf16", "diffusion.decoder_precision=bf16", "trainer.precision=bf16-mixed",
    "usual_guidance_scale=1",
)  # fmt: skip
FP32 = (
    "diffusion.precision=fp32", "trainer.precision=32-true", "diffusion.height=256", "diffusion.width=256",
    "usual_guidance_scale=1",
)  # fmt: skip
CASES = {
    "sd15": (stable_diffusion.FAMILY, BF16, 797_184),
    "sdxl": (sdxl.FAMILY, FP32, 5_806_080),
    "sd35": (stable_diffusion_3.FAMILY, (*FP32, "diffusion.t5=false"), 2_985_984),
}
"""The family, arguments, and the number of weights of rank 4 on every attention projection, by domain."""

ABSENT = {"sd15": ["safety_checker"], "sd35": ["text_encoder_3", "tokenizer_3"]}
"""Parts that the pipelines lack, which plain diffusers has to be told."""
UNUSED = {"sd35": ["transformer.transformer_blocks.23.attn.add_q_proj.lora_B.weight"]}
"""Adapters without a gradient: the last block of SD3 discards what its text tokens attend to."""


@pytest.mark.huge
@pytest.mark.parametrize("domain", CASES)
def test_it_takes_steps_is_killed_resumed_and_loads_in_plain_diffusers(tmp_path: Path, domain: str) -> None:
    family, own, adapters = CASES[domain]
    pipeline = write_random_pipeline(tmp_path / domain, family, dtype=torch.bfloat16)
    clip = f"local-dir:{tiny_clip(tmp_path / 'clip')}"
    RewardModel(CLIPSource(clip).load(), MLPHead(12, [4], [])).save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.json").write_text(json.dumps([{"text": f"a red {number}", "image": ""} for number in (1, 2)]))
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "t2ifb.train", "+experiment=refl", f"domain={domain}", "build=null",
        f"hydra.run.dir={run}", f"dataset.source={write_database(tmp_path / 'db')}",
        f"prompts.train.path={tmp_path / 'prompts.json'}", f"diffusion.source={pipeline}",
        f"reward.source={tmp_path / 'reward'}", f"encoder.model={clip}", "encoder.pretrained=null",
        "~judges.aesthetic_score", "~judges.image_reward", "prompts.most=1", "rollout.num_inference_steps=2",
        "sampling.num_inference_steps=2", "algorithm.guidance_scales=[]", "algorithm.epochs=1",
        "algorithm.validate_every=1", "algorithm.validation_prompts=1", "algorithm.images_per_prompt=1",
        "trainer.accelerator=cpu", "logger=none", *own,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "T2IFB_DATA": str(tmp_path / "data")}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    while process.poll() is None and not (run / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -9  # or it would have ended by itself
    subprocess.run([*command[:3], f"resume={run}"], cwd=tmp_path, env=environment, check=True)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["skipped_updates"] == 0
    exported = load_file(run / "export" / "pytorch_lora_weights.safetensors")
    assert sum(weight.numel() for weight in exported.values()) == adapters
    assert all(weight.isfinite().all() for weight in exported.values())
    untrained = [name for name, b in exported.items() if ("lora_B" in name or "lora.up" in name) and not b.any()]
    assert untrained == UNUSED.get(domain, [])
    absent: dict[str, Any] = dict.fromkeys(ABSENT.get(domain, []))
    plain = diffusers.DiffusionPipeline.from_pretrained(pipeline, dtype=torch.bfloat16, **absent)
    plain.load_lora_weights(str(run / "export"))
    denoiser = getattr(plain, family.lora_format.part)
    loaded = [weight for name, weight in denoiser.named_parameters() if "lora_" in name]
    assert sum(weight.numel() for weight in loaded) == adapters
