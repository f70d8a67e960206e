"""Byte-pair vocabulary of the `shapes` domain, in the formats of `transformers` and `open_clip`."""

import gzip
import json
from collections import Counter
from pathlib import Path

from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from t2ifb.shapes.grammar import FAMILY_WEIGHTS, family_scenes
from t2ifb.shapes.training.distortions import QUALITY_WORDS

CONTEXT_LENGTH = 24
"""Maximum tokens of a text, including start and end; the longest prompt with a quality phrase has 21."""
START, END = "<|startoftext|>", "<|endoftext|>"


def word_counts() -> Counter[str]:
    """Words of prompts and captions, with their counts in all prompts."""
    sentences = [scene.prompt for family in FAMILY_WEIGHTS for scene in family_scenes(family)]
    counts = Counter(word for sentence in sentences for word in sentence.replace(",", " ,").split())
    counts.update(word for levels in QUALITY_WORDS.values() for level in levels for word in level.split())
    return counts


def bert_words() -> list[str]:
    """Lines of a BERT vocabulary with one token per word."""
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(word_counts())]


def learn_merges() -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token (Sennrich et al., arXiv 1508.07909)."""
    counts = word_counts()
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        words = {word: _merge(symbols, best) for word, symbols in words.items()}


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Ids in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge) for merge in merges] + [START, END]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> CLIPTokenizer:
    """Tokenizer of the `shapes` domain, to be saved in a pipeline or an open_clip folder."""
    merges = learn_merges()
    return CLIPTokenizer(vocab=vocabulary(merges), merges=merges, model_max_length=CONTEXT_LENGTH)


def write_merges(folder: Path) -> None:
    """Write `vocab.json`, `merges.txt` and `bpe_merges.txt.gz`, the format of `open_clip.SimpleTokenizer`."""
    merges = learn_merges()
    lines = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)])
    (folder / "merges.txt").write_text(lines + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False), encoding="utf-8")
    with gzip.GzipFile(folder / "bpe_merges.txt.gz", "wb", mtime=0) as file:
        file.write(lines.encode())
