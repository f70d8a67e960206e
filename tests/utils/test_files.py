import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from t2ifb.utils.files import StorageError, atomic_write, data_folder, file_lock, read_json_list, sha256_file


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_after_a_failure_the_old_file_is_untouched_and_no_other_left(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError("half way")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unrelated_error_inside_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        (tmp_path / "absent").read_bytes()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with (
        pytest.raises(ValueError, match=r"data.* cannot be used as a folder"),
        atomic_write(tmp_path / "data" / "file"),
    ):
        pass


@pytest.mark.parametrize("numbers", [1200, 200_000])
@pytest.mark.parametrize("write", [lambda f, a: f.write(a.tobytes()), np.save, lambda f, a: np.savez(f, a=a)])
def test_a_full_disk_is_one_clear_message_and_leaves_nothing(
    tmp_path: Path, write: Callable[[BinaryIO, NDArray[np.float64]], object], numbers: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=f"No space left in {tmp_path}"), atomic_write(tmp_path / "file") as file:
            write(file, np.ones(numbers))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


READ_ONLY = """
import os, sys
from pathlib import Path
from t2ifb.utils.files import StorageError, atomic_write, file_lock
if os.getuid() == 0:
    os.setuid(65534)  # root may write everywhere
for attempt in (atomic_write, file_lock):
    try:
        with attempt(Path(sys.argv[1]) / "file"):
            pass
    except StorageError as error:
        print(error)
"""


def test_a_read_only_folder_is_named() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o555)
        run = subprocess.run([sys.executable, "-c", READ_ONLY, folder], capture_output=True, text=True, check=True)
        os.chmod(folder, 0o755)
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all(f"{folder} is not writable" in line and "permission" in line for line in lines)


HOLD = """
import sys, time
from t2ifb.utils.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_waits_for_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE)
    time.sleep(0.3)
    holder.kill()
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == b"held\n"
    waiter.kill()
    for process in (holder, waiter):
        process.communicate()
    with file_lock(tmp_path / "lock"):
        pass


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"another"):
        path.write_bytes(content)
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("content", "what"), [("{", "not valid JSON"), ("{}", "JSON list, found dict")])
def test_a_wrong_json_file_is_named(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"list.json.*{what}"):
        read_json_list(path)


def test_the_data_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("T2IFB_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "t2ifb"
