"""The learned reward: an encoder and a trained head, from pixels to one number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from t2ifb.data.encoder import Encoder
from t2ifb.scorers.clip_encoder import CLIPEncoder
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.reward_files import read_export, write_export


class RewardModel(nn.Module):
    """A reward r(x, z) of images x for prompts z (PAPER, stage 1), differentiable with respect to the images.

    Attributes:
        name: How tables call it.
    """

    name = "reward model"

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        """Put the parts together.

        Args:
            encoder: Frozen, or with tuned layers.
            head: Takes image embeddings (B, D) and prompt embeddings (B, D), gives (B,); see `heads`.
        """
        super().__init__()
        self.encoder = encoder
        self.head = head

    @classmethod
    def from_pretrained(cls, source: str | Path, encoder: CLIPSource | CLIPEncoder | None = None) -> "RewardModel":
        """Load an exported reward model, in evaluation mode and without gradients for its weights.

        Args:
            source: A folder that `save_pretrained` wrote, a run folder (its `export/` is read), the
                `reward.safetensors` in one of them, or a hub id.
            encoder: The encoder, when its weights are elsewhere on this machine than where it was trained. One that is
                built is taken as it is if neither it nor the export has tuned layers.

        Raises:
            ValueError: There is no such export, it is of another format, or the encoder is not the one that the head
                was trained on.
        """
        export = read_export(source)
        wanted = encoder if encoder is not None else export.encoder
        found = wanted.source if isinstance(wanted, CLIPEncoder) else wanted
        if found.fingerprint() != export.fingerprint:
            raise ValueError(
                f"{export.folder} was trained on another encoder than {found.model}: its weights, their precision or "
                "the preprocessing differ. Give `encoder` with the weights that it was trained on, or train it again."
            )
        tuned = export.encoder.trainable_layers
        head = export.build_head()
        if isinstance(wanted, CLIPEncoder) and not tuned and not found.trainable_layers:
            built = wanted
        else:
            built = replace(found, trainable_layers=tuned, device="cpu").load()
            built.load_tuned(export.tuned())
        return cls(built, head).eval().requires_grad_(False)

    @classmethod
    def outline(
        cls,
        source: str | Path,
        encoder: CLIPSource | None = None,
        *,
        untrained: "Callable[[CLIPSource | None], RewardModel]",
    ) -> "RewardModel":
        """The same without the encoder's weights, see `scorers.outline`; `untrained` if the export is not here."""
        from t2ifb.scorers.outline import CLIPOutline

        if not Path(source).expanduser().exists():
            return untrained(encoder)
        export = read_export(source)
        return cls(CLIPOutline.of(encoder or export.encoder).load(), export.build_head())

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write `reward.safetensors`, `config.json` and a model card; of the encoder only tuned layers are copied.

        Args:
            folder: Where to; made if it is not there.
            card: Text of the model card below its heading: data, figures, limits.

        Raises:
            ValueError: The encoder is not a `CLIPEncoder`, so nothing could tell how to build it again.
        """
        if not isinstance(self.encoder, CLIPEncoder):
            raise ValueError(f"only a CLIPEncoder can be named in an export, not {type(self.encoder).__name__}")
        write_export(folder, self.head, self.encoder.source, card, self.encoder.tuned_state())

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, unbounded; only differences for the same prompt mean something.
        """
        prompt_embeddings = self.encoder.encode_prompts(prompts)
        rewards: Tensor = self.head(self.encoder.encode_images(images), prompt_embeddings)
        return rewards.float()
