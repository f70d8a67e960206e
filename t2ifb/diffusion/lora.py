"""Low-rank adapters in the U-Net (arXiv 2106.09685): creation, state, and files for diffusers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2ifb.utils.files import atomic_write, package_path, public_name

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of self- and cross-attention."""


@dataclass(frozen=True)
class LoRA:
    """W = W_0 + (lora_alpha / rank) B A, with Gaussian A and B = 0, so that tuning starts at the base model.

    Attributes:
        rank: r of A (r, k) and B (d, r).
        lora_alpha: Scale parameter; the rank by default, which gives the factor 1.
        targets: Name suffixes of the linear and convolutional layers that get an adapter.
    """

    rank: int = 4
    lora_alpha: float | None = None
    targets: Sequence[str] = ATTENTION

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.lora_alpha is not None and self.lora_alpha <= 0):
            raise ValueError(f"rank={self.rank} must be at least 1 and lora_alpha={self.lora_alpha} above 0")
        if not self.targets:
            raise ValueError("targets is empty; give at least one layer, such as to_q")

    def add(self, unet: Any, seed: int = 0) -> list[nn.Parameter]:
        """Add adapters to a `UNet2DConditionModel` and return their weights: float32, the only ones with gradients.

        Args:
            unet: The U-Net, with frozen weights.
            seed: Seed of A.

        Raises:
            ValueError: No layer matches the targets.
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
                raise ValueError(f"cannot add adapters to {', '.join(self.targets)}: {error}") from error
        weights = [parameter for name, parameter in unet.named_parameters() if "lora_" in name]
        for weight in weights:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        return weights


def adapter_state(unet: Any) -> dict[str, Tensor]:
    """Weights of the adapters by name."""
    from peft.utils import get_peft_model_state_dict

    return {name: weight.detach() for name, weight in get_peft_model_state_dict(unet).items()}


def load_adapter_state(unet: Any, state: Mapping[str, Tensor]) -> None:
    """Load weights returned by `adapter_state`.

    Raises:
        ValueError: The weights belong to other layers or have another rank.
    """
    from peft.utils import set_peft_model_state_dict

    own = adapter_state(unet)
    if state.keys() != own.keys():
        odd = sorted(state.keys() ^ own.keys())
        raise ValueError(f"the adapters are on other layers: {', '.join(odd[:3])} and {max(0, len(odd) - 3)} more")
    if wrong := [name for name in own if own[name].shape != state[name].shape]:
        shapes = f"{tuple(state[wrong[0]].shape)} and not {tuple(own[wrong[0]].shape)}"
        raise ValueError(f"the adapters have another rank: {wrong[0]} is {shapes}. Use the original rank (lora.rank=…)")
    set_peft_model_state_dict(unet, dict(state))


def adapted_layers(denoiser: nn.Module) -> list[Any]:
    """The layers that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_adapters(layers: Sequence[Any]) -> Iterator[None]:
    """Layers as they are without their adapters; may be entered within itself.

    peft's own `disable_adapters` walks through all modules and clears `requires_grad`.

    Raises:
        RuntimeError: Adapters are merged into the weights, which therefore are not the base model's.
    """
    if any(getattr(layer, "_is_merged", False) for layer in layers):
        raise RuntimeError("the base model was called where adapters are merged into its weights; call it outside")
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


@contextmanager
def merged(layers: Sequence[Any]) -> Iterator[None]:
    """Layers with their adapters merged into the weights, which are put back exactly; for calls without gradient.

    Where the adapters are off they stay off.
    """
    active = [layer for layer in layers if not layer._disable_adapters]
    weights = [layer.get_base_layer().weight for layer in active]
    before = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            for layer, weight in zip(active, weights, strict=True):
                weight.data = weight.data + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
        with without_adapters(layers):
            for layer in active:
                layer._is_merged = True
            try:
                yield
            finally:
                for layer in active:
                    layer._is_merged = False
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.data = value


def save_lora(unet: Any, folder: str | Path, base: str | Path, card: str = "", first: str = "") -> None:
    """Write `pytorch_lora_weights.safetensors`, which `StableDiffusionPipeline.load_lora_weights` reads, and a card.

    The file also contains rank and `lora_alpha`, which determine the adapters' scale. Equal adapters give
    equal bytes.

    Args:
        unet: U-Net with adapters.
        folder: Target folder.
        base: Hub id, folder or file of the base model. The card contains no paths of this machine.
        card: Text of `README.md` below the heading and the usage section.
        first: First lines of `README.md`, directly below the heading.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors.torch import save

    layers = {name: weight.cpu().contiguous() for name, weight in adapter_state(unet).items()}
    settings = unet.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # a set's order differs between processes
    text = json.dumps({f"unet.{name}": value for name, value in settings.items()}, indent=2, sort_keys=True)
    # `save_lora_weights` would add a second metadata key, and safetensors does not order keys.
    weights = save(StableDiffusionPipeline.pack_weights(layers, "unet"), {LORA_ADAPTER_METADATA_KEY: text})
    imports = "from importlib.resources import files\n\n" if package_path(base) else ""
    readme = CARD.format(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        imports=imports,
        load=_load(base),
        card=card,
        first=first and f"{first}\n\n",
    )
    for name, content in ((LORA_WEIGHTS, weights), ("README.md", readme.encode())):
        with atomic_write(Path(folder) / name) as file:
            file.write(content)


def _load(base: str | Path) -> str:
    """Python expression that loads the base model, for the card."""
    path = Path(base).expanduser()
    if path.is_file():
        return f'from_single_file("<{public_name(path)}>", dtype=torch.float32)'
    inside = package_path(path)
    where = f'files("t2ifb") / "{inside}"' if inside else f'"<{public_name(path)}>"' if path.is_dir() else f'"{base}"'
    return f"from_pretrained({where}, dtype=torch.float32)"  # components may be stored in different precisions


CARD = """# Adapters of a fine-tuned diffusion model

{first}LoRA of rank {rank} (lora_alpha {alpha}) for the U-Net, fine-tuned on a reward with t2ifb. In this folder:

```python
{imports}import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.{load}
pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")
```

The safety checker was disabled in training and for the results below. `from_pretrained` loads the base model's safety
checker unless `safety_checker=None` is given; keep it for images that others see.

{card}
"""


def load_lora(unet: Any, source: str | Path) -> None:
    """Load exported adapters into a U-Net without adapters.

    Args:
        unet: `UNet2DConditionModel`.
        source: A run folder, its `export/`, or the file itself.

    Raises:
        ValueError: The export is missing or belongs to another base model.
    """
    path = Path(source).expanduser()
    places = [path, path / LORA_WEIGHTS, path / "export" / LORA_WEIGHTS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(
            f"{source} has no {LORA_WEIGHTS}: expected a finished fine-tuning run, its export/ or the file"
        )
    from diffusers import StableDiffusionPipeline

    found = StableDiffusionPipeline.lora_state_dict(str(file.parent), weight_name=file.name, return_lora_metadata=True)
    try:
        StableDiffusionPipeline.load_lora_into_unet(found[0], found[1], unet, metadata=found[2])
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"{file} belongs to another base model: its layers have other sizes") from error
    unet.requires_grad_(False)
