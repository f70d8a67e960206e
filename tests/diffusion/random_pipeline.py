"""A whole pipeline with random weights: for tests and for measurements at a real model's size."""

import gzip
from pathlib import Path
from typing import Any

import torch

from t2ifb.diffusion.models.stable_diffusion import SD15
from t2ifb.diffusion.pipeline_config import PipelineConfig

MERGES = 48894
"""How many of the table's merges CLIP uses."""
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_random_pipeline(
    folder: str | Path, geometry: PipelineConfig = SD15, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` and `StableDiffusionSource` read.

    The weights are those that the networks begin their training with, the same each time: what the pipeline draws means
    nothing. The tokenizer is CLIP's.

    Args:
        folder: Where to; made if it is not there.
        geometry: Sizes and schedule; Stable Diffusion v1.5's need 4.3 GB in float32, 2.1 GB in half precision.
        dtype: Of all networks.

    Returns:
        The folder.

    Raises:
        ValueError: The tokenizer has more ids than the text encoder has rows.
    """
    import diffusers

    tokenizer = clip_tokenizer()
    rows = int(geometry.parts["text_encoder"]["vocab_size"])
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} ids, the text encoder only {rows}")
    tokenizer.model_max_length = geometry.context
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # each network is then made in its type, never in float32 first
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            unet, vae, text_encoder = (
                geometry.network("unet"),
                geometry.network("vae"),
                geometry.network("text_encoder"),
            )
    finally:
        torch.set_default_dtype(before)
    settings = geometry.parts["scheduler"]
    scheduler: Any = getattr(diffusers, settings["_class_name"]).from_config(settings)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return Path(folder)


def clip_tokenizer() -> Any:
    """CLIP's tokenizer, 49,408 ids, from the table of merges that `open_clip` brings along."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]  # the first line is a heading
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), *SPECIAL]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)
