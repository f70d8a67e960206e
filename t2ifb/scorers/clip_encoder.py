"""CLIP through `open_clip`: differentiable with respect to the images, frozen unless layers are tuned."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from t2ifb.data.devices import device_of
from t2ifb.data.precisions import computed_in, dtype_of
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.last_layers import last_layers
from t2ifb.scorers.preprocess import preprocess, square

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
        size = settings["size"]
        self.image_size: int = size if isinstance(size, int) else size[0]
        if settings["resize_mode"] != "shortest" or settings["interpolation"] != "bicubic" or _sides(size) > 1:
            raise ValueError(
                f"{source.model} expects images prepared with {settings['resize_mode']}, {settings['interpolation']}, "
                f"{size}; only bicubic resizing of the short side to a square is supported"
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


def _sides(size: int | tuple[int, ...] | list[int]) -> int:
    """Number of different sides of a size."""
    return 1 if isinstance(size, int) else len(set(size))
