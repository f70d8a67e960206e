"""Text encoders of a pipeline. They run once per distinct prompt, and can leave memory before training."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from t2ifb.diffusion.model import Conditioning
from t2ifb.utils.files import atomic_write
from t2ifb.utils.fingerprints import code_hash, fingerprint, library_versions, weights_hash

REMEMBERED_BYTES = 2e9
"""Bytes of encoded prompts that are kept in memory, the latest ones."""

States = Callable[[Mapping[str, Any], Mapping[str, Tensor], Any], Conditioning]
"""The conditioning of one prompt from the text encoders, its tokens (1, L) for each of them, and settings."""


class TextEncoders(nn.Module):
    """Text encoders with their tokenizers. The output for a prompt does not depend on the other prompts.

    Attributes:
        encoders: The networks by part of the pipeline; empty after `encode_ahead` has released them.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        states: States,
        settings: Any = None,
        zeros_for_empty: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Store the parts of a pipeline.

        Args:
            encoders: Networks of `transformers` by part.
            tokenizers: Tokenizer of each network, by the network's part.
            states: Gives the conditioning of one prompt.
            settings: Its last argument. `settings.lengths` has the number of tokens by part where it is not the
                tokenizer's own.
            zeros_for_empty: Give the empty prompt a conditioning of zeros.
            folder: Folder in which `encode_ahead` keeps encoded prompts. It then releases the encoders.
        """
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self._tokenizers, self._folder, self._zeros_for_empty = dict(tokenizers), folder, zeros_for_empty
        self._states, self._settings = states, settings
        self._lengths = {name: int(tokenizer.model_max_length) for name, tokenizer in tokenizers.items()}
        self._lengths |= {name: n for name, n in getattr(settings, "lengths", {}).items() if name in tokenizers}
        self._remembered: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes, self._released = 0, False
        self._place: Path | None = None
        self._assumed: Conditioning | None = None

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts on the CPU.

        Raises:
            ValueError: The encoders were released, and a prompt was not encoded before.
        """
        return Conditioning.cat([self._of(prompt) for prompt in prompts])

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts with more tokens than the longest context."""
        name = max(self._lengths, key=self._lengths.__getitem__)
        ids = self._tokenizers[name](list(prompts), padding=False, truncation=False, verbose=False).input_ids
        return sum(len(each) > self._lengths[name] for each in ids)

    def encode_ahead(self, prompts: Sequence[str], device: torch.device | str) -> None:
        """Encode prompts and the empty one on a device, keep them on disk, and release the encoders.

        Does nothing without a folder.
        """
        if self._folder is None or self._released:
            return
        weights = [weights_hash(encoder) for encoder in self.encoders.values()]
        code = code_hash(getattr(self._states, "__module__", ""))
        settings = repr(self._settings), [repr(getattr(encoder, "config", None)) for encoder in self.encoders.values()]
        known = fingerprint(weights, code, code_hash(__name__), settings, library_versions(), torch.device(device).type)
        self._place = self._folder / known[:16]
        self.encoders.to(device)
        for prompt in dict.fromkeys(["", *prompts]):
            self._of(prompt)
        self._release()

    def assume_equal(self) -> None:
        """Release the encoders and take the output for the empty prompt for that of every prompt, to count costs."""
        self._assumed = self._of("")
        self._release()

    def _release(self) -> None:
        self.encoders, self._released = nn.ModuleDict(), True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _of(self, prompt: str) -> Conditioning:
        if self._assumed is not None:
            return self._assumed
        if prompt in self._remembered:
            self._remembered.move_to_end(prompt)
            return self._remembered[prompt]
        tokens = self._tokens(prompt)
        file = None if self._place is None else self._place / f"{_key(tokens)}.safetensors"
        if file is not None and file.is_file():
            found = Conditioning(load_file(file))
        elif self._released:
            raise ValueError(f"the text encoders were released before {prompt!r} was encoded; load the model again")
        else:
            found = self._run(tokens)
            if file is not None:
                with atomic_write(file) as opened:
                    opened.write(save({name: each.contiguous() for name, each in found.tensors.items()}))
        if not prompt and self._zeros_for_empty:
            found = Conditioning({name: torch.zeros_like(each) for name, each in found.tensors.items()})
        return self._remember(prompt, found)

    @torch.no_grad()
    def _run(self, tokens: Mapping[str, Tensor]) -> Conditioning:
        """Encode one prompt, outside autocast; its states do not depend on the time of the first call."""
        device = next(self.encoders.parameters()).device
        with torch.autocast(device.type, enabled=False):
            on_device = {name: each.to(device) for name, each in tokens.items()}
            found = self._states(dict(self.encoders.items()), on_device, self._settings)
        return Conditioning({name: each.cpu() for name, each in found.tensors.items()})

    def _tokens(self, prompt: str) -> dict[str, Tensor]:
        """Tokens (1, L) of a prompt for each encoder."""
        return {
            name: tokenizer(
                [prompt], padding="max_length", max_length=self._lengths[name], truncation=True, return_tensors="pt"
            ).input_ids
            for name, tokenizer in self._tokenizers.items()
        }

    def _remember(self, prompt: str, found: Conditioning) -> Conditioning:
        self._remembered[prompt] = found
        self._bytes += found.nbytes
        while self._bytes > REMEMBERED_BYTES and len(self._remembered) > 1:
            self._bytes -= self._remembered.popitem(last=False)[1].nbytes
        return found


def _key(tokens: Mapping[str, Tensor]) -> str:
    """Name of a prompt's file: a hash of its tokens."""
    digest = hashlib.sha256()
    for name, ids in tokens.items():
        digest.update(f"{name} {ids.tolist()}".encode())
    return digest.hexdigest()[:40]
