"""Which prompts are the same, and splitting prompts by a hash of them and a seed alone."""

import hashlib
import unicodedata


def spelled_alike(prompt: str) -> str:
    """What is common to spellings that make no other prompt: no letter case, single spaces, one Unicode form."""
    return " ".join(unicodedata.normalize("NFC", prompt.replace("\ufeff", "")).split()).casefold()


def position(prompt: str, seed: int) -> float:
    """Where a prompt falls in [0, 1), as if drawn at random; prompts that are spelled alike fall together."""
    digest = hashlib.sha256(f"{seed}\0{spelled_alike(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
