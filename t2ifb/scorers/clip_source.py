"""Which CLIP: what it is known by, whether model and weights fit together, and where its weights come from."""

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
    """Which CLIP, before its weights are built.

    Attributes:
        model: A model name of `open_clip`, such as `ViT-L-14-quickgelu`, or `local-dir:<folder>` with
            `open_clip_config.json`, weights and tokenizer.
        pretrained: With a model name: a tag of `open_clip`, such as `openai`, or a file (`.safetensors`, or `.pt` with
            a state dict).
        precision: Of the weights; embeddings are float32 always.
        quick_gelu: What the file `pretrained` was trained with. Needed only for a model that exists in both forms and
            is named without `-quickgelu`: a state dict does not tell, and the wrong one gives wrong embeddings.
        device: Where `load` puts the encoder; `auto` is the GPU if there is one. Scorers load it on the CPU and are
            moved as a whole.
        trainable_layers: How many of the last layers of both towers a reward run may tune, see `last_layers`; 0 leaves
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
                f"layers are tuned in fp32, not {self.precision}: updates would be rounded away. Give precision=fp32, "
                "and trainer.precision=bf16-mixed or 16-mixed for speed"
            )
        if self.folder is not None and self.pretrained is not None:
            raise ValueError(f"{self.model} has its own weights; leave pretrained={self.pretrained} out")

    @property
    def folder(self) -> Path | None:
        """The folder of a `local-dir:` model."""
        return Path(self.model.removeprefix(LOCAL_DIR)).expanduser() if self.model.startswith(LOCAL_DIR) else None

    def fingerprint(self) -> str:
        """What the embeddings depend on, as JSON: contents of files and not where they are; no weights are built.

        Layers that are to be tuned do not count: this is the encoder that a run starts from.

        Raises:
            ValueError: Files are missing, or model and weights do not fit together.
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

        Frozen encoders of one fingerprint on one device share one copy of the weights, so they must not be changed in
        place. An encoder with `trainable_layers` has its own.

        Raises:
            ValueError: The weights are missing, cannot be downloaded, or do not fit the model.
        """
        from t2ifb.scorers.clip_encoder import CLIPEncoder

        shared_as = None if self.trainable_layers else self._shared_as()
        return CLIPEncoder(self, shared_as).to(device_of(self.device))

    def _shared_as(self) -> str:
        """Equal for sources that load the same weights."""
        return self.fingerprint()

    def tokenizer(self) -> Any:
        """The tokenizer of `open_clip`."""
        import open_clip

        return open_clip.get_tokenizer(self._name)

    @property
    def _name(self) -> str:
        """What `open_clip` calls the model."""
        return self.model if self.folder is None else f"{LOCAL_DIR}{self.folder}"

    def _check(self) -> None:
        """Refuse what would silently give wrong embeddings."""
        import open_clip

        self._config()
        if self.pretrained is None:
            raise ValueError(
                f"{self.model} without weights is random: give pretrained=<file> or one of the tags "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(self.model)) or '(none)'}"
            )
        in_both_forms = open_clip.get_model_config(self.model + QUICK_GELU) is not None
        if Path(self.pretrained).expanduser().is_file():
            if in_both_forms and self.quick_gelu is None:
                raise ValueError(
                    f"{self.pretrained} does not say which activation it was trained with. OpenAI's weights need "
                    f"model={self.model}{QUICK_GELU}; for weights that were trained with plain GELU give "
                    f"quick_gelu=false beside model={self.model} (+encoder.quick_gelu=false)"
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
                f"the weights {self.pretrained} do not fit the activation of {self.model} and would give wrong "
                f"embeddings; use model={right}"
            )

    def _config(self) -> dict[str, Any]:
        import open_clip

        config: dict[str, Any] | None = open_clip.get_model_config(self.model)
        if config is None:
            raise ValueError(f"open_clip has no model {self.model!r}; `open_clip.list_models()` gives all")
        return config

    def _quick_gelu(self) -> bool:
        return bool(self._config().get("quick_gelu", False)) if self.quick_gelu is None else self.quick_gelu

    def create(self) -> tuple[nn.Module, Any]:
        """The model of `open_clip` with its weights, and its tokenizer."""
        if self.folder is not None:
            _folder_files(self.folder)
        else:
            self._check()
        weights = None if self.pretrained is None else str(Path(self.pretrained).expanduser())
        source = self.pretrained if weights is None or not Path(weights).is_file() else weights
        try:
            return self._create(source)
        except Exception as error:  # from the hub, torch, safetensors or open_clip: anything
            raise ValueError(self._failure(error)) from error

    def _create(self, weights: str | None, **options: Any) -> tuple[nn.Module, Any]:
        import open_clip

        if self.folder is None:
            options["quick_gelu"] = self._quick_gelu()
        return open_clip.create_model(self._name, weights, precision=self.precision, **options), self.tokenizer()

    def _failure(self, error: Exception) -> str:
        """What to tell when the weights cannot be had."""
        import open_clip

        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        tag = None if self.folder else open_clip.pretrained.get_pretrained_cfg(self.model, str(self.pretrained))
        if not tag or Path(str(self.pretrained)).expanduser().is_file():
            what = self.model if self.folder else f"{self.pretrained} as {self.model}"
            hint = " OpenAI's own TorchScript files are not read; use a state dict." if "weights_only" in first else ""
            return f"cannot load {what}: {first[:300]}.{hint}"
        where = f"{tag['hf_hub'].strip('/')} on the Hugging Face hub" if tag.get("hf_hub") else tag.get("url")
        return (
            f"the weights {self.pretrained} of {self.model} are not on this machine and cannot be downloaded. Fetch "
            f"open_clip_model.safetensors of {where} and give pretrained=<that file> (encoder.pretrained=<that file> "
            f"on the command line). [{first[:200]}]"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plain values that build it again; the device is not one of them."""
        return {key: value for key, value in asdict(self).items() if key != "device"}


def check_folder(folder: Path) -> None:
    """Find the configuration of an `open_clip` folder.

    Raises:
        ValueError: There is no such folder, or it lacks one.
    """
    if not (folder / "open_clip_config.json").is_file():
        raise ValueError(f"{folder} is not a folder in open_clip's form: it has no open_clip_config.json")


def _folder_files(folder: Path) -> list[Path]:
    """The files of an `open_clip` folder.

    Raises:
        ValueError: There is no such folder, or it lacks configuration or weights.
    """
    check_folder(folder)
    files = [file for file in folder.iterdir() if file.is_file()]
    if not any(file.suffix == ".safetensors" for file in files):
        raise ValueError(f"{folder} has no weights: expected open_clip_model.safetensors")
    return files
