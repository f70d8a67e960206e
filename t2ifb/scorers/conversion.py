"""CLIP models of `transformers` in `open_clip`'s form."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from t2ifb.scorers.clip import LOCAL_DIR, CLIPSource
from t2ifb.scorers.pick_score import HUB_ID, PickScore
from t2ifb.utils.files import atomic_write, data_folder, file_lock, make_folder
from t2ifb.utils.fingerprints import stamp

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOWERS = {"vision_model": "visual.", "text_model": ""}
"""Prefixes of the towers' weights in `transformers` and in `open_clip`."""
NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "logit_scale": "logit_scale",
    **{
        f"{theirs}.{end}": f"{ours}.{end}"
        for theirs, ours in (
            ("vision_model.pre_layrnorm", "visual.ln_pre"),
            ("vision_model.post_layernorm", "visual.ln_post"),
            ("text_model.final_layer_norm", "ln_final"),
        )
        for end in ("weight", "bias")
    },
}
LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def open_clip_weights(state: Mapping[str, Tensor], layers: Mapping[str, int]) -> dict[str, Tensor]:
    """Rename the weights of a `transformers.CLIPModel`.

    Args:
        state: Its state dict.
        layers: Number of layers of `vision_model` and of `text_model`.

    Returns:
        The state dict of the same network in `open_clip`: queries, keys and values in one matrix, projections
        transposed.
    """
    found = {ours: state[theirs] for theirs, ours in NAMES.items()}
    found["visual.proj"] = state["visual_projection.weight"].T
    found["text_projection"] = state["text_projection.weight"].T
    for tower, prefix in TOWERS.items():
        for number in range(layers[tower]):
            theirs, ours = f"{tower}.encoder.layers.{number}", f"{prefix}transformer.resblocks.{number}"
            for end in ("weight", "bias"):
                found |= {f"{ours}.{new}.{end}": state[f"{theirs}.{old}.{end}"] for old, new in LAYER.items()}
                parts = [state[f"{theirs}.self_attn.{part}_proj.{end}"] for part in "qkv"]
                found[f"{ours}.attn.in_proj_{end}"] = torch.cat(parts)
    return {name: weight.detach().float().contiguous() for name, weight in found.items()}


def open_clip_config(model: Any, image_size: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    """Configuration in `open_clip`'s form of a `transformers.CLIPModel` and its preprocessing."""
    vision, text = model.config.vision_config, model.config.text_config
    return {
        "model_cfg": {
            "embed_dim": model.config.projection_dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": image_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "patch_size": vision.patch_size,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                "hf_tokenizer_name": "tokenizer",  # beside this file
                "tokenizer_kwargs": {"clean": "lower"},
            },
        },
        "preprocess_cfg": {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"},
    }


def pick_score_encoder(source: str | Path = HUB_ID, folder: Path | None = None) -> tuple[CLIPSource, float]:
    """PickScore's network as an encoder. It is converted once.

    Args:
        source: PickScore's folder or hub id.
        folder: Folder of converted networks; by default `converted` in `data_folder`.

    Returns:
        The encoder and PickScore's factor on cosines.

    Raises:
        ValueError: The weights are missing.
    """
    place = Path(source).expanduser()
    files = [path for path in sorted(place.iterdir()) if path.is_file()] if place.is_dir() else []
    where = str(place.absolute()) if place.is_dir() else str(source)
    digest = hashlib.sha256(json.dumps([where, [stamp(path) for path in files]]).encode()).hexdigest()[:16]
    target = make_folder((folder or data_folder() / "converted") / f"pick_score-{digest}")
    with file_lock(target / "lock"):
        if not (target / CONFIG).is_file():
            scorer = PickScore.from_pretrained(source)
            config = scorer.model.config
            layers = {
                "vision_model": config.vision_config.num_hidden_layers,
                "text_model": config.text_config.num_hidden_layers,
            }
            scorer.save_tokenizer(target)
            described = open_clip_config(scorer.model, scorer.image_size, scorer.mean, scorer.std)
            for name, content in (
                (WEIGHTS, save(open_clip_weights(scorer.model.state_dict(), layers))),
                (CONFIG, json.dumps(described | {"scale": scorer.scale}, indent=1).encode()),
            ):
                with atomic_write(target / name) as file:
                    file.write(content)
    scale = json.loads((target / CONFIG).read_text(encoding="utf-8"))["scale"]
    return CLIPSource(f"{LOCAL_DIR}{target}"), float(scale)
