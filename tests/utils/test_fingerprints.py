"""Code and libraries are known by a hash or a version."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from t2ifb.utils.fingerprints import code_hash, library_versions


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
