"""Learned reward: an encoder and a trained head, from pixels to one number."""

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
        name: Name in tables.
    """

    name = "reward model"

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        """Combine encoder and head.

        Args:
            encoder: Frozen, or with tuned layers.
            head: Maps image embeddings (B, D) and prompt embeddings (B, D) to (B,); see `heads`.
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
            encoder: The encoder, if its weights have moved since training. A built encoder is used as it is if neither
                it nor the export has tuned layers.

        Raises:
            ValueError: The export is missing or has another format, or the encoder differs from the one that the head
                was trained on.
        """
        export = read_export(source)
        wanted = encoder if encoder is not None else export.encoder
        found = wanted.source if isinstance(wanted, CLIPEncoder) else wanted
        if found.fingerprint() != export.fingerprint:
            raise ValueError(
                f"{export.folder} was trained on another encoder than {found.model}: the weights, their precision or "
                "the preprocessing differ. Pass `encoder` with the weights used in training, or train the model again."
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
        """Build the model without encoder weights, see `scorers.outline`; `untrained` if the export is missing."""
        from t2ifb.scorers.outline import CLIPOutline

        if not Path(source).expanduser().exists():
            return untrained(encoder)
        export = read_export(source)
        return cls(CLIPOutline.of(encoder or export.encoder).load(), export.build_head())

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write `reward.safetensors`, `config.json` and a model card; only tuned layers of the encoder are included.

        Args:
            folder: Target folder; created if missing.
            card: Text of the model card below its heading: data, metrics, limits.

        Raises:
            ValueError: The encoder is not a `CLIPEncoder`, so it could not be rebuilt.
        """
        if not isinstance(self.encoder, CLIPEncoder):
            raise ValueError(f"an export needs a CLIPEncoder, not {type(self.encoder).__name__}")
        write_export(folder, self.head, self.encoder.source, card, self.encoder.tuned_state())

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, unbounded. Only differences for the same prompt are meaningful.
        """
        prompt_embeddings = self.encoder.encode_prompts(prompts)
        rewards: Tensor = self.head(self.encoder.encode_images(images), prompt_embeddings)
        return rewards.float()
