"""Low-rank adapters in a denoiser (arXiv 2106.09685): creation, state, and files for diffusers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from t2ifb.diffusion.lora_export import COMFYUI_WEIGHTS, comfyui_weights
from t2ifb.diffusion.source import ENCODERS
from t2ifb.utils.files import atomic_write, package_path, public_name

if TYPE_CHECKING:
    from t2ifb.diffusion.model import TextToImageModel

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class LoRAFormat:
    """Adapters of a family of models.

    Attributes:
        pipeline: Class in diffusers whose `load_lora_weights` reads exported adapters.
        part: The denoiser's name in the pipeline, which is the prefix of the weights' names.
        targets: Layers that get adapters by default: the projections of self- and cross-attention.
        kohya: Whether ComfyUI and AUTOMATIC1111 read adapters of this family under kohya's names.
        call: Arguments of a call of the pipeline that differ from its defaults, for the card.
        absent: Parts of the pipeline that the run did not load.
    """

    pipeline: str
    part: str
    targets: tuple[str, ...]
    kohya: bool = False
    call: str = ""
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoRA:
    """W = W_0 + (lora_alpha / rank) B A, with Gaussian A and B = 0, so that tuning starts at the base model.

    Attributes:
        rank: r of A (r, k) and B (d, r).
        lora_alpha: Scale parameter; the rank by default, which gives the factor 1.
        targets: Name suffixes of the linear and convolutional layers that get an adapter; by default the attention
            projections of the model (`LoRAFormat.targets`).
    """

    rank: int = 4
    lora_alpha: float | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.lora_alpha is not None and self.lora_alpha <= 0):
            raise ValueError(f"rank={self.rank} must be at least 1 and lora_alpha={self.lora_alpha} above 0")
        if self.targets is not None and not self.targets:
            raise ValueError("targets is empty; give at least one layer, such as to_q")

    def add(self, model: "TextToImageModel", seed: int = 0) -> list[nn.Parameter]:
        """Add adapters to a model's denoiser and return their weights: float32, the only ones with gradients.

        Args:
            model: The model, with frozen weights.
            seed: Seed of A.

        Raises:
            ValueError: No layer matches the targets.
        """
        from peft import LoraConfig

        alpha = self.rank if self.lora_alpha is None else self.lora_alpha
        targets = list(model.lora_format.targets if self.targets is None else self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            init_lora_weights="gaussian",
            target_modules=targets,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model.denoiser.add_adapter(config)
            except ValueError as error:
                raise ValueError(f"cannot add adapters to {', '.join(targets)}: {error}") from error
        weights = [parameter for name, parameter in model.denoiser.named_parameters() if "lora_" in name]
        for weight in weights:
            weight.data = weight.data.float()
            weight.requires_grad_(True)
        return weights


def adapter_state(denoiser: Any) -> dict[str, Tensor]:
    """Weights of the adapters by name."""
    from peft.utils import get_peft_model_state_dict

    return {name: weight.detach() for name, weight in get_peft_model_state_dict(denoiser).items()}


def load_adapter_state(denoiser: Any, state: Mapping[str, Tensor]) -> None:
    """Load weights returned by `adapter_state`.

    Raises:
        ValueError: The weights belong to other layers or have another rank.
    """
    from peft.utils import set_peft_model_state_dict

    own = adapter_state(denoiser)
    if state.keys() != own.keys():
        odd = sorted(state.keys() ^ own.keys())
        raise ValueError(f"the adapters are on other layers: {', '.join(odd[:3])} and {max(0, len(odd) - 3)} more")
    if wrong := [name for name in own if own[name].shape != state[name].shape]:
        shapes = f"{tuple(state[wrong[0]].shape)} and not {tuple(own[wrong[0]].shape)}"
        raise ValueError(f"the adapters have another rank: {wrong[0]} is {shapes}. Use the original rank (lora.rank=…)")
    set_peft_model_state_dict(denoiser, dict(state))


_LAYERS: "WeakKeyDictionary[nn.Module, tuple[list[Any], list[Any]]]" = WeakKeyDictionary()
"""Configurations of the adapters and adapted layers by denoiser: a walk through all modules takes milliseconds."""


def adapted_layers(denoiser: nn.Module) -> list[Any]:
    """The layers that have adapters; found again when adapters were added or deleted, also by peft itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    configs = list(getattr(denoiser, "peft_config", {}).values())
    known, layers = _LAYERS.get(denoiser, ([], []))
    if len(known) != len(configs) or any(one is not other for one, other in zip(known, configs, strict=True)):
        layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        _LAYERS[denoiser] = configs, layers
    return layers


@contextmanager
def without_adapters(denoiser: nn.Module) -> Iterator[None]:
    """A denoiser with its adapters off, also where they are merged into the weights. Contexts may be nested.

    Nothing may be back-propagated inside. peft's own `disable_adapters` walks through all modules and clears
    `requires_grad`.
    """
    layers = adapted_layers(denoiser)
    unmerged = [(layer.get_base_layer().weight, layer._unmerged) for layer in layers if "_unmerged" in vars(layer)]
    merged_weights = [weight.data for weight, _ in unmerged]
    for weight, original in unmerged:
        weight.data = original
    try:
        with _disabled(layers):
            yield
    finally:
        for (weight, _), value in zip(unmerged, merged_weights, strict=True):
            weight.data = value


@contextmanager
def merged(denoiser: nn.Module) -> Iterator[None]:
    """A denoiser with its adapters merged into the weights, which are restored exactly; for calls without gradient.

    Adapters that are off stay off.
    """
    layers = adapted_layers(denoiser)
    active = [layer for layer in layers if not layer._disable_adapters]
    weights = [layer.get_base_layer().weight for layer in active]
    before = [weight.data for weight in weights]
    try:
        with torch.no_grad(), _disabled(layers):
            for layer, weight in zip(active, weights, strict=True):
                layer._unmerged = weight.data
                weight.data = weight.data + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
            yield
    finally:
        for layer, weight, value in zip(active, weights, before, strict=True):
            weight.data = value
            vars(layer).pop("_unmerged", None)


@contextmanager
def untrained(denoiser: Any) -> Iterator[None]:
    """Faster calls with adapters, for steps without gradient and without probability ratio.

    In fp32 the adapters are merged into the weights. Half-precision weights would round them away: there the denoiser
    runs outside autocast, which casts activations at every layer.
    """
    if denoiser.dtype == torch.float32:
        with merged(denoiser):
            yield
    else:
        with torch.autocast(denoiser.device.type, enabled=False):
            yield


@contextmanager
def _disabled(layers: Sequence[Any]) -> Iterator[None]:
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def save_lora(
    model: "TextToImageModel",
    folder: str | Path,
    base: str | Path,
    card: str = "",
    first: str = "",
    precision: str = "fp32",
    guidance_scale: float | None = None,
) -> None:
    """Write `pytorch_lora_weights.safetensors` for diffusers, `lora_comfyui.safetensors` for others, and a card.

    The first file also contains rank and `lora_alpha`, which determine the adapters' scale. Equal adapters give
    equal bytes.

    Args:
        model: Model with adapters.
        folder: Target folder.
        base: Hub id, folder or file of the base model. The card contains no paths of this machine.
        card: Text of `README.md` below the heading and the usage section.
        first: First lines of `README.md`, directly below the heading.
        precision: Precision of the base model's weights in the run.
        guidance_scale: Guidance scale of the images that the adapters were judged by.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
    from safetensors.torch import save

    part = model.lora_format.part
    layers = {name: weight.cpu().contiguous() for name, weight in adapter_state(model.denoiser).items()}
    settings = model.denoiser.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # the order of a set differs between processes
    text = json.dumps({f"{part}.{name}": value for name, value in settings.items()}, indent=2, sort_keys=True)
    # `save_lora_weights` would add a second metadata key, and safetensors does not order keys.
    weights = save(LoraBaseMixin.pack_weights(layers, part), {LORA_ADAPTER_METADATA_KEY: text})
    scale = settings["r"], settings["lora_alpha"]
    others = save(comfyui_weights(layers, part, *scale, kohya=model.lora_format.kohya))
    imports = "from importlib.resources import files\n\n" if package_path(base) else ""
    readme = CARD.format(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        imports=imports,
        pipeline=model.lora_format.pipeline,
        load=_load(base, model.lora_format.absent),
        safety=SAFETY if "safety_checker" in model.lora_format.absent and not Path(base).expanduser().is_file() else "",
        card=card,
        first=first and f"{first}\n\n",
        readers=BOTH_READ if model.lora_format.kohya else COMFYUI_READS,
        precision=precision,
        call=f"\nCall the pipeline with `{model.lora_format.call}`, as the run did." if model.lora_format.call else "",
        judged=""
        if guidance_scale is None
        else f"\nThe images below were judged at `guidance_scale={guidance_scale:g}`.",
    )
    files = {LORA_WEIGHTS: weights, COMFYUI_WEIGHTS: others, "README.md": readme.encode()}
    for name, content in files.items():
        with atomic_write(Path(folder) / name) as file:
            file.write(content)


def _load(base: str | Path, absent: Sequence[str]) -> str:
    """Python expression that loads the base model, for the card."""
    path = Path(base).expanduser()
    lacking = "".join(f", {name}=None" for name in absent if name.startswith(ENCODERS))
    if path.is_file():
        return f'from_single_file("<{public_name(path)}>", dtype=torch.float32{lacking})'
    inside = package_path(path)
    where = f'files("t2ifb") / "{inside}"' if inside else f'"<{public_name(path)}>"' if path.is_dir() else f'"{base}"'
    # Components may be stored in different precisions.
    return f"from_pretrained({where}, dtype=torch.float32{lacking})"


COMFYUI_READS = f"ComfyUI reads `{COMFYUI_WEIGHTS}`: copy it to `models/loras`"
BOTH_READ = f"""ComfyUI and AUTOMATIC1111 read `{COMFYUI_WEIGHTS}`: copy it to `models/loras` (ComfyUI) or `models/Lora`
(AUTOMATIC1111)"""
CARD = """# Adapters of a fine-tuned diffusion model

{first}LoRA of rank {rank} (lora_alpha {alpha}) for the denoiser, fine-tuned on a reward with t2ifb. In this folder:

```python
{imports}import torch
from diffusers import {pipeline}

pipeline = {pipeline}.{load}
pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")
```

The base model's weights were in {precision} in the run; the code above loads them in float32.{call}{judged}

{readers}, and load it at strength 1 on the same base model. The guidance scale is called CFG there.
{safety}
{card}
"""
SAFETY = """
The safety checker was disabled in training and for the results below. `from_pretrained` loads the base model's safety
checker unless `safety_checker=None` is given; keep it for images that others see.
"""


def exported_file(source: str | Path) -> Path:
    """The adapters' file of a run folder, of its `export/`, or the file itself.

    Raises:
        ValueError: None of these exists.
    """
    path = Path(source).expanduser()
    places = [path, path / LORA_WEIGHTS, path / "export" / LORA_WEIGHTS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(
            f"{source} has no {LORA_WEIGHTS}: expected a finished fine-tuning run, its export/ or the file"
        )
    return file


def load_lora(model: "TextToImageModel", source: str | Path) -> None:
    """Load exported adapters into a model without adapters.

    Args:
        model: The base model.
        source: A run folder, its `export/`, or the file itself.

    Raises:
        ValueError: The export is missing or belongs to another base model.
    """
    import diffusers

    file = exported_file(source)
    pipeline = getattr(diffusers, model.lora_format.pipeline)
    # The pipelines of transformers give no alphas between weights and metadata.
    state, *alphas, metadata = pipeline.lora_state_dict(
        str(file.parent), weight_name=file.name, return_lora_metadata=True
    )
    check_family(file, any(name.startswith(f"{model.lora_format.part}.") for name in state), model)
    try:
        model.denoiser.load_lora_adapter(
            state, prefix=model.lora_format.part, network_alphas=alphas[0] if alphas else None, metadata=metadata
        )
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"{file} belongs to another base model: its layers have other sizes") from error
    model.denoiser.requires_grad_(False)


def check_family(file: Path, fits: bool, model: "TextToImageModel") -> None:
    """Raise a `ValueError` if a file has no adapters of the model's denoiser."""
    if not fits:
        expected = f"adapters of a {model.lora_format.pipeline}, whose names begin with {model.lora_format.part}"
        raise ValueError(f"{file} belongs to another family of models: expected {expected}")


def start_adapters(model: "TextToImageModel", source: str | Path) -> None:
    """Set the adapters of a model, which `LoRA.add` has added, to exported ones.

    Args:
        model: The model with its adapters.
        source: A run folder, its `export/`, or the file itself, written by `save_lora`.

    Raises:
        ValueError: The export is missing, or its adapters have another rank or scale or are on other layers.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open

    file, prefix = exported_file(source), f"{model.lora_format.part}."
    with safe_open(file, "pt") as opened:
        written = json.loads((opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        state = {name.removeprefix(prefix): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if not written:
        raise ValueError(f"{file} does not say how its adapters were made: expected the export of a fine-tuning run")
    check_family(file, f"{prefix}r" in written, model)
    own = model.denoiser.peft_config["default"].to_dict()
    if (theirs := _arguments(written, prefix)) != (ours := _arguments(own)):
        raise ValueError(f"{file} has adapters of LoRA({theirs}), not LoRA({ours}): give lora=LoRA({theirs})")
    load_adapter_state(model.denoiser, state)


def _arguments(settings: Mapping[str, Any], prefix: str = "") -> str:
    """Arguments of the `LoRA` that settings of peft were made with, as code."""
    rank, alpha, targets = (settings[f"{prefix}{key}"] for key in ("r", "lora_alpha", "target_modules"))
    return f"rank={rank}, lora_alpha={float(alpha):g}, targets={sorted(targets)}"
