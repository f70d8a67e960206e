"""A whole pipeline with random weights: for tests and for measurements at a real model's size."""

import gzip
import inspect
from pathlib import Path
from typing import Any

import torch

from t2ifb.diffusion.models.stable_diffusion import FAMILY
from t2ifb.diffusion.pipeline_config import PipelineConfig
from t2ifb.diffusion.pipeline_model import Family

MERGES = 48894
"""How many of the table's merges CLIP uses."""
COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder", "text_encoder_3", "tokenizer_3")
"""Parts of pipelines that are left out."""
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_random_pipeline(
    folder: str | Path,
    family: Family = FAMILY,
    geometry: PipelineConfig | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a folder that the family's class in diffusers and its source read.

    The weights are those that the networks begin their training with, the same each time: what the pipeline draws means
    nothing. The tokenizers are CLIP's.

    Args:
        folder: Where to; made if it is not there.
        family: The family.
        geometry: Sizes and schedule; by default the published ones, without the optional parts. Stable Diffusion v1.5's
            need 4.3 GB in float32, 2.1 GB in half precision; SDXL's 14 and 7, Stable Diffusion 3.5 medium's 13 and 6.
        dtype: Of all networks.

    Returns:
        The folder.

    Raises:
        ValueError: The tokenizer has more ids than a text encoder has rows.
    """
    import diffusers

    geometry = family.published if geometry is None else geometry
    parts = {name: geometry.parts[name] for name in family.networks if name not in family.optional}
    tokenizer = clip_tokenizer()
    rows = min(int(part["vocab_size"]) for name, part in parts.items() if name in family.tokenizers)
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer)} ids, a text encoder only {rows}")
    tokenizer.model_max_length = geometry.context
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # each network is then made in its type, never in float32 first
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made: dict[str, Any] = {name: geometry.network(name) for name in parts}
    finally:
        torch.set_default_dtype(before)
    made |= {words: tokenizer for encoder, words in family.tokenizers.items() if encoder in parts}
    settings = geometry.parts["scheduler"]
    made["scheduler"] = getattr(diffusers, settings["_class_name"]).from_config(settings)
    kind = getattr(diffusers, family.lora_format.pipeline)
    absent = {name for name in inspect.signature(kind).parameters if name in COMPONENTS and name not in made}
    kind(**made, **dict.fromkeys(absent)).save_pretrained(str(folder), safe_serialization=True)
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
