"""The folder of a run: its layout, its lock and its summary."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from t2ifb.training import run_folder
from t2ifb.training.run_folder import RunFolder, git_commit, versions
from t2ifb.utils.files import FolderInUse


def test_the_layout_is_the_promised_one_and_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    assert list(run.path.iterdir()) == []
    places = (run.last_checkpoint, run.best_checkpoint, run.metrics, run.export, run.step(20, "_strip.png"))
    assert [place.relative_to(run.path).as_posix() for place in places] == [
        "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "export", "samples/step_000020_strip.png",
    ]  # fmt: skip


def test_two_cannot_hold_it_and_the_second_can_when_the_first_has_ended(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.held(), pytest.raises(FolderInUse, match="Another process uses"), RunFolder(tmp_path).held():
        pass
    with pytest.raises(RuntimeError), run.held():
        raise RuntimeError
    with RunFolder(tmp_path).held():
        pass


def test_another_process_cannot_hold_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom t2ifb.training.run_folder import RunFolder\nfrom t2ifb.utils.files import FolderInUse\n"
        "try:\n    with RunFolder(sys.argv[1]).held(): print('held')\nexcept FolderInUse: print('in use')"
    )
    with RunFolder(tmp_path).held():
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "in use\n"


def test_the_summary_says_what_made_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    written = run.write_summary({"steps": 3, "path": Path("a/b")})
    found = json.loads((tmp_path / "summary.json").read_text())
    assert (found["steps"], found["path"]) == (3, "a/b")
    assert found["versions"] == written["versions"]
    assert found["versions"]["python"] == platform.python_version()
    assert {"t2ifb", "torch", "lightning"} <= found["versions"].keys()
    assert found["git_commit"] == git_commit()


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_json("a.json", {"x": 1})
    itself: dict[str, object] = {}
    itself["x"] = itself
    with pytest.raises(ValueError, match="Circular"):
        run.write_json("a.json", itself)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert versions(["torch", "no-such-package"]).keys() == {"python", "torch"}


def test_the_commit_is_that_of_the_packages_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", "-C", str(repository), *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    def commit_of(checkout: Path) -> str | None:
        (checkout / "t2ifb" / "training").mkdir(parents=True)
        monkeypatch.setattr(run_folder, "__file__", str(checkout / "t2ifb" / "training" / "run_folder.py"))
        return git_commit()

    repository = tmp_path / "mine"
    repository.mkdir()
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    git("worktree", "add", str(tmp_path / "tree"))
    assert commit_of(repository) == commit_of(tmp_path / "tree") == git("rev-parse", "HEAD")
    assert commit_of(repository / "venv" / "site-packages") is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
