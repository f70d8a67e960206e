"""Low-rank adapters in the U-Net (arXiv 2106.09685): adding them, their state, and files that diffusers loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2ifb.data.files import atomic_write

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of self- and cross-attention."""


@dataclass(frozen=True)
class LoRA:
    """W = W_0 + (lora_alpha / rank) B A, with Gaussian A and B = 0, so that tuning begins at the base model.

    Attributes:
        rank: r of A (r, k) and B (d, r).
        lora_alpha: The rank if it is not given: then the factor is 1, whatever the rank.
        targets: Endings of the names of the layers that get an adapter: linear layers and convolutions.
    """

    rank: int = 4
    lora_alpha: float | None = None
    targets: Sequence[str] = ATTENTION

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.lora_alpha is not None and self.lora_alpha <= 0):
            raise ValueError(f"rank={self.rank} must be at least 1 and lora_alpha={self.lora_alpha} above 0")
        if not self.targets:
            raise ValueError("targets is empty: name at least one layer, such as to_q")

    def add(self, unet: Any, seed: int = 0) -> list[nn.Parameter]:
        """Put adapters into a `UNet2DConditionModel`; gives their weights, float32 and the only ones with gradients.

        Args:
            unet: Whose own weights are frozen.
            seed: Of A.

        Raises:
            ValueError: No layer has one of the names.
        """
        from peft import LoraConfig

        alpha = self.rank if self.lora_alpha is None else self.lora_alpha
        config = LoraConfig(
            r=self.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            init_lora_weights="gaussian",
            target_modules=list(self.targets),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                unet.add_adapter(config)
            except ValueError as error:
                raise ValueError(f"cannot put adapters into {', '.join(self.targets)}: {error}") from error
        weights = [parameter for name, parameter in unet.named_parameters() if "lora_" in name]
        for weight in weights:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        return weights


def adapter_state(unet: Any) -> dict[str, Tensor]:
    """The adapters' weights by name."""
    from peft.utils import get_peft_model_state_dict

    return {name: weight.detach() for name, weight in get_peft_model_state_dict(unet).items()}


def load_adapter_state(unet: Any, state: Mapping[str, Tensor]) -> None:
    """Put in weights that `adapter_state` gave.

    Raises:
        ValueError: They are of other layers or of another rank.
    """
    from peft.utils import set_peft_model_state_dict

    own = adapter_state(unet)
    if state.keys() != own.keys():
        odd = sorted(state.keys() ^ own.keys())
        raise ValueError(f"the adapters are on other layers: {', '.join(odd[:3])} and {max(0, len(odd) - 3)} more")
    if wrong := [name for name in own if own[name].shape != state[name].shape]:
        shapes = f"{tuple(state[wrong[0]].shape)} and not {tuple(own[wrong[0]].shape)}"
        raise ValueError(f"the adapters have another rank: {wrong[0]} is {shapes}. Give lora.rank as it was")
    set_peft_model_state_dict(unet, dict(state))


def save_lora(unet: Any, folder: str | Path, card: str = "", first: str = "") -> None:
    """Write `pytorch_lora_weights.safetensors`, which `StableDiffusionPipeline.load_lora_weights` reads, and a card.

    The file also holds rank and `lora_alpha`: without them the adapters' scale would be guessed.

    Args:
        unet: With adapters.
        folder: Where to.
        card: Text of `README.md` below its heading and its words on use.
        first: Its first lines, directly below the heading.
    """
    from diffusers import StableDiffusionPipeline

    layers = {name: weight.cpu().contiguous() for name, weight in adapter_state(unet).items()}
    settings = unet.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # a set's order is another in each process
    StableDiffusionPipeline.save_lora_weights(str(folder), unet_lora_layers=layers, unet_lora_adapter_metadata=settings)
    with atomic_write(Path(folder) / "README.md") as file:
        file.write(
            CARD.format(
                rank=settings["r"], alpha=settings["lora_alpha"], card=card, first=first and f"{first}\n\n"
            ).encode()
        )


CARD = """# Adapters of a fine-tuned diffusion model

{first}LoRA of rank {rank} (lora_alpha {alpha}) for the U-Net, tuned by a reward with t2ifb.

```python
pipeline = StableDiffusionPipeline.from_pretrained(<the base model>)
pipeline.load_lora_weights(<this folder>)
```

The safety checker was left out in training and in the figures below. `from_pretrained` loads the base model's own with
it unless `safety_checker=None` is given; keep it for images that others see.

{card}
"""


def load_lora(unet: Any, source: str | Path) -> None:
    """Put exported adapters into a U-Net without any.

    Args:
        unet: `UNet2DConditionModel`.
        source: A run folder, its `export/`, or the file itself.

    Raises:
        ValueError: There is no such export, or it is of another base model.
    """
    path = Path(source).expanduser()
    places = [path, path / LORA_WEIGHTS, path / "export" / LORA_WEIGHTS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"{source} has no {LORA_WEIGHTS}: give a finished fine-tuning run, its export/ or the file")
    from diffusers import StableDiffusionPipeline

    found = StableDiffusionPipeline.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    try:
        StableDiffusionPipeline.load_lora_into_unet(found[0], found[1], unet, metadata=found[2])
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"{file} was tuned on another base model: its layers have other sizes than these") from error
    unet.requires_grad_(False)
