"""`domain=sd15` at Stable Diffusion v1.5's full geometry, with random weights: real steps at 512 x 512 on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from tests.diffusion.random_pipeline import write_random_pipeline
from tests.scorers.parts import tiny_clip
from tests.shapes.parts import write_database

LORA_WEIGHTS = 797_184
"""Of rank 4 on every attention projection of the U-Net."""


@pytest.mark.huge
def test_it_takes_steps_is_killed_resumed_and_loads_in_plain_diffusers(tmp_path: Path) -> None:
    pipeline = write_random_pipeline(tmp_path / "sd15", dtype=torch.bfloat16)
    clip = f"local-dir:{tiny_clip(tmp_path / 'clip')}"
    RewardModel(CLIPSource(clip).load(), MLPHead(12, [4], [])).save_pretrained(tmp_path / "reward")
    (tmp_path / "prompts.json").write_text(json.dumps([{"text": f"a red {number}", "image": ""} for number in (1, 2)]))
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "t2ifb.train", "+experiment=refl", "domain=sd15", "build=null", f"hydra.run.dir={run}",
        f"dataset.source={write_database(tmp_path / 'db')}", f"prompts.train.path={tmp_path / 'prompts.json'}",
        f"diffusion.source={pipeline}", "diffusion.precision=bf16", "diffusion.decoder_precision=bf16",
        f"reward.source={tmp_path / 'reward'}", f"encoder.model={clip}", "encoder.pretrained=null",
        "~judges.aesthetic_score", "~judges.image_reward", "prompts.most=1", "rollout.num_inference_steps=2",
        "sampling.num_inference_steps=2", "usual_guidance_scale=1", "algorithm.guidance_scales=[]",
        "algorithm.epochs=1", "algorithm.validate_every=1", "algorithm.validation_prompts=1",
        "algorithm.images_per_prompt=1", "trainer.accelerator=cpu",
        "trainer.precision=bf16-mixed", "logger=none",
    ]  # fmt: skip
    threads = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    process = subprocess.Popen(command, cwd=tmp_path, env=threads)
    while process.poll() is None and not (run / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.1)
    process.kill()
    assert process.wait() == -9  # or it would have ended by itself
    subprocess.run([*command[:3], f"resume={run}"], cwd=tmp_path, env=threads, check=True)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["skipped_updates"] == 0 and summary["precision"] == "bf16-mixed"
    exported = load_file(run / "export" / "pytorch_lora_weights.safetensors")
    assert sum(weight.numel() for weight in exported.values()) == LORA_WEIGHTS
    assert all(weight.isfinite().all() for weight in exported.values())
    assert all(bool(weight.any()) for name, weight in exported.items() if "lora_B" in name or "lora.up" in name)
    plain = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.bfloat16, safety_checker=None)
    plain.load_lora_weights(str(run / "export"))
    loaded = [weight for name, weight in plain.unet.named_parameters() if "lora_" in name]
    assert sum(weight.numel() for weight in loaded) == LORA_WEIGHTS
