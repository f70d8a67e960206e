"""What `tests.gpu_check` checks and where: models with random weights, a device, and the report of the figures."""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.model import ModelSource
from t2ifb.diffusion.models import sdxl, source_of, stable_diffusion, stable_diffusion_3
from t2ifb.diffusion.pipeline_model import Family
from t2ifb.diffusion.sampling import Sampler
from t2ifb.diffusion.schedule import ddim, flow
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from t2ifb.scorers import CLIPScore, RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.weights import CLIP, PIPELINE
from t2ifb.utils.devices import dtype_of
from tests.diffusion.random_pipeline import write_random_pipeline

ALPHA, BETA = 100.0, 0.01
STEPS, SMALL_STEPS = 10, 2
"""Of all rollouts: the last but one gives a gradient."""
IMAGE_REWARD = 448_000_000
"""Weights of ImageReward: as many stand for it among the judges."""
PROMPTS = [f"a red circle and {number} blue squares on a gray background" for number in range(64)]


@dataclass(frozen=True)
class Kind:
    """A domain's model with random weights, and how it is computed.

    Attributes:
        family: The model's family; None for the embedded domain's own model.
        guidance: Guidance scale.
        half: Precision of the frozen weights and of mixed precision.
        largest_error: Largest relative error of the adapters' gradient in half precision.
        make_schedule: Schedule of a number of steps.
    """

    family: Family | None
    guidance: float = 7.5
    half: Literal["fp16", "bf16"] = "fp16"
    largest_error: float = 0.02
    make_schedule: Any = ddim


KINDS = {
    "shapes": Kind(None),
    "sd15": Kind(stable_diffusion.FAMILY),
    "sdxl": Kind(sdxl.FAMILY, 5.0),
    "sd35": Kind(stable_diffusion_3.FAMILY, 4.5, "bf16", 0.05, flow),  # bf16 has 8 bits
}


class Report:
    """Figures on the screen and in a file, and which checks failed."""

    def __init__(self, path: Path) -> None:
        self.path, self.figures, self.failed = path, {}, []
        self.figures: dict[str, dict[str, Any]]
        self.failed: list[str]

    def figure(self, name: str, /, **values: Any) -> None:
        """Note figures under a name."""
        self.figures[name] = values
        print(json.dumps({"figure": name, **values}), flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")

    def check(self, name: str, passed: bool, /, **values: Any) -> None:
        """Note figures that have to be within bounds."""
        self.figure(name, passed=bool(passed), **values)
        if not passed:
            self.failed.append(name)


class Ballast(nn.Module):
    """A judge that is as large as another and always gives 0."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(weights), requires_grad=False)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Zeros (B,)."""
        return torch.zeros(len(images), device=images.device)


@dataclass
class World:
    """What is checked, and where.

    Attributes:
        domain: One of `KINDS`.
        device: Where it computes.
        folder: For weights and runs.
        steps: T of all rollouts.
        kind: The domain's model and how it is computed.
        pipeline: The diffusion model.
        clip: The encoder of reward and judge.
    """

    domain: str
    device: torch.device
    folder: Path
    steps: int
    kind: Kind = field(init=False)
    pipeline: Path = field(init=False)
    clip: CLIPSource = field(init=False)

    def __post_init__(self) -> None:
        self.kind = KINDS[self.domain]
        if self.kind.family is None:
            self.pipeline, self.clip = PIPELINE, CLIPSource(f"local-dir:{CLIP}", device=str(self.device))
            return
        self.pipeline = write_random_pipeline(self.folder / self.domain, self.kind.family, dtype=self.half)
        self.clip = clip_of(self.folder, str(self.device))

    @property
    def cuda(self) -> bool:
        """Whether it is on a GPU."""
        return self.device.type == "cuda"

    @property
    def small(self) -> bool:
        """Whether it is the embedded domain."""
        return self.kind.family is None

    @property
    def half(self) -> torch.dtype:
        """The type of the frozen weights and of mixed precision."""
        return dtype_of(self.kind.half)

    @property
    def rollout(self) -> Sampler:
        """As in the domain's recipe, with fewer steps."""
        return Sampler(self.steps, self.kind.guidance, self.kind.make_schedule, unconditional="detached")

    @property
    def algorithm(self) -> ReFL:
        """One gradient, at the last step but one: the same work in each update."""
        return ReFL(window=(self.steps - 2, self.steps - 2))

    def source(self, precision: str | None = None) -> ModelSource:
        """The diffusion model as in the domain's recipe, by default in half precision."""
        settings = {"gradient_checkpointing": True, "device": str(self.device)}
        return source_of(self.pipeline, precision=precision or self.kind.half, **settings)

    def reward(self) -> RewardModel:
        """A reward model that learned nothing."""
        encoder = replace(self.clip, device="cpu").load()
        torch.manual_seed(0)
        return RewardModel(encoder, MLPHead(encoder.embedding_dim)).eval().requires_grad_(False)

    def module(self, precision: str | None = None) -> FineTuningModule:
        """What is tuned, on the device, by default in half precision."""
        optimizer = partial(torch.optim.AdamW, lr=1e-5, fused=True)
        policy = Policy(self.source(precision).load(), LoRA(), self.reward(), self.rollout)
        return FineTuningModule(policy, self.algorithm, optimizer, gradient_clip_norm=None).to(self.device)

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision as in a run."""
        return torch.autocast(self.device.type, self.half, cache_enabled=False)

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], times: int = 5) -> float:
        """Median time of a call, after one that warms up."""
        call()
        found = []
        for _ in range(times):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)


def clip_of(folder: Path, device: str) -> CLIPSource:
    """CLIP ViT-L/14 with random weights, written to a folder."""
    import open_clip

    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-L-14-quickgelu").state_dict()
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "clip.safetensors")
    return CLIPSource("ViT-L-14-quickgelu", str(folder / "clip.safetensors"), quick_gelu=True, device=device)


def part(count: int) -> PromptBatch:
    """A batch of the first prompts."""
    return PromptBatch(0, PROMPTS[:count], list(range(count)), count)


def judges(world: World, on_meta: bool = False) -> dict[str, nn.Module]:
    """CLIP Score, and what is as large as ImageReward."""
    with torch.device("meta") if on_meta else nullcontext():
        ballast = Ballast(1 if world.small else IMAGE_REWARD)
    return {"clip_score": CLIPScore.on_meta(world.clip) if on_meta else CLIPScore(world.clip), "ballast": ballast}


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but figures on the screen: what the run itself prints goes to stderr."""
    screen, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = screen
