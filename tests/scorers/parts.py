"""A tiny CLIP with random weights in open_clip's folder form; requests to external scorers."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


def byte_tokenizer(size: int = 514) -> CLIPTokenizer:
    """A vocabulary of bytes, without merges, filled up with what no text has."""
    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    words += [f"<{number}>" for number in range(len(words), size - 2)]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[])


def tiny_clip(folder: Path, seed: int = 0, size: int = 16) -> Path:
    """Write a CLIP of some thousand weights: images of `size` pixels, a vocabulary of bytes, 12 numbers out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    vision = {"image_size": size, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": len(tokenizer), "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(seed)
    model = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text)
    for weight in model.parameters():  # random, but such that different inputs give clearly different embeddings
        torch.nn.init.normal_(weight, std=0.3) if weight.ndim else None
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    text = {**text, "hf_tokenizer_name": "tiny", "tokenizer_kwargs": {"clean": "lower"}}
    config = {
        "model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def requested(text: str | bytes) -> tuple[torch.Tensor, list[str]]:
    """Images (B, 3, H, W) in [0, 1] and prompts of a request to an external scorer."""
    request = json.loads(text)
    images = [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in request["images"]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, request["prompts"]
