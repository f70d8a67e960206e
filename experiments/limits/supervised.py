"""Adapters tuned on clean renders instead of a reward, as an upper limit.

python -m experiments.limits.supervised +experiment=refl seed=0    # takes the arguments of `t2ifb.train`
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ifb.config.command import command
from t2ifb.config.instantiate import Components
from t2ifb.diffusion.path import add_noise
from t2ifb.finetuning.evaluator import evaluate, evaluate_base
from t2ifb.finetuning.run import FineTuner
from t2ifb.shapes.training.diffusion import MIN_SNR_GAMMA
from t2ifb.shapes.training.loop import fit, generator, rendered
from t2ifb.training.run_folder import RunFolder

STREAM = 0x5ED
STEPS, BATCH, LEARNING_RATE, RENDERS = 1500, 16, 1e-3, 8000


def tune(model: Any, adapters: list[nn.Parameter], folder: Path, seed: int) -> None:
    """Tune on clean renders of training scenes with the base model's own loss. Interrupted runs continue.

    Args:
        model: A `TextToImageModel` with adapters.
        adapters: Trained weights of the model.
        folder: Folder for the training state.
        seed: Seed of scenes, layouts and noise.
    """
    scenes, _, pixels = rendered("train", RENDERS, seed=900 + seed)
    latents = torch.cat([model.encode_images(some.float() / 255) for some in pixels.split(200)])
    prompts = list(dict.fromkeys(scene.prompt for scene in scenes))
    number = {prompt: row for row, prompt in enumerate(prompts)}
    conditioning = model.encode(prompts)
    a, s = (values.float().reshape(-1, 1, 1, 1) for values in (model.path.a, model.path.s))
    snr = (model.path.a / model.path.s).square().float()
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr

    def loss_at(step: int) -> Tensor:
        draw = generator(STREAM, seed, step)
        index = torch.randint(len(latents), (BATCH,), generator=draw)
        timesteps = torch.randint(len(snr), (BATCH,), generator=draw)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=draw)
        of_prompt = conditioning.rows([number[scenes[row].prompt] for row in index.tolist()])
        noisy = add_noise(latents[index], noise, a[timesteps], s[timesteps])
        error = F.mse_loss(model.predict(noisy, timesteps, of_prompt), noise, reduction="none").mean((1, 2, 3))
        return (weights[timesteps] * error).mean()

    fit(
        "supervised", nn.ParameterList(adapters), loss_at, folder,
        steps=STEPS, learning_rate=LEARNING_RATE, weight_decay=0.0,
    )  # fmt: skip


def supervised(parts: Components) -> None:
    """Tune, evaluate base and tuned model as in a fine-tuning run, and write the scores in the same format."""
    started = time.monotonic()
    tuning: FineTuner = parts.build("algorithm", output_dir=parts.run_folder)
    seed, run = parts.value("seed"), RunFolder(parts.run_folder)
    model = tuning.model.load()
    adapters = tuning.lora.add(model, seed)
    tune(model, adapters, run.path, seed)
    seconds = time.monotonic() - started
    base = tuning.baseline_cache()
    evaluator, size = tuning.evaluator("validation", seed), tuning.samples_per_batch
    unit = tuning.reward if tuning.standardise else None
    evaluate_base(run, evaluator, lambda: base.of(evaluator, model, size), standardised=unit)
    test = tuning.evaluator("test", seed)
    answers = {"base": base.of(test, model, size), "kept": evaluate(test, model, size, "the tuned model")}
    for name, found in answers.items():
        found.sheet(test.prompts).write(run.samples / f"test_{name}.csv")
    run.write_summary({"steps": STEPS, "wall_seconds": round(seconds, 1), "seed": seed})


main = command("train", supervised)

if __name__ == "__main__":
    main()
