"""CLIP through `open_clip`: on tensors, differentiable with respect to the images, frozen unless it is to be tuned."""

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
"""Frozen models that are in use, by what they are shared as and their device."""


class CLIPEncoder(nn.Module):
    """A CLIP that takes images in [0, 1] and texts; gradients reach the images, and its weights only after `thaw`.

    Attributes:
        source: What it was built from.
        image_size: Side of its input, in pixels. Images of any size are taken.
        embedding_dim: D.
        logit_scale: What CLIP multiplies cosines with (its inverse temperature).
    """

    def __init__(self, source: CLIPSource, shared_as: str | None = None) -> None:
        """Build the model and load its weights; see `CLIPSource.load`.

        Args:
            source: Which CLIP.
            shared_as: Encoders with the same value share one model per device; None for a model of its own.
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
                f"{source.model} wants its images prepared by {settings['resize_mode']}, {settings['interpolation']}, "
                f"{size}; only bicubic resizing of the short side to a square is supported"
            )
        self._mean, self._std = tuple(settings["mean"]), tuple(settings["std"])
        self.logit_scale: float = float(self.model.logit_scale.exp())  # type: ignore[operator, arg-type]
        self.eval()
        with torch.no_grad():
            self.embedding_dim: int = self.encode_prompts([""]).shape[1]

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: what is tuned goes on from what the frozen layers give, without noise."""
        return super().train(False)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.model.logit_scale.device  # type: ignore[assignment, union-attr]
        return device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the weights. Encoders that share them keep theirs, and share again once moved alike."""
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
        """Let gradients reach the last `source.trainable_layers` layers; gives their weights."""
        weights = dict(self.model.named_parameters())
        tuned = [weights[name] for name in self._tuned]
        for weight in tuned:
            weight.requires_grad_(True)
        return tuned

    def tuned_state(self) -> dict[str, Tensor]:
        """The weights of the layers that may be tuned, by name; the others are those of the source."""
        weights = dict(self.model.named_parameters())
        return {name: weights[name].detach() for name in self._tuned}

    def load_tuned(self, state: Mapping[str, Tensor]) -> None:
        """Put in weights that `tuned_state` gave.

        Raises:
            ValueError: They are of other layers.
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
        """Embed B texts; what is longer than the model's context is cut off.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return self.encode_tokens(self.tokenize(prompts).to(self._device))

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Ids (B, L) of B texts, int64; what is longer than the model's context is cut off."""
        tokens: Tensor = self._tokenizer(prompts)
        return tokens

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the model's context."""
        if not prompts:
            return []
        tokens = self.tokenize(list(prompts))
        length = tokens.shape[1]
        more, blank = (self._tokenizer(texts, context_length=length + 1) for texts in (list(prompts), [""]))
        # A text that is cut off has an end token in the place of a word, or a word in the place of padding.
        cut = (more[:, :length] != tokens).any(1) | (more[:, length] != blank[:, length])
        return [prompt for prompt, longer in zip(prompts, cut.tolist(), strict=True) if longer]

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed B texts, given as `tokenize` gives them.

        Returns:
            (B, D) float32, L2-normalised.
        """
        return normalize(self.model.encode_text(tokens).float(), dim=-1)  # type: ignore[operator]

    def square(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] as they are seen, (B, 3, S, S) with S the `image_size`; done twice is once."""
        return square(images, self.image_size)


def _applied(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a model whose tensors are `fn` of the model's; the model itself stays."""
    tensors: dict[int, Any] = {id(w): nn.Parameter(fn(w.detach()), w.requires_grad) for w in model.parameters()}
    return copy.deepcopy(model, tensors | {id(buffer): fn(buffer) for buffer in model.buffers()})


def _sides(size: int | tuple[int, ...] | list[int]) -> int:
    """How many different sides a size has."""
    return 1 if isinstance(size, int) else len(set(size))
