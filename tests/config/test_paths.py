"""Where the configuration files and the data are."""

from pathlib import Path

import pytest

from t2ifb.config import paths
from tests.conftest import CHECKOUT


def test_conf_is_found_in_a_checkout() -> None:
    assert paths.conf_folder() == CHECKOUT / "conf"


def test_conf_inside_the_package_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "t2ifb"
    for conf in (package / "conf", package.parent / "conf"):  # the second is somebody else's
        conf.mkdir(parents=True)
        (conf / "train.yaml").touch()
    monkeypatch.setattr(paths, "PACKAGE", package)
    assert paths.conf_folder() == package / "conf"


def test_a_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    with pytest.raises(FileNotFoundError, match="install t2ifb again"):
        paths.conf_folder()
