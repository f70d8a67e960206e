"""Scorers without weights: their networks on the `meta` device, from configuration or from the shapes in a file.

A scorer built here is of its own class and can be called on `meta` tensors, within a `DryRun`: what it costs is then
what the real one does. Nothing is downloaded, and of a file that is here only names and shapes are read.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

from t2ifb.scorers.bert_prompts import MAX_TOKENS
from t2ifb.scorers.clip_source import CLIPSource, dtype_of
from t2ifb.scorers.weights import beside

BLIP_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
BLIP_TEXT = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "bos_token_id": None,
    "sep_token_id": None,
}  # fmt: skip
"""Of the published BLIP (ViT-L) and ImageReward; ids that only generation needs are left out."""
PICK_SCORE = {
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
    "projection_dim": 1024,
}  # fmt: skip
"""Of the published PickScore (ViT-H/14)."""

Node = Mapping[str, Any]
Head = Callable[[int], nn.Module]


@dataclass(frozen=True)
class CLIPOutline(CLIPSource):
    """A source whose `load` builds the network on the `meta` device, without its weights."""

    device: str = "meta"

    @classmethod
    def of(cls, node: Node) -> Self:
        """The outline of a `CLIPSource` that is given as plain values."""
        names = {field.name for field in fields(CLIPSource)} - {"device"}
        return cls(**{name: value for name, value in node.items() if name in names})

    def create(self) -> tuple[nn.Module, Any]:
        """The model of `open_clip` without weights, and its tokenizer.

        Raises:
            ValueError: There is no such model.
        """
        import open_clip

        if self.folder is not None and not (self.folder / "open_clip_config.json").is_file():
            raise ValueError(f"{self.folder} is not a folder in open_clip's form: it has no open_clip_config.json")
        if self.folder is None and open_clip.get_model_config(self.model) is None:
            raise ValueError(f"open_clip has no model {self.model!r}; `open_clip.list_models()` gives all")
        name = self.model if self.folder is None else f"local-dir:{self.folder}"
        with torch.device("meta"), _quiet():
            model = open_clip.create_model(name, load_weights=False, precision=self.precision, device="meta")
        return model, open_clip.get_tokenizer(name)


class BlankPrompts:
    """In the place of `BertPrompts`: as many ids as the longest prompt gives, whatever the words."""

    def __call__(self, prompts: list[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, 35) each, where the images are."""
        shape = (len(prompts), MAX_TOKENS)
        return (
            torch.zeros(shape, dtype=torch.int64, device=images.device),
            torch.ones(shape, dtype=torch.int64, device=images.device),
        )


def outline(node: Node, encoder: Node, head: Head) -> nn.Module | None:
    """A scorer's network without weights.

    Args:
        node: The scorer as plain values, with `_target_`, as the configuration gives it.
        encoder: A `CLIPSource` as plain values: what a reward model is built on whose export is not here.
        head: Makes that reward model's head from the width of an embedding.

    Returns:
        The scorer; None for one whose network is not known here.

    Raises:
        ValueError: Its encoder does not exist.
    """
    kind = next((name for name in reversed(str(node.get("_target_")).split(".")) if name in KINDS), None)
    return None if kind is None else KINDS[kind](node, encoder, head).to("meta").requires_grad_(False).eval()


def _clip_score(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.clip_score import CLIPScore

    source = node.get("source")
    if isinstance(source, str):
        source = {"model": f"local-dir:{source}" if Path(source).is_dir() else source}
    return CLIPScore(CLIPOutline.of(source or encoder).load())


def _aesthetic_score(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.aesthetic_score import AestheticHead, AestheticScore

    built = CLIPOutline.of(node.get("encoder") or encoder).load()
    with torch.device("meta"):
        return AestheticScore(built, AestheticHead(built.embedding_dim))


def _reward_model(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.reward_files import read_export
    from t2ifb.scorers.reward_model import RewardModel

    source = Path(str(node.get("source"))).expanduser()
    own = vars(read_export(source).encoder) if source.exists() else node.get("encoder")
    built = CLIPOutline.of(own or encoder).load()
    with torch.device("meta"):
        return RewardModel(built, head(built.embedding_dim))


def _ensemble(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.ensemble import Ensemble
    from t2ifb.scorers.reward_model import RewardModel

    built = CLIPOutline.of(node.get("encoder") or encoder).load()
    with torch.device("meta"):
        return Ensemble([RewardModel(built, head(built.embedding_dim)) for _ in node.get("sources") or [""]])


def _blip_score(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.blip_score import PRETRAINING, BLIPScore

    file = _file(node, "model_large.pth", "blip.safetensors")
    state = {name: shape for name, shape in _shapes(file).items() if not name.startswith(PRETRAINING)}
    return BLIPScore(_blip(state, file, node), BlankPrompts())  # type: ignore[arg-type]


def _image_reward(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.image_reward import ImageReward
    from t2ifb.scorers.linear_stack import linear_stack

    file = _file(node, "ImageReward.pt", "image_reward.safetensors")
    state = {name.removeprefix("blip."): shape for name, shape in _shapes(file).items() if name.startswith("blip.")}
    blip = _blip(state, file, node)
    with torch.device("meta"):
        return ImageReward(blip, linear_stack(blip.text_proj.in_features), BlankPrompts())  # type: ignore[arg-type]


def _hps_v2(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.clip_score import CLIPScore
    from t2ifb.scorers.hps_v2 import HPSv2

    source = {"model": node.get("model", "ViT-H-14"), "precision": node.get("precision", "fp32")}
    return HPSv2(CLIPScore(CLIPOutline.of(source).load()))


def _pick_score(node: Node, encoder: Node, head: Head) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    from t2ifb.scorers.pick_score import PickScore

    folder = Path(str(node.get("source"))).expanduser()
    config: Any = CLIPConfig.from_pretrained(folder) if folder.is_dir() else CLIPConfig(**PICK_SCORE)
    with torch.device("meta"):
        model = CLIPModel(config).to(dtype_of(node.get("precision", "fp32")))
    size, length = config.vision_config.image_size, config.text_config.max_position_embeddings

    def tokenizer(prompts: list[str], **options: Any) -> dict[str, Tensor]:
        ids = torch.zeros(len(prompts), length, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return PickScore(model, tokenizer, size, [0.5] * 3, [0.5] * 3)


def _mix(node: Node, encoder: Node, head: Head) -> nn.Module:
    from t2ifb.scorers.mix import Mix

    parts = {name: outline(child, encoder, head) for name, child in dict(node.get("scorers") or {}).items()}
    return Mix({name: part for name, part in parts.items() if part is not None}, None)


KINDS: dict[str, Callable[[Node, Node, Head], nn.Module]] = {
    "CLIPScore": _clip_score,
    "AestheticScore": _aesthetic_score,
    "RewardModel": _reward_model,
    "Ensemble": _ensemble,
    "BLIPScore": _blip_score,
    "ImageReward": _image_reward,
    "HPSv2": _hps_v2,
    "PickScore": _pick_score,
    "Mix": _mix,
}


def _file(node: Node, *names: str) -> Path | None:
    """A checkpoint that is on this machine: `source` itself, or one of the names in it."""
    path = Path(str(node.get("source"))).expanduser()
    return next((file for file in (path, *(path / name for name in names)) if file.is_file()), None)


def _shapes(file: Path | None) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the `meta` device; none if there is no file."""
    if file is None:
        return {}
    if file.suffix == ".safetensors":
        with safe_open(str(file), "pt") as opened:
            return {
                name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
                for name in opened.keys()  # noqa: SIM118
            }
    content = torch.load(file, map_location="meta", weights_only=True)
    return dict(content.get("model", content))


def _blip(state: Mapping[str, Tensor], file: Path | None, node: Node) -> Any:
    """BLIP from the shapes of its checkpoint, or as large as the published one where there is no file."""
    from t2ifb.scorers.blip import BLIP, TextSettings

    if file is not None:
        blip = BLIP.from_state(state, TextSettings.read(beside(file, "med_config.json")), file)
    else:
        with torch.device("meta"):
            blip = BLIP(BLIP_VISION, BLIP_TEXT)
    return blip.to(dtype_of(node.get("precision", "fp32")))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without `open_clip`'s warning that there are no weights."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
