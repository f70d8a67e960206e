"""`python -m t2ifb.annotate`: rank images in the browser, alone or with others."""

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components
from t2ifb.config.reward_source import find_latest

if TYPE_CHECKING:
    import torch
    import uvicorn

    from t2ifb.annotation.answers import AnswerLog
    from t2ifb.annotation.items import Item
    from t2ifb.annotation.results import Results

EXTRA = "the page needs starlette and uvicorn: pip install 't2ifb[annotate]'"


def annotate(parts: Components) -> None:
    """Serve the page until Ctrl-C, or have simulated annotators answer; then say what the answers are."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError([EXTRA]) from error
    from t2ifb.annotation.answers import AnswerLog
    from t2ifb.annotation.items import read_items

    if (mode := parts.value("mode")) not in ("rank", "compare"):
        raise ConfigError([f"mode={mode}: expected rank or compare"])
    if not parts.value("source"):
        raise ConfigError(["source: give the folder of images, such as the output of python -m t2ifb.generate"])
    source = Path(parts.value("source")).expanduser()
    items = _chosen(parts, read_items(source, mode, parts.value("images"), parts.value("seed")))
    folder = source if source.is_dir() else source.parent
    output = Path(parts.value("output")).expanduser() if parts.value("output") else folder / "annotations"
    log = AnswerLog(output, items)
    try:
        if parts.value("serve"):
            _serve(parts, items, log)
    finally:
        log.close()
        _conclude(parts, items, log)


def _chosen(parts: Components, items: "list[Item]") -> "list[Item]":
    """The questions to ask, in order.

    Raises:
        ConfigError: The order is unknown, needs an ensemble, or `most` is below 1.
    """
    order, most = parts.value("order"), parts.value("most")
    if order not in ("random", "disagreement") or (most is not None and most < 1):
        raise ConfigError([f"order={order} most={most}: expected random or disagreement, and at least 1"])
    if order == "disagreement":
        from t2ifb.annotation.selection import by_disagreement

        reward, device = _reward(parts)
        if (members := getattr(reward, "members", None)) is None:
            raise ConfigError(["order=disagreement: give +scorer@reward=ensemble 'reward.sources=[RUN,RUN,RUN]'"])
        items = by_disagreement(items, list(members), device)
    return items[:most]


def _serve(parts: Components, items: "list[Item]", log: "AnswerLog") -> None:
    """Serve the page, to people or to simulated annotators."""
    from t2ifb.annotation.queues import Queues
    from t2ifb.annotation.results import summarise
    from t2ifb.annotation.server import LOCAL, make_app

    queues = Queues(items, log, parts.value("annotators_per_prompt"), parts.value("overlap"), parts.value("seed"))
    host, simulated = parts.value("host"), parts.value("simulate")
    token = parts.value("token") or (None if host in LOCAL else secrets.token_urlsafe(16))
    with _listening(host, 0 if simulated else parts.value("port")) as (listener, port):
        app = make_app(
            queues, parts.value("mode"), parts.value("ratings"), token, port,
            lambda: summarise(log.current(), items).lines(),
        )  # fmt: skip
        address = _address(host, port)
        server = _server(app)
        if simulated:
            _simulate(parts, server, listener, address, token)
            return
        print(f"{len(items)} questions; {len(log.current())} answers so far in {log.path}")
        query = f"?token={quote(token, safe='')}" if token else ""
        print(f"open {address}/{query}    (Ctrl-C ends)", flush=True)
        server.run([listener])


def _address(host: str, port: int) -> str:
    """Address of the page on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _server(app: Any) -> "uvicorn.Server":
    import uvicorn

    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[tuple[socket.socket, int]]:
    """A listening socket and its port.

    Raises:
        ConfigError: The address is in use or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError([f"host={host} port={port}: {error.strerror or error}; give another port"]) from error
        yield listener, listener.getsockname()[1]


def _simulate(
    parts: Components, server: "uvicorn.Server", listener: socket.socket, address: str, token: str | None
) -> None:
    """Serve the page to simulated annotators until they have answered everything."""
    from t2ifb.annotation.simulation import simulate

    count = int(parts.value("annotators"))
    if count < 1:
        raise ConfigError([f"annotators={count}: expected at least 1"])
    make = parts.build("simulated")
    judges = {f"simulated {n}": make(seed=parts.value("seed") + n) for n in range(count)}
    thread = Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        print(f"{simulate(address, judges, token)} answers of {count} simulated annotators")
    finally:
        server.should_exit = True
        thread.join()


def _conclude(parts: Components, items: "list[Item]", log: "AnswerLog") -> None:
    """Print and write the results, and export the rankings if wished."""
    from t2ifb.annotation.results import export, summarise
    from t2ifb.utils.files import write_json

    answers = log.current()
    if not answers:
        return
    results: Results = summarise(answers, items, _scores(parts, items), parts.value("seed"))
    for name, text in results.lines().items():
        print(f"{name}: {text}")
    write_json(log.folder / "results.json", results.to_json())
    print(f"train a reward on them: python -m t2ifb.train +experiment=reward_mlp dataset=own_rankings "
          f"dataset.source={log.folder}")  # fmt: skip
    if parts.value("export"):
        counts = export(log.folder, Path(parts.value("export")).expanduser())
        print(f"{sum(counts.values())} rankings in ImageRewardDB's layout: {parts.value('export')}")


def _scores(parts: Components, items: "list[Item]") -> dict[str, list[float]] | None:
    """Scores by the reward that annotators are compared with; None without one."""
    from t2ifb.annotation.results import score_items

    reward, device = _reward(parts)
    return None if reward is None else score_items(reward, items, device)


def _reward(parts: Components) -> "tuple[Any, torch.device]":
    """The reward on its device; None without one."""
    from t2ifb.utils.devices import device_of

    device = device_of(parts.value("device"))
    if parts.value("reward") is None:
        return None, device
    found, notes = find_latest({"reward": parts.value("reward")}, "", parts.value("domain"), parts.arguments)
    if notes:
        raise ConfigError(notes)
    parts.settle("reward", found["reward"])
    return parts.build("reward").to(device).eval(), device


main = command("annotate", annotate)

if __name__ == "__main__":
    main()
