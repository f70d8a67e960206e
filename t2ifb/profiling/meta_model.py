"""Diffusion model without weights: networks on the `meta` device, assembled as for a run."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch

from t2ifb.diffusion.source import DiffusionSource
from t2ifb.profiling.geometry import geometry_of
from t2ifb.utils.devices import dtype_of


@dataclass(frozen=True)
class MetaModel(DiffusionSource):
    """A source whose `load` builds the networks on the `meta` device: shapes and types, no weights.

    It differs from `DiffusionSource` only in the source of the networks; `load` assembles them as for a run.
    """

    @classmethod
    def of(cls, source: DiffusionSource) -> Self:
        """The meta model of a source."""
        return cls(**vars(source) | {"device": "meta"})

    def pipeline(self) -> Any:
        """The networks, and a tokenizer that returns the same tokens for every text.

        Raises:
            ValueError: As in `geometry_of`.
        """
        geometry = geometry_of(self)
        with torch.device("meta"):
            networks = {
                "unet": geometry.unet_network(),
                "vae": geometry.vae_network(),
                "text_encoder": geometry.text_network(),
            }
        for network in networks.values():
            torch.nn.Module.to(network, dtype_of(self.precision))
        scheduler = SimpleNamespace(config=geometry.scheduler)
        return SimpleNamespace(**networks, tokenizer=BlankTokenizer(geometry.context), scheduler=scheduler)

    def _tiny(self) -> Any:
        if self.tiny_decoder is None:
            return None
        with torch.device("meta"):
            return geometry_of(self).tiny_network()


class BlankTokenizer:
    """Returns the same ids for every text, because costs do not depend on the words.

    Attributes:
        model_max_length: Number of tokens L.
    """

    def __init__(self, length: int) -> None:
        """Return ids (B, `length`) for B texts."""
        self.model_max_length = length

    def __call__(self, texts: list[str], **options: Any) -> Any:
        """Token ids as a tensor `input_ids`."""
        return SimpleNamespace(input_ids=torch.zeros(len(texts), self.model_max_length, dtype=torch.int64))
