"""Small networks with random weights in the files of published scorers."""

import json
from pathlib import Path

import open_clip
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from t2ifb.scorers.aesthetic_score import FILE as AESTHETIC_FILE
from t2ifb.scorers.aesthetic_score import AestheticHead
from t2ifb.scorers.hps_v2 import FILE as HPS_FILE
from tests.scorers.blip_parts import write_small
from tests.scorers.parts import byte_tokenizer

HPS_MODEL = "t2ifb-test-tiny"


def write_aesthetic_head(folder: Path, width: int = 12) -> dict[str, torch.Tensor]:
    """Write LAION's file for embeddings of `width` numbers; gives its tensors."""
    torch.manual_seed(0)
    state = AestheticHead(width).state_dict()
    torch.save(state, folder / AESTHETIC_FILE)
    return state


def write_hps(folder: Path) -> Path:
    """Write HPSv2's checkpoint for the network `HPS_MODEL`, which `open_clip` then knows; gives the file."""
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / f"{HPS_MODEL}.json").write_text(json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder / f"{HPS_MODEL}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(HPS_MODEL)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim else None
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / HPS_FILE)
    return folder / HPS_FILE


def write_pick_score(folder: Path) -> Path:
    """Write a model with its processor in `transformers`' form; gives the folder."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**settings).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": len(tokenizer) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=12)
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim else None
    model.save_pretrained(folder)
    return folder


def write_published(folder: Path) -> list[str]:
    """Write all of them into a folder; gives the arguments by which `domain=sd15` takes them."""
    folder.mkdir()
    write_aesthetic_head(folder)
    write_small(folder)
    write_hps(folder)
    write_pick_score(folder / "pick_score")
    names = ("aesthetic_score", "blip_score", "image_reward", "hps_v2")
    sources = [f"scorers.{name}.source={folder}" for name in names]
    return [*sources, f"scorers.pick_score.source={folder / 'pick_score'}", f"scorers.hps_v2.model={HPS_MODEL}"]
