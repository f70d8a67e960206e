"""Learned reward: an encoder and a trained head, from pixels to one number, and its exported files."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file, save
from torch import Tensor, nn

import t2ifb
from t2ifb.data.embeddings import Encoder, PairEncoder, embed
from t2ifb.data.storage.hub import is_hub_id
from t2ifb.scorers.clip import LOCAL_DIR, CLIPEncoder, CLIPSource
from t2ifb.scorers.pair_encoder import KIND, ImageRewardSource, PairStates
from t2ifb.utils.files import atomic_write, package_path, public_name, sha256_file

FORMAT_VERSION = 2
WEIGHTS, CONFIG, CARD = "reward.safetensors", "config.json", "README.md"
HEAD, ENCODER = "head.", "encoder."
"""Name prefixes of the weights: head, and tuned encoder layers."""
PACKAGE = "{t2ifb}"
"""Placeholder for this package's folder, which contains the encoder of the `shapes` domain."""
Source: TypeAlias = CLIPSource | ImageRewardSource
"""Sources of a reward model's encoder."""
BuiltEncoder: TypeAlias = CLIPEncoder | PairStates
"""Encoders that `Source` builds."""
CLIP = "clip"
KINDS: dict[str, Callable[..., Source]] = {CLIP: CLIPSource, KIND: ImageRewardSource}
"""Sources by the `kind` in an export."""


@dataclass(frozen=True)
class Export:
    """An exported reward model, read but not built.

    Attributes:
        folder: Folder of the export.
        head: `class` and `arguments` of the head.
        encoder: The encoder's source.
        fingerprint: Fingerprint of the encoder that the head was trained on.
    """

    folder: Path
    head: dict[str, Any]
    encoder: Source
    fingerprint: str

    def build_head(self) -> nn.Module:
        """Build the head with its weights.

        Raises:
            ValueError: The head's class does not exist or does not match the weights.
        """
        try:
            module, _, name = str(self.head["class"]).rpartition(".")
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{self.folder / CONFIG}: the head {self.head['class']} does not exist") from error
        if not (
            isinstance(kind, type) and issubclass(kind, nn.Module)
        ):  # a downloaded file must not call arbitrary code
            raise ValueError(f"{self.folder / CONFIG}: {self.head['class']} is not an nn.Module")
        if "embedding_dim" not in signature(kind).parameters:  # `ModuleScore` is a module, and calls what it is given
            raise ValueError(f"{self.folder / CONFIG}: {self.head['class']} is no head: it takes no embedding_dim")
        try:
            head = kind(**self.head["arguments"])
            head.load_state_dict(self._weights(HEAD))
        except Exception as error:  # safetensors, torch and heads raise different types
            raise ValueError(f"{self.folder / WEIGHTS} does not match its config.json: {error}") from error
        return head

    def tuned(self) -> dict[str, Tensor]:
        """Weights of the tuned encoder layers, by name."""
        return self._weights(ENCODER)

    def _weights(self, part: str) -> dict[str, Tensor]:
        try:
            weights = load_file(self.folder / WEIGHTS)
        except Exception as error:  # safetensors' error derives from Exception only
            raise ValueError(f"{self.folder / WEIGHTS} cannot be read: {error}") from error
        return {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}


def write_export(
    folder: str | Path, head: nn.Module, encoder: Source, card: str = "", tuned: Mapping[str, Tensor] | None = None
) -> None:
    """Write an export. The configuration is written last and so marks a complete export.

    Args:
        folder: Target folder; created if missing.
        head: Head with its `arguments`.
        encoder: Encoder that the head was trained on.
        card: Text of the model card below its heading.
        tuned: Weights of tuned encoder layers, see `CLIPEncoder.tuned_state`.
    """
    folder = Path(folder)
    named = {HEAD + name: weight for name, weight in head.state_dict().items()}
    named |= {ENCODER + name: weight for name, weight in (tuned or {}).items()}
    state = {name: weight.detach().cpu().contiguous() for name, weight in named.items()}
    config = {
        "format_version": FORMAT_VERSION,
        "head": {"class": f"{type(head).__module__}.{type(head).__qualname__}", "arguments": head.arguments},
        "encoder": _portable(encoder),
        "encoder_fingerprint": encoder.fingerprint(),
    }
    (folder / CONFIG).unlink(missing_ok=True)
    for name, content in (
        (WEIGHTS, save(state, metadata={"format": "pt"})),
        (CARD, _card(config, encoder, card).encode()),
        (CONFIG, (json.dumps(config, indent=2) + "\n").encode()),
    ):
        with atomic_write(folder / name) as file:
            file.write(content)


def read_export(source: str | Path) -> Export:
    """Find and read an export, without its weights.

    Args:
        source: A folder, a run folder, its `reward.safetensors`, or a hub id.

    Raises:
        ValueError: The export is missing or has another format.
    """
    folder = _find(source)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (version := config["format_version"]) != FORMAT_VERSION:
            raise ValueError(
                f"{folder} has format version {version}, but this version reads {FORMAT_VERSION}; train the model again"
            )
        spec = dict(config["encoder"])
        spec["model"] = str(spec["model"]).replace(PACKAGE, str(_package()))
        kind = KINDS[spec.pop("kind", CLIP)]
        return Export(folder, dict(config["head"]), kind(**spec), str(config["encoder_fingerprint"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is not the configuration of a reward model: {error!r}") from error


def export_hash(folder: str | Path) -> str:
    """SHA-256 of an export's weights."""
    return sha256_file(Path(folder) / WEIGHTS)


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.name == WEIGHTS and path.is_file():
        path = path.parent
    for folder in (path, path / "export"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if path.exists():
        unfinished = any((path / name).is_dir() for name in (".hydra", "checkpoints"))
        hint = " The run is not finished: continue it with `resume`." if unfinished else ""
        raise ValueError(
            f"{source} is not a reward model: neither it nor its export/ has {CONFIG} and {WEIGHTS}.{hint}"
        )
    if not is_hub_id(source):
        raise ValueError(f"{source} does not exist; expected a run folder, an exported reward model or a hub id")
    return _download(source)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[WEIGHTS, CONFIG, CARD]))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{hub_id} is not a folder and cannot be downloaded from the Hugging Face Hub ({error})"
        ) from error


def _package() -> Path:
    return Path(t2ifb.__file__).resolve().parent


def _portable(encoder: Source) -> dict[str, Any]:
    """The encoder's arguments, without paths of this machine where possible."""
    spec = encoder.to_dict()
    if encoder.folder is not None:
        inside = package_path(encoder.folder)
        before = LOCAL_DIR if encoder.model.startswith(LOCAL_DIR) else ""
        spec["model"] = before + (f"{PACKAGE}/{inside}" if inside else str(encoder.folder.resolve()))
    elif encoder.pretrained is not None and (file := Path(encoder.pretrained).expanduser()).is_file():
        spec["pretrained"] = str(file.resolve())
    return spec


def _state(trainable_layers: int) -> str:
    if not trainable_layers:
        return "frozen, not included in this folder"
    return f"last {trainable_layers} layers tuned and included in this folder, the others not included"


def _card(config: dict[str, Any], encoder: Source, text: str) -> str:
    """Model card in the hub's format, without paths of this machine."""
    model = encoder.model if encoder.folder is None else public_name(encoder.folder)
    weights = f" with `{public_name(encoder.pretrained)}`" if encoder.pretrained else ""
    return (
        "---\nlibrary_name: t2ifb\npipeline_tag: image-classification\ntags: [reward-model, text-to-image]\n---\n\n"
        "# A reward model for text-to-image generation\n\n"
        "The model maps an image and a prompt to a number. Of two images for the same prompt, people are expected to "
        "prefer the one with the higher number. Numbers for different prompts are not comparable.\n\n"
        "```python\nfrom t2ifb.scorers import RewardModel\n\n"
        'reward = RewardModel.from_pretrained("<this folder>")\n'
        "scores = reward(images, prompts)  # images (B, 3, H, W) in [0, 1], B prompts -> (B,)\n```\n\n"
        f"- Head: `{config['head']['class']}` with `{json.dumps(config['head']['arguments'])}`.\n"
        f"- Encoder, {_state(config['encoder']['trainable_layers'])}: `{model}`{weights}.\n"
        + (f"\n{text.strip()}\n" if text.strip() else "")
    )


class RewardModel(nn.Module):
    """A reward r(x, z) of images x for prompts z (PAPER, stage 1), differentiable with respect to the images.

    Attributes:
        name: Name in tables.
    """

    name = "reward model"

    def __init__(self, encoder: Encoder | PairEncoder, head: nn.Module) -> None:
        """Combine encoder and head.

        Args:
            encoder: Frozen, or with tuned layers.
            head: Maps image embeddings (B, D) and prompt embeddings (B, D) to (B,), or what `embed` gives; see `heads`.
        """
        super().__init__()
        self.encoder = encoder
        self.head = head

    @classmethod
    def from_pretrained(cls, source: str | Path, encoder: Source | BuiltEncoder | None = None) -> "RewardModel":
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
        found = wanted.source if isinstance(wanted, (CLIPEncoder, PairStates)) else wanted
        if found.fingerprint() != export.fingerprint:
            raise ValueError(
                f"{export.folder} was trained on another encoder than {found.model}: the weights, their precision or "
                "the preprocessing differ. Pass `encoder` with the weights used in training, or train the model again."
            )
        tuned = export.encoder.trainable_layers
        head = export.build_head()
        if isinstance(wanted, (CLIPEncoder, PairStates)) and not tuned and not found.trainable_layers:
            return cls(wanted, head).eval().requires_grad_(False)
        built = replace(found, trainable_layers=tuned, device="cpu").load()
        if isinstance(built, CLIPEncoder):
            built.load_tuned(export.tuned())
        return cls(built, head).eval().requires_grad_(False)

    @classmethod
    def on_meta(
        cls,
        source: str | Path,
        encoder: CLIPSource | None = None,
        *,
        untrained: "Callable[[CLIPSource | None], RewardModel]",
    ) -> "RewardModel":
        """Build the model without encoder weights, see `scorers.meta`; `untrained` if the export is missing."""
        from t2ifb.scorers.meta import MetaCLIP

        if not Path(source).expanduser().exists():
            return untrained(encoder)
        export = read_export(source)
        found = encoder or export.encoder
        built = MetaCLIP.of(found).load() if isinstance(found, CLIPSource) else found.on_meta()
        return cls(built, export.build_head())

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Write `reward.safetensors`, `config.json` and a model card; only tuned layers of the encoder are included.

        Args:
            folder: Target folder; created if missing.
            card: Text of the model card below its heading: data, metrics, limits.

        Raises:
            ValueError: The encoder has no source, so it could not be rebuilt.
        """
        if not isinstance(self.encoder, (CLIPEncoder, PairStates)):
            raise ValueError(f"an export needs an encoder with a source, not {type(self.encoder).__name__}")
        tuned = self.encoder.tuned_state() if isinstance(self.encoder, CLIPEncoder) else {}
        write_export(folder, self.head, self.encoder.source, card, tuned)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, unbounded. Only differences for the same prompt are meaningful.
        """
        rewards: Tensor = self.head(*embed(self.encoder, images, prompts))
        return rewards.float()
