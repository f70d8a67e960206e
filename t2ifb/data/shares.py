"""Duplicate prompts, and splits of prompts by a hash."""

import hashlib
import unicodedata


def spelled_alike(prompt: str) -> str:
    """Normalise a prompt for duplicate detection: case-folded, single spaces, Unicode NFC."""
    return " ".join(unicodedata.normalize("NFC", prompt.replace("\ufeff", "")).split()).casefold()


def position(prompt: str, seed: int) -> float:
    """Map a prompt to a uniform hash value in [0, 1). Equal normalised prompts give equal values."""
    digest = hashlib.sha256(f"{seed}\0{spelled_alike(prompt)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
