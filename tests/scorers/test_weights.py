"""Published weights are found, read without executing code, and checked by their tensors' names."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from t2ifb.scorers.weights import _from_address, beside, check_names, find_weights, read_state


def test_a_file_at_another_address_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(address: str, target: str) -> None:
        asked.append(address)
        if "broken" in address:
            raise TimeoutError("timed out")
        Path(target).write_text(address)

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    places = [find_weights(f"https://{host}/model.pth", "model.pth") for host in ("one", "other", "one")]
    assert places[0] == places[2] != places[1]
    assert asked == ["https://one/model.pth", "https://other/model.pth"]
    with pytest.raises(ValueError, match=r"timed out\).*curl -LO https://broken/model.pth"):
        find_weights("https://broken/model.pth", "model.pth")


def test_a_download_that_ended_early_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.do_HEAD()
            self.wfile.write(b"x" * 300)

        def do_HEAD(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Short) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):
            with pytest.raises(ValueError, match="the connection ended after 300 of 1000 bytes"):
                _from_address(f"http://127.0.0.1:{server.server_port}/model.pth", "model.pth")
        server.shutdown()
    assert not list(tmp_path.rglob("*.pth"))


def test_a_file_is_found_by_itself_in_its_folder_or_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "own.pt").touch()
    assert find_weights(str(tmp_path / "own.pt"), "model.pth") == tmp_path / "own.pt"
    (tmp_path / "other.pth").touch()
    assert find_weights(tmp_path, "model.pth", "other.pth") == tmp_path / "other.pth"
    (tmp_path / "model.pth").touch()
    assert find_weights(tmp_path, "model.pth", "other.pth") == tmp_path / "model.pth"
    assert beside(tmp_path / "model.pth", "own.pt") == tmp_path / "own.pt"
    assert beside(tmp_path / "model.pth", "vocab.txt") is None


@pytest.mark.parametrize("source", ["./owner/name", "~nobody/name", "name", "a/b/c", Path("owner/name")])
def test_what_is_neither_there_nor_a_hub_id_is_refused(source: str | Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; expected model\.pth"):
        find_weights(source, "model.pth")


def test_an_empty_folder_is_said_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model.pth; it contains nothing"):
        find_weights(tmp_path, "model.pth")
    (tmp_path / "readme").touch()
    with pytest.raises(ValueError, match="has no model.pth; it contains readme"):
        find_weights(tmp_path, "model.pth")


def test_tensors_are_read_from_both_formats_and_from_an_entry(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pt")
    torch.save({"epoch": 3, "model": state}, tmp_path / "within.pt")
    for found in (
        read_state(tmp_path / "model.safetensors"),
        read_state(tmp_path / "model.pt"),
        read_state(tmp_path / "model.pt", within="model"),
        read_state(tmp_path / "within.pt", within="model"),
    ):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="contains no tensors by name$"):
        read_state(tmp_path / "within.pt")
    with pytest.raises(ValueError, match="no entry 'weights'"):
        read_state(tmp_path / "within.pt", within="weights")


class Harm:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    torch.save({"a": Harm(tmp_path / "harmed")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="cannot read .*model.pt as a checkpoint"):
        read_state(tmp_path / "model.pt")
    assert not (tmp_path / "harmed").exists()
    with (tmp_path / "model.pt").open("rb") as file:  # which it would be
        torch.load(file, weights_only=False)
    assert (tmp_path / "harmed").exists()


def test_names_that_are_missing_or_unknown_are_counted_and_some_are_named() -> None:
    check_names({"a", "b"}, {"b", "a"}, Path("model.pt"), "BLIP")
    with pytest.raises(ValueError, match=r"^model.pt is not a checkpoint of BLIP: it lacks b; it has unknown c$"):
        check_names({"a", "c"}, {"a", "b"}, Path("model.pt"), "BLIP")
    many = {f"n{number}" for number in range(7)}
    with pytest.raises(ValueError, match=r"it lacks n0, n1, n2, n3 and 3 more$"):
        check_names(set(), many, Path("model.pt"), "BLIP")
