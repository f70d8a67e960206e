"""CLIP through `open_clip`: choice and loading of a model, and its differentiable, frozen or partly tuned encoder."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from t2ifb.scorers.clip_layers import last_layers
from t2ifb.scorers.preprocess import VERSION, preprocess, square
from t2ifb.utils.devices import computed_in, device_of, dtype_of
from t2ifb.utils.files import sha256_file

LOCAL_DIR = "local-dir:"
QUICK_GELU = "-quickgelu"


@dataclass(frozen=True)
class CLIPSource:
    """Description of a CLIP model, before it is built.

    Attributes:
        model: A model name of `open_clip`, such as `ViT-L-14-quickgelu`, or `local-dir:<folder>` with
            `open_clip_config.json`, weights and tokenizer.
        pretrained: With a model name: a tag of `open_clip`, such as `openai`, or a file (`.safetensors`, or `.pt` with
            a state dict).
        precision: Precision of the weights. Embeddings are always float32.
        quick_gelu: Activation that the file `pretrained` was trained with. Needed only for a model that exists with
            both activations and is named without `-quickgelu`: a state dict does not record the activation, and the
            wrong one gives wrong embeddings.
        device: Device for `load`; `auto` is the GPU if one exists. Scorers load the encoder on the CPU and move it as
            a whole.
        trainable_layers: Number of last layers in both towers that a reward run may tune, see `last_layers`; 0 keeps
            the encoder frozen.
        init: Preference model that a reward run starts from instead, see `t2ifb.reward_learning.warm_start`. Other
            users of the source ignore it.
    """

    model: str
    pretrained: str | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    quick_gelu: bool | None = None
    device: str = "auto"
    trainable_layers: int = 0
    init: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        dtype_of(self.precision)
        if self.trainable_layers < 0:
            raise ValueError(f"trainable_layers must be at least 0, not {self.trainable_layers}")
        if self.trainable_layers and self.precision != "fp32":
            raise ValueError(
                f"layers cannot be tuned in {self.precision}, which rounds small updates away. Set precision=fp32; "
                "for speed use trainer.precision=bf16-mixed or 16-mixed"
            )
        if self.folder is not None and self.pretrained is not None:
            raise ValueError(f"{self.model} has its own weights; remove pretrained={self.pretrained}")

    @property
    def folder(self) -> Path | None:
        """Folder of a `local-dir:` model."""
        return Path(self.model.removeprefix(LOCAL_DIR)).expanduser() if self.model.startswith(LOCAL_DIR) else None

    def fingerprint(self) -> str:
        """Everything that the embeddings depend on, as JSON: file contents, not paths. No model is built.

        `trainable_layers` is not included: the fingerprint describes the encoder at the start of a run.

        Raises:
            ValueError: Files are missing, or model and weights do not match.
        """
        identity: dict[str, Any] = {"precision": self.precision, "preprocess": VERSION}
        if self.folder is not None:
            files = sorted(p for p in _folder_files(self.folder) if p.suffix in (".json", ".txt", ".safetensors"))
            identity |= {"files": {file.name: sha256_file(file) for file in files}}
        else:
            self._check()
            weights = Path(str(self.pretrained)).expanduser()
            content = {"sha256": sha256_file(weights)} if weights.is_file() else {"tag": self.pretrained}
            identity |= {"model": self.model, **content, "quick_gelu": self._quick_gelu()}
        return json.dumps(identity, sort_keys=True)

    def load(self) -> "CLIPEncoder":
        """Build the encoder on `device`.

        Frozen encoders with one fingerprint on one device share one copy of the weights, which must not be changed in
        place. An encoder with `trainable_layers` has its own copy.

        Raises:
            ValueError: The weights are missing, cannot be downloaded, or do not match the model.
        """
        shared_as = None if self.trainable_layers else self._shared_as()
        return CLIPEncoder(self, shared_as).to(device_of(self.device))

    def _shared_as(self) -> str:
        return self.fingerprint()  # equal for sources that load the same weights

    def tokenizer(self) -> Any:
        """The tokenizer of `open_clip`."""
        import open_clip

        return open_clip.get_tokenizer(self._name)

    @property
    def _name(self) -> str:
        """The model's name in `open_clip`."""
        return self.model if self.folder is None else f"{LOCAL_DIR}{self.folder}"

    def _check(self) -> None:
        """Raise an error for combinations that would silently give wrong embeddings."""
        import open_clip

        self._config()
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.model)) or "(none)"
        if self.pretrained is None:
            raise ValueError(f"{self.model} has no weights: set pretrained=<file> or one of the tags {tags}")
        in_both_forms = open_clip.get_model_config(self.model + QUICK_GELU) is not None
        if Path(self.pretrained).expanduser().is_file():
            if in_both_forms and self.quick_gelu is None:
                raise ValueError(
                    f"{self.pretrained} does not record the activation it was trained with. OpenAI's weights need "
                    f"model={self.model}{QUICK_GELU}; for weights trained with plain GELU set "
                    f"quick_gelu=False together with model={self.model}"
                )
            return
        tag = open_clip.pretrained.get_pretrained_cfg(self.model, self.pretrained)
        if not tag:
            raise ValueError(f"pretrained={self.pretrained} is neither a file nor a tag of {self.model}: {tags}")
        if bool(tag.get("quick_gelu", False)) != self._quick_gelu():
            right = self.model.removesuffix(QUICK_GELU) + (QUICK_GELU if tag.get("quick_gelu") else "")
            raise ValueError(
                f"the weights {self.pretrained} do not match the activation of {self.model} and would give wrong "
                f"embeddings; use model={right}"
            )

    def _config(self) -> dict[str, Any]:
        import open_clip

        config: dict[str, Any] | None = open_clip.get_model_config(self.model)
        if config is None:
            raise ValueError(f"open_clip has no model {self.model!r}; `open_clip.list_models()` lists all")
        return config

    def _quick_gelu(self) -> bool:
        return bool(self._config().get("quick_gelu", False)) if self.quick_gelu is None else self.quick_gelu

    def create(self) -> tuple[nn.Module, Any]:
        """Build the `open_clip` model with its weights, and its tokenizer."""
        if self.folder is not None:
            _folder_files(self.folder)
        else:
            self._check()
        weights = None if self.pretrained is None else str(Path(self.pretrained).expanduser())
        source = self.pretrained if weights is None or not Path(weights).is_file() else weights
        try:
            return self._create(source)
        except Exception as error:  # the hub, torch, safetensors and open_clip raise various types
            raise ValueError(self._failure(error)) from error

    def _create(self, weights: str | None, **options: Any) -> tuple[nn.Module, Any]:
        import open_clip

        if self.folder is None:
            options["quick_gelu"] = self._quick_gelu()
        return open_clip.create_model(self._name, weights, precision=self.precision, **options), self.tokenizer()

    def _failure(self, error: Exception) -> str:
        """Message for weights that cannot be loaded."""
        import open_clip

        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        tag = None if self.folder else open_clip.pretrained.get_pretrained_cfg(self.model, str(self.pretrained))
        if not tag or Path(str(self.pretrained)).expanduser().is_file():
            what = self.model if self.folder else f"{self.pretrained} as {self.model}"
            hint = " OpenAI's TorchScript files are not supported; use a state dict." if "weights_only" in first else ""
            return f"cannot load {what}: {first[:300]}.{hint}"
        where = f"{tag['hf_hub'].strip('/')} on the Hugging Face hub" if tag.get("hf_hub") else tag.get("url")
        return (
            f"the weights {self.pretrained} of {self.model} are not on this machine and cannot be downloaded. Download "
            f"open_clip_model.safetensors from {where} and set pretrained=… to that file. "
            f"[{first[:200]}]"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values to rebuild the source, without the device and `init`."""
        return {key: value for key, value in asdict(self).items() if key not in ("device", "init")}


def check_folder(folder: Path) -> None:
    """Check that an `open_clip` folder has a configuration.

    Raises:
        ValueError: The folder or its configuration is missing.
    """
    if not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"{folder} is not a folder in open_clip's format: it has no open_clip_config.json")


def _folder_files(folder: Path) -> list[Path]:
    """Files of an `open_clip` folder.

    Raises:
        ValueError: The folder, its configuration or its weights are missing.
    """
    check_folder(folder)
    files = [file for file in folder.iterdir() if file.is_file()]
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"{folder} has no weights: expected open_clip_model.safetensors")
    return files


_SHARED: WeakValueDictionary[tuple[str, str], nn.Module] = WeakValueDictionary()
"""Shared frozen models in use, by sharing key and device."""


class CLIPEncoder(nn.Module):
    """CLIP on images in [0, 1] and texts. Gradients reach the images, and the weights only after `thaw`.

    Attributes:
        source: Source of the model.
        image_size: Side of the input, in pixels. Images of any size are accepted.
        embedding_dim: D.
        logit_scale: CLIP's inverse temperature, the factor on cosines.
    """

    def __init__(self, source: CLIPSource, shared_as: str | None = None) -> None:
        """Build the model and load its weights; see `CLIPSource.load`.

        Args:
            source: Source of the model.
            shared_as: Encoders with the same value share one model per device; None for a separate model.
        """
        super().__init__()
        self.source, self._shared_as = source, shared_as
        shared = None if shared_as is None else _SHARED.get((shared_as, str(device_of(source.device))))
        self.model, self._tokenizer = source.create() if shared is None else (shared, source.tokenizer())
        self.model.requires_grad_(False)
        if shared_as is not None:
            _SHARED[shared_as, str(self._device)] = self.model
        self._tuned = last_layers(self.model, source.trainable_layers) if source.trainable_layers else []
        settings: dict[str, Any] = dict(self.model.visual.preprocess_cfg)  # type: ignore[union-attr, arg-type]
        sides = {settings["size"]} if isinstance(settings["size"], int) else set(settings["size"])
        self.image_size: int = max(sides)
        if settings["resize_mode"] != "shortest" or settings["interpolation"] != "bicubic" or len(sides) > 1:
            raise ValueError(
                f"{source.model} expects images prepared with {settings['resize_mode']}, {settings['interpolation']}, "
                f"{settings['size']}; only bicubic resizing of the short side to a square is supported"
            )
        self._mean, self._std = tuple(settings["mean"]), tuple(settings["std"])
        self.logit_scale: float = float(self.model.logit_scale.exp())  # type: ignore[operator, arg-type]
        self.eval()
        with torch.no_grad():
            self.embedding_dim: int = self.encode_prompts([""]).shape[1]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: tuned layers take the frozen layers' output without dropout."""
        return super().train(False)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device  # type: ignore[assignment, union-attr]
        return device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights. Encoders that share them are unaffected and share again after the same move."""
        here = self._device
        if self._shared_as is None or _SHARED.get((self._shared_as, str(here))) is not self.model:
            return super()._apply(fn, recurse)
        kinds = {weight.dtype for weight in self.model.parameters()}
        moved = {dtype: fn(torch.empty(0, dtype=dtype, device=here)) for dtype in kinds}
        there = next(iter(moved.values())).device
        cast = any(tensor.dtype != dtype for dtype, tensor in moved.items())
        if not cast and there == here:
            return self
        key = self._shared_as, str(there)
        self.model = _applied(self.model, fn) if cast else _SHARED.get(key) or _applied(self.model, fn)
        if cast:
            self._shared_as = None
        else:
            _SHARED[key] = self.model
        return self

    def thaw(self) -> list[nn.Parameter]:
        """Enable gradients for the last `source.trainable_layers` layers and return their weights."""
        weights = dict(self.model.named_parameters())
        tuned = [weights[name] for name in self._tuned]
        for weight in tuned:
            weight.requires_grad_(True)
        return tuned

    def tuned_state(self) -> dict[str, Tensor]:
        """Weights of the trainable layers, by name. All others equal the source's."""
        weights = dict(self.model.named_parameters())
        return {name: weights[name].detach() for name in self._tuned}

    def load_tuned(self, state: Mapping[str, Tensor]) -> None:
        """Load weights returned by `tuned_state`.

        Raises:
            ValueError: The weights belong to other layers.
        """
        own = {name: weight.shape for name, weight in self.tuned_state().items()}
        if {name: weight.shape for name, weight in state.items()} != own:
            raise ValueError(f"expected weights of the last {self.source.trainable_layers} layers, got {sorted(state)}")
        self.model.load_state_dict(dict(state), strict=False)

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed B images.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            (B, D) float32, L2-normalised, differentiable with respect to the images.
        """
        pixels = preprocess(images, self.image_size, self._mean, self._std)
        encode: Any = self.model.encode_image
        return normalize(computed_in(dtype_of(self.source.precision), encode, pixels), dim=-1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Embed B texts; longer texts are truncated to the model's context.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return self.encode_tokens(self.tokenize(prompts).to(self._device))

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (B, L) of B texts, int64, truncated to the model's context."""
        tokens: Tensor = self._tokenizer(prompts)
        return tokens

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the model's context."""
        if not prompts:
            return []
        tokens = self.tokenize(list(prompts))
        length = tokens.shape[1]
        more, blank = (self._tokenizer(texts, context_length=length + 1) for texts in (list(prompts), [""]))
        # A truncated text has the end token in place of a word, or a word in place of padding.
        cut = (more[:, :length] != tokens).any(1) | (more[:, length] != blank[:, length])
        return [prompt for prompt, longer in zip(prompts, cut.tolist(), strict=True) if longer]

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed B tokenized texts from `tokenize`.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return normalize(self.model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]

    def square(self, images: Tensor) -> Tensor:
        """Resize and crop images (B, 3, H, W) in [0, 1] to (B, 3, S, S), S = `image_size`. Idempotent."""
        return square(images, self.image_size)


def _applied(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a model with `fn` applied to its tensors. The model is unchanged."""
    tensors: dict[int, Any] = {id(w): nn.Parameter(fn(w.detach()), w.requires_grad) for w in model.parameters()}
    return copy.deepcopy(model, tensors | {id(buffer): fn(buffer) for buffer in model.buffers()})
