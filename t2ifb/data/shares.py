"""Splitting prompts by a hash: which split a prompt is in depends on the prompt and the seed alone."""

import hashlib


def position(prompt: str, seed: int) -> float:
    """Where a prompt falls in [0, 1), as if drawn at random.

    Spelling that makes no other prompt (letter case, white space) makes no other position either, so that such
    variants stay in one split.
    """
    text = " ".join(prompt.split()).casefold()
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
