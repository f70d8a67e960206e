"""Docstrings, comments and messages are plain English: phrases that have to be read twice are banned."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("t2ifb", "experiments")
BANNED = {
    r"\bwhatever\b": "say 'any', 'regardless of' or 'independent of'",
    r"\b(is|are|was|be) told\b": "say what is passed, printed or logged",
    r"\bgo(es)? on (with|from|where)\b": "say 'continue'",
    r"\bwhat is asked\b": "name it",
    r"\bof which\b": "start a new sentence",
    r"\bwho(ever)? looks\b": "code is not a person",
    r"\b[Pp]ut the parts together\b": "say 'Store the settings.'",
    r"\bName the [\w ]+; (it|nothing)\b": "say 'Store the settings. Nothing is read yet.'",
    r"Error: (It is|It is one|There is one|There is none|Otherwise)\.": "say what the error is",
    r"^\s+\w+: Of (a|an|the|its|what|each)\b": "start the description with a noun",
    r"\bwhole or not at all\b": "say 'atomically'",
    r"\bha(s|ve) not (the|as many|so many)\b": "say 'lacks' or 'has fewer'",
    r"\bas told\b": "say 'as specified'",
}


def texts_of(source: str) -> list[tuple[int, str]]:
    """Line number and text of every comment and string."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        (token.start[0] + number, line)
        for token in tokens
        if token.type in kinds
        for number, line in enumerate(token.string.split("\n"))
    ]


def banned_phrases(source: str) -> list[str]:
    """Line, phrase and advice for every banned phrase."""
    return [
        f"line {number}: {found[0].strip()!r}; {advice}"
        for number, line in texts_of(source)
        for pattern, advice in BANNED.items()
        if (found := re.search(pattern, line))
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_have_no_banned_phrase(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {file.relative_to(ROOT).as_posix(): banned_phrases(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_banned_phrases_are_found_in_texts_but_not_in_code() -> None:
    source = (
        'whatever = 1\n\n\ndef f(seed):\n    """Do it.\n\n    Args:\n        seed: Of the noise.\n    """  # whatever\n'
    )
    assert [line.split(":")[0] for line in banned_phrases(source)] == ["line 8", "line 9"]
