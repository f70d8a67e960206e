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

from t2ifb.data.imagereward_db import write_imagereward_db
from tests.data.test_imagereward_db import many

CHECKOUT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

DOWNLOAD = """
import sys
from t2ifb.data.imagereward_db import ImageRewardDB
database = ImageRewardDB("someone/rankings", subset="1k", cache_folder=sys.argv[1])
try:
    database.download(["train", "test"])
    print([len(database.rankings(split)) for split in ("train", "test")])
except ValueError as error:
    print("fault:", error)
"""


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

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    write_imagereward_db(tmp_path / "hub", "train", many(6), images_per_archive=2)
    write_imagereward_db(tmp_path / "hub", "test", many(2))
    write_imagereward_db(tmp_path / "hub", "validation", many(2))
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def download(hub: Hub, cache: Path) -> "subprocess.CompletedProcess[str]":
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
        [sys.executable, "-c", DOWNLOAD, cache], env=environment, capture_output=True, text=True, timeout=60
    )


def test_only_what_is_needed_is_downloaded_and_only_once(hub: Hub, tmp_path: Path) -> None:
    first = download(hub, tmp_path / "cache")
    assert first.stdout.strip() == "[4, 2]", first.stderr
    assert "Downloading 5 files" in first.stderr
    assert "GB free" in first.stderr
    assert sorted(hub.served) == [
        "images/test/test_1.zip",
        *(f"images/train/train_{number}.zip" for number in range(1, 5)),
        "metadata-test.parquet",
        "metadata-train.parquet",
    ]
    again = download(hub, tmp_path / "cache")
    assert again.stdout.strip() == "[4, 2]", again.stderr
    assert len(hub.served) == 7


def test_a_file_that_the_hub_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub/images/train/train_3.zip").unlink()
    answer = download(hub, tmp_path / "cache")
    assert answer.stdout.startswith("fault: someone/rankings has no file images/train/train_3.zip"), answer.stderr
