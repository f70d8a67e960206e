"""Choice of a CLIP model: its name, checks of model and weights, and loading."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from t2ifb.data.devices import device_of
from t2ifb.data.files import sha256_file
from t2ifb.data.precisions import dtype_of
from t2ifb.scorers.preprocess import VERSION

if TYPE_CHECKING:
    from t2ifb.scorers.clip_encoder import CLIPEncoder

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
    """

    model: str
    pretrained: str | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    quick_gelu: bool | None = None
    device: str = "auto"
    trainable_layers: int = 0

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
        from t2ifb.scorers.clip_encoder import CLIPEncoder

        shared_as = None if self.trainable_layers else self._shared_as()
        return CLIPEncoder(self, shared_as).to(device_of(self.device))

    def _shared_as(self) -> str:
        """Sharing key: equal for sources that load the same weights."""
        return self.fingerprint()

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
        if self.pretrained is None:
            raise ValueError(
                f"{self.model} has no weights: set pretrained=<file> or one of the tags "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(self.model)) or '(none)'}"
            )
        in_both_forms = open_clip.get_model_config(self.model + QUICK_GELU) is not None
        if Path(self.pretrained).expanduser().is_file():
            if in_both_forms and self.quick_gelu is None:
                raise ValueError(
                    f"{self.pretrained} does not record the activation it was trained with. OpenAI's weights need "
                    f"model={self.model}{QUICK_GELU}; for weights trained with plain GELU set "
                    f"quick_gelu=false together with model={self.model} (+encoder.quick_gelu=false)"
                )
            return
        tag = open_clip.pretrained.get_pretrained_cfg(self.model, self.pretrained)
        if not tag:
            raise ValueError(
                f"pretrained={self.pretrained} is neither a file nor a tag of {self.model}; its tags are "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(self.model)) or '(none)'}"
            )
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
            f"open_clip_model.safetensors from {where} and set pretrained=<that file> (encoder.pretrained=<that file> "
            f"on the command line). [{first[:200]}]"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values to rebuild the source, without the device."""
        return {key: value for key, value in asdict(self).items() if key != "device"}


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
