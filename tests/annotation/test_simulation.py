"""Programs that annotate through a real server, two at once."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn
from PIL import Image

from t2ifb.annotation.queues import Queues
from t2ifb.annotation.server import make_app
from t2ifb.annotation.simulation import simulate
from tests.annotation.parts import make_queues


@contextmanager
def served(queues: Queues, **settings: Any) -> Iterator[str]:
    """The address of a running server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        config = uvicorn.Config(make_app(queues, port=port, **settings), log_level="error", access_log=False)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def by_brightness(images: Any, prompt: str) -> list[int]:
    levels = [sum(image.convert("L").tobytes()) for image in images]
    return [sorted(levels, reverse=True).index(level) + 1 for level in levels]


def test_two_annotators_at_once_answer_everything_once(tmp_path: Path) -> None:
    queues = make_queues(tmp_path, 12, overlap=0.25)
    with served(queues, token="secret") as address:
        count = simulate(address, {"ada": by_brightness, "bob": by_brightness}, "secret")
    assert count == 9 + 2 * 3
    current = queues.log.current()
    assert len(current) == count
    for item in queues.items[:3]:
        assert {name for name, key in current if key == item.key} == {"ada", "bob"}
    for (_, key), answer in current.items():
        pictures = [Image.open(path) for path in queues.find(key).images]
        assert list(answer.ranks) == by_brightness(pictures, "")


def test_a_failing_annotator_is_reported(tmp_path: Path) -> None:
    with served(make_queues(tmp_path, 1)) as address, pytest.raises(ValueError, match="a simulated annotator failed"):
        simulate(address, {"ada": lambda images, prompt: [1]})
