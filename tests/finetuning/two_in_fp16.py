"""`python -m tests.finetuning.two_in_fp16 FOLDER`: a run of two processes under a GradScaler, each on the CPU.

The first batch has one prompt, so that one process has none. In the second and fourth the gradient of one process
overflows. What each process has seen is in FOLDER/seen_<rank>.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.shapes.weights import PIPELINE
from tests.diffusion.parts import PROMPTS
from tests.finetuning.tuning_worlds import Darkness, make_tuning

COLOURS = ("green", "cyan")
HEAVY = "a prompt whose gradient overflows"


class Heavy(Darkness):
    """Its gradient does not fit fp16 for one prompt."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return super().forward(images, prompts) * images.new_tensor([1e12 if p == HEAVY else 1.0 for p in prompts])


class Seen(lightning.Callback):
    """Of each update: whether this process's own gradient is finite, the loss scale and the weights afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own: list[bool] = []
        self.rows: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        add_up = module._sum_gradients

        def watched() -> None:
            gradients = [weight.grad for weight in module.policy.adapters]
            self.own.append(bool(parameters_to_vector(gradients).isfinite().all()))
            add_up()

        module._sum_gradients = watched

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        scale = trainer.precision_plugin.scaler.get_scale()
        weights = parameters_to_vector(module.policy.adapters).detach().double()
        row = {"own": self.own[-1], "scale": scale, "weights": [weights.sum().item(), weights.square().sum().item()]}
        self.rows.append(row)
        (self.folder / f"seen_{trainer.global_rank}.json").write_text(json.dumps(self.rows))


def main(folder: Path) -> None:
    def trainer(**arguments: Any) -> lightning.Trainer:
        arguments["callbacks"].append(Seen(folder))
        arguments["plugins"].append(MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0)))
        return lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", **arguments)

    held_out = [
        PromptList([f"a {c} star on a white background", f"a {c} square on a gray background"]) for c in COLOURS
    ]
    tuning = make_tuning(
        model=StableDiffusionSource(str(PIPELINE), precision="fp16"), reward=Heavy(), alpha=100.0, beta=0.01, epochs=2,
        prompts=PromptSplits(PromptList([*PROMPTS, HEAVY]), *held_out), gradient_clip_norm=None, validate_every=4,
    )  # fmt: skip
    tuning.output_dir, tuning.trainer, tuning.seed = folder, trainer, 1
    tuning.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
