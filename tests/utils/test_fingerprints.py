"""A fingerprint differs where a result may, and only there."""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from torch import nn

from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.reward_model import RewardModel
from t2ifb.utils import fingerprints
from t2ifb.utils.fingerprints import FileHashes, code_hash, fingerprint, library_versions
from tests.evaluation.parts import Both, Brightness, Scripted, weights
from tests.scorers.parts import tiny_clip

Identify: TypeAlias = Callable[[Any], str]


@pytest.fixture
def identity(tmp_path: Path) -> Identify:
    return partial(fingerprint, hash_file=FileHashes(tmp_path / "keys.npy"))


def test_a_file_counts_by_its_content_and_not_by_its_name(identity: Identify, tmp_path: Path) -> None:
    one, same = weights(tmp_path / "a" / "w.json"), weights(tmp_path / "b" / "other.json")
    other = weights(tmp_path / "c.json", factor=2)
    assert identity(partial(Brightness, weights=one)) == identity(partial(Brightness, str(same)))
    assert identity(partial(Brightness, weights=one)) != identity(partial(Brightness, weights=other))
    before = identity(partial(Brightness, weights=one))
    weights(one, factor=3)
    assert identity(partial(Brightness, weights=one)) != before


def test_a_folder_counts_by_all_its_files(identity: Identify, tmp_path: Path) -> None:
    for name in ("one", "two"):
        weights(tmp_path / name / "deep" / "w.json")
    assert identity(partial(Brightness, tmp_path / "one")) == identity(partial(Brightness, tmp_path / "two"))
    weights(tmp_path / "two" / "more.json")
    assert identity(partial(Brightness, tmp_path / "one")) != identity(partial(Brightness, tmp_path / "two"))


def test_hashes_of_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = weights(tmp_path / "w.json")
    before = fingerprint(partial(Brightness, file), hash_file=FileHashes(tmp_path / "keys.npy"))

    def read_again(path: Path) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(fingerprints, "sha256_file", read_again)
    assert fingerprint(partial(Brightness, file), hash_file=FileHashes(tmp_path / "keys.npy")) == before
    os.utime(file, (1, 1))
    with pytest.raises(AssertionError, match="is read again"):
        fingerprint(partial(Brightness, file), hash_file=FileHashes(tmp_path / "keys.npy"))


def test_what_is_left_to_its_default_is_the_same_as_the_default(identity: Identify, tmp_path: Path) -> None:
    file = weights(tmp_path / "w.json")
    assert identity(partial(Brightness, file)) == identity(partial(Brightness, file, shift=0.0))
    assert identity(partial(Brightness, file)) != identity(partial(Brightness, file, shift=0.5))
    assert identity(partial(Scripted)) != identity(partial(Brightness, file))


def test_a_clip_counts_by_its_fingerprint_built_or_not(identity: Identify, tmp_path: Path) -> None:
    one, same, other = (tiny_clip(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    scorers = [partial(CLIPScore.from_pretrained, source=CLIPSource(f"local-dir:{folder}")) for folder in (one, other)]
    unmade = partial(CLIPScore.from_pretrained, source=partial(CLIPSource, model=f"local-dir:{same}", device="cpu"))
    assert identity(scorers[0]) == identity(unmade)
    assert identity(scorers[0]) != identity(scorers[1])


def test_a_reward_model_counts_by_its_export(identity: Identify, tmp_path: Path) -> None:
    encoder = CLIPEncoder(CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}"))
    head = MLPHead(12, [4], [])
    for run in ("one", "two"):
        RewardModel(encoder, head).save_pretrained(tmp_path / run / "export", card=f"card of {run}")
        (tmp_path / run / "metrics.csv").write_text(run)
    one, two = (partial(RewardModel.from_pretrained, source=str(tmp_path / run)) for run in ("one", "two"))
    assert identity(one) == identity(two)
    RewardModel(encoder, MLPHead(12, [4], [])).save_pretrained(tmp_path / "two" / "export")
    assert identity(one) != identity(two)


def test_components_inside_count(identity: Identify, tmp_path: Path) -> None:
    files = [weights(tmp_path / f"{factor}.json", factor) for factor in (1, 2, 3)]
    scorers = [partial(Both, scorers=[partial(Brightness, files[0]), partial(Brightness, file)]) for file in files]
    assert len({identity(scorer) for scorer in scorers}) == 3
    heads = [partial(dict, head=partial(partial, MLPHead, hidden=[size])) for size in (3, 4)]
    assert identity(heads[0]) != identity(heads[1])


def test_a_network_counts_by_its_weights(identity: Identify) -> None:
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert identity(one) != identity(other)
    other.load_state_dict(one.state_dict())
    assert identity(partial(Both, scorers=[one])) == identity(partial(Both, scorers=[other]))


def test_what_cannot_be_told_apart_is_refused(identity: Identify) -> None:
    with pytest.raises(ValueError, match=r"value.scorers.0 is a object, which has no fingerprint"):
        identity(partial(Both, scorers=[object()]))
    with pytest.raises(ValueError, match="Brightness: missing a required argument: 'weights'"):
        identity(partial(Brightness))


def test_strings_that_are_no_paths_count_as_they_are(identity: Identify) -> None:
    for text in ("openai", "owner/name", "https://example.org/w.pt", "", "~nobody/x", "a" * 5000, "a\0b"):
        assert identity(partial(Brightness, text)) != identity(partial(Brightness, text + "x"))


def test_code_counts_with_what_it_imports_from_its_own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somepackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "score.py").write_text("import numpy\nfrom somepackage import part\nfrom somepackage.part import x\n")
    (package / "part.py").write_text("def f():\n    from somepackage import deep\n")
    (package / "deep.py").write_text("x = 1\n")
    (package / "other.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def fresh() -> str:
        code_hash.cache_clear()
        return code_hash("somepackage.score")

    before = fresh()
    (package / "other.py").write_text("x = 2\n")
    (package / "deep.py").write_text("x = 1  # a comment\n")
    assert fresh() == before
    (package / "deep.py").write_text("x = 2\n")
    assert fresh() != before
    assert code_hash("builtins") != code_hash("__main__")


def test_hashing_reads_code_and_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "loudpackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "loud.py").write_text("raise AssertionError('this was run')\n")
    (package / "again.py").write_text("from loudpackage import loud, again\n")  # also itself
    monkeypatch.syspath_prepend(tmp_path)
    assert len({code_hash(f"loudpackage.{name}") for name in ("loud", "again")}) == 2
    assert "loudpackage.loud" not in sys.modules


def test_a_module_without_source_is_known_by_its_name() -> None:
    assert code_hash("nowhere.at.all") == code_hash("nowhere.at.all") != code_hash("nowhere.else")


def test_versions_are_those_of_the_libraries_that_sample() -> None:
    found = library_versions()
    assert found["torch"] == version("torch")
    assert {"torch", "diffusers", "transformers", "peft"} <= found.keys()
