"""Downloads, against a small server that answers as the hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from t2ifb.data.datasets.hpdv2 import HPDv2
from t2ifb.data.datasets.imagereward_db import write_imagereward_db
from t2ifb.data.datasets.pickapic import PickAPic
from t2ifb.data.storage.hub import files_of, is_hub_id
from tests.data.datasets import test_hpdv2, test_pickapic
from tests.data.datasets.test_imagereward_db import many

CHECKOUT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TREE = "/api/datasets/someone/rankings/tree/main/"

DOWNLOAD = """
import sys
from functools import partial
from t2ifb.data.datasets.hpdv2 import HPDv2
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.datasets.pickapic import PickAPic
from t2ifb.data.rankings import open_image
database = eval(sys.argv[2])("someone/rankings", cache_folder=sys.argv[1])
try:
    print(database.available("train"), end=" ")
    database.download(["train", "test"])
    rankings = [database.rankings(split) for split in ("train", "test")]
    print(database.available("train"), list(map(len, rankings)), open_image(rankings[0][0].images[0]).size)
except ValueError as error:
    print("error:", error)
"""


IMAGEREWARD_DB = "partial(ImageRewardDB, subset='1k')"


class Hub(ThreadingHTTPServer):
    """Serves a folder as the hub serves the data set `someone/rankings`, and notes what was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.served: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        files = [(path, self.server.folder / path) for path in paths]
        answer = [
            {"type": "file", "path": path, "size": file.stat().st_size, "oid": "0" * 40}
            for path, file in files
            if file.is_file()
        ]
        self._send(json.dumps(answer).encode(), "application/json")

    def _tree(self) -> None:
        """Files of a folder, as far as `/api/datasets/someone/rankings/tree/main/<folder>` asks for them."""
        folder = self.server.folder / self.path.split("?")[0].removeprefix(TREE)
        if not folder.is_dir():
            self.send_error(404)
            return
        files = sorted(path for path in folder.iterdir() if path.is_file())
        answer = [
            {"type": "file", "path": path.relative_to(self.server.folder).as_posix(), "size": 1, "oid": "0" * 40}
            for path in files
        ]
        self._send(json.dumps(answer).encode(), "application/json")

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        if self.path.startswith(TREE):
            self._tree()
        else:
            self._file(body=True)

    def _file(self, body: bool) -> None:
        prefix = "/datasets/someone/rankings/resolve/main/"
        path = self.path.split("?")[0].replace(f"/resolve/{COMMIT}/", "/resolve/main/")
        file = self.server.folder / path.removeprefix(prefix)
        if not path.startswith(prefix) or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        if body:
            self.server.served.append(path.removeprefix(prefix))
        self._send(content, "application/octet-stream", body)

    def _send(self, content: bytes, kind: str, body: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("zai-org/ImageRewardDB", True), ("_a/b.c-d", True), (Path("owner/name"), False), ("name", False), ("", False),
        ("a/b/c", False), ("./name", False), ("../name", False), ("~/name", False), ("~user/name", False),
        ("owner/.hidden", False), ("/name", False), ("owner/", False), ("owner/with space", False),
    ],
)  # fmt: skip
def test_what_has_the_form_of_a_hub_id(source: str | Path, expected: bool) -> None:
    assert is_hub_id(source) == expected


def test_results_of_checks_are_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    assert files_of("someone/rankings", None).home == tmp_path / "data"
    assert files_of("someone/rankings", tmp_path / "cache").home == tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def imagereward_db(hub: Hub) -> Hub:
    write_imagereward_db(hub.folder, "train", many(6), images_per_archive=2)
    write_imagereward_db(hub.folder, "test", many(2))
    write_imagereward_db(hub.folder, "validation", many(2))
    return hub


def download(
    hub: Hub, cache: Path, dataset: str = "partial(ImageRewardDB, subset='1k')"
) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(cache / "home"),
        "PYTHONPATH": str(CHECKOUT),
    }
    return subprocess.run(
        [sys.executable, "-c", DOWNLOAD, cache, dataset], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_only_what_is_needed_is_downloaded_and_only_once(imagereward_db: Hub, tmp_path: Path) -> None:
    first = download(imagereward_db, tmp_path / "cache")
    assert first.stdout.strip() == "False True [4, 2] (8, 8)", first.stderr
    assert "Downloading 5 files" in first.stderr
    assert "GB free" in first.stderr
    assert sorted(imagereward_db.served) == [
        "images/test/test_1.zip",
        *(f"images/train/train_{number}.zip" for number in range(1, 5)),
        "metadata-test.parquet",
        "metadata-train.parquet",
    ]
    again = download(imagereward_db, tmp_path / "cache")
    assert again.stdout.strip() == "True True [4, 2] (8, 8)", again.stderr
    assert len(imagereward_db.served) == 7


def test_a_file_that_the_hub_lacks_is_named(imagereward_db: Hub, tmp_path: Path) -> None:
    (imagereward_db.folder / "images/train/train_3.zip").unlink()
    answer = download(imagereward_db, tmp_path / "cache")
    assert "error: someone/rankings has no file images/train/train_3.zip" in answer.stdout, answer.stderr


@pytest.mark.slow
def test_only_the_wished_shards_of_pickapic_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    test_pickapic.write_set(hub.folder)
    first = download(hub, tmp_path / "cache", "partial(PickAPic, max_shards=1)")
    assert first.stdout.strip() == "False True [5, 2] (8, 8)", first.stderr
    assert "Downloading 2 files, 0.00 GB, of someone/rankings" in first.stderr
    names = [f"data/{name}-0123456789abcdef.parquet" for name in ("test-00000-of-00001", "train-00000-of-00002")]
    assert sorted(hub.served) == names
    again = download(hub, tmp_path / "cache", "partial(PickAPic, max_shards=1)")
    assert again.stdout.strip() == "True True [5, 2] (8, 8)", again.stderr
    assert len(hub.served) == 2
    more = download(hub, tmp_path / "cache", "PickAPic")
    assert more.stdout.strip() == "False True [7, 2] (8, 8)", more.stderr
    assert hub.served[2:] == ["data/train-00001-of-00002-fedcba9876543210.parquet"]


def test_hpdv2_is_downloaded_and_unpacked(hub: Hub, tmp_path: Path) -> None:
    test_hpdv2.write_set(hub.folder)
    first = download(hub, tmp_path / "cache", "partial(HPDv2, validation_share=0.0)")
    assert first.stdout.split() == ["False", "True", "[80,", "3]", "(8,", "8)"], first.stderr  # and a progress bar
    assert first.stderr.index("Downloading 4 files") < first.stderr.index("Unpacking")
    assert sorted(hub.served) == ["test.json", "test.tar.gz", "train.json", "train.tar.gz"]
    again = download(hub, tmp_path / "cache", "partial(HPDv2, validation_share=0.0)")
    assert again.stdout.strip() == "True True [80, 3] (8, 8)", again.stderr
    assert len(hub.served) == 4
    assert "Unpacking" not in again.stderr


def test_a_connection_that_breaks_off_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*_: object, **__: object) -> None:
        (error,) = (base for base in HfHubHTTPError.__bases__ if base is not OSError)
        raise error("Server disconnected")

    for name in ("list_repo_tree", "get_paths_info"):
        monkeypatch.setattr(HfApi, name, broken_off)
    with pytest.raises(ValueError, match="Could not list someone/rankings on the hub: Server disconnected"):
        PickAPic("someone/rankings", cache_folder=tmp_path).download(["train"])
    with pytest.raises(ValueError, match="Could not download 2 files of someone/rankings from the hub: Server disc"):
        HPDv2("someone/rankings", cache_folder=tmp_path).download(["train"])


def test_a_folder_that_the_hub_lacks_is_said(hub: Hub, tmp_path: Path) -> None:
    answer = download(hub, tmp_path / "cache", "PickAPic")
    assert "error: Could not list someone/rankings on the hub: " in answer.stdout, answer.stderr
    assert "404" in answer.stdout
