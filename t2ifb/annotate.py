"""`python -m t2ifb.annotate`: rank images in the browser, alone or with others."""

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from t2ifb.config.command import command
from t2ifb.config.errors import ConfigError
from t2ifb.config.instantiate import Components, lazy
from t2ifb.config.reward_source import find_latest, settings_of
from t2ifb.generate import wished_prompts
from t2ifb.utils.overrides import typed
from t2ifb.utils.random_streams import Stream, generator

if TYPE_CHECKING:
    import torch
    import uvicorn

    from t2ifb.annotation.answers import AnswerLog
    from t2ifb.annotation.items import Item
    from t2ifb.annotation.results import Results

MODEL = ("diffusion", "sampling")
"""What images depend on, beside adapters, prompts and seed."""
COPIES = 4
"""Images of the base model per prompt, where there is no run."""
Scores = Callable[[], "dict[str, list[float]] | None"]
"""Gives the scores of each question's images by the reward; None without one."""
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
    order, most = parts.value("order"), parts.value("most")
    if order not in ("random", "disagreement") or (most is not None and most < 1):
        raise ConfigError([f"order={order} most={most}: expected random or disagreement, and at least 1"])
    reward, device = _reward(parts)  # what is wrong with it is said before anything is drawn or answered
    source, output = _places(parts)
    items = read_items(source, mode, parts.value("images"), parts.value("seed"))
    items = _chosen(parts, items, reward, device)
    log = AnswerLog(output, items)

    @cache
    def scores() -> dict[str, list[float]] | None:
        return None if reward is None else _scores(reward, items, device)

    try:
        if parts.value("serve"):
            _serve(parts, items, log, scores)
    finally:
        log.close()
        _conclude(parts, items, log, scores)


def _places(parts: Components) -> tuple[Path, Path]:
    """Where the images are, which are drawn if need be, and where the answers go.

    Raises:
        ConfigError: There are no images and nothing to draw, both are given, or it is not clear where to draw.
    """
    source, output, runs = parts.value("source"), parts.value("output"), parts.value("run")
    runs = [runs] if isinstance(runs, str) else list(runs)
    drawn = any([runs, *(parts.value(key) for key in ("prompt", "file", "split"))])
    if bool(source) == drawn and not (source and not runs and _is_run(source)):
        given = "both are given" if source else "neither is given"
        raise ConfigError([f"source: give a folder of images, or what to draw (run, prompt, file or split); {given}"])
    if source and not _is_run(source):
        folder = Path(source).expanduser()
        folder = folder if folder.is_dir() else folder.parent
        return Path(source).expanduser(), Path(output).expanduser() if output else folder / "annotations"
    runs = runs or ([source] if source else [])
    if not output and not (len(runs) == 1 and _is_run(runs[0])):
        raise ConfigError(["output: give a folder for the images and the answers; the same folder continues them"])
    target = Path(output).expanduser() if output else Path(runs[0]).expanduser() / "annotations"
    return _drawn(parts, runs, target / "images"), target


def _is_run(path: str) -> bool:
    """Whether a folder is a finished fine-tuning run."""
    from t2ifb.diffusion.lora import LORA_WEIGHTS

    return (Path(path).expanduser() / "export" / LORA_WEIGHTS).is_file()


def _drawn(parts: Components, runs: list[str], folder: Path) -> Path:
    """The folder with images of the base model and of the tuned ones, drawn if they are not there.

    In random order only as many prompts are drawn as questions are asked, chosen at random.
    """
    from t2ifb.annotation.drawing import draw

    if runs:
        _take_settings(parts, runs)
        if not any(parts.value(key) for key in ("prompt", "file", "split")):
            parts.settle("split", "test")
    most = parts.value("most") if parts.value("order") == "random" else None
    copies = parts.value("images_per_prompt")
    nodes = {key: parts.value(key) for key in MODEL}
    try:
        return draw(
            folder, lazy(nodes["diffusion"]), lazy(nodes["sampling"]), runs,
            _some(wished_prompts(parts), most, parts.value("seed")),
            (1 if runs else COPIES) if copies is None else copies, nodes,
            parts.value("batch_size"), parts.value("device"), parts.value("seed"),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _some(prompts: list[str], most: int | None, seed: int) -> list[str]:
    """At most so many different random prompts; a larger number adds others to those of a smaller one."""
    prompts = list(dict.fromkeys(prompts))
    order = generator(Stream.ANNOTATION, seed).permutation(len(prompts))
    return [prompts[place] for place in order[:most]]


def _take_settings(parts: Components, runs: list[str]) -> None:
    """Take base model, sampling and prompts from the runs, except for what is given as an argument.

    Raises:
        ConfigError: The runs have different base models or sampling.
    """
    typed = [argument.partition("=")[0].lstrip("+~") for argument in parts.arguments]
    for key in (*MODEL, "prompts"):
        if key in typed:
            continue
        given = {name: parts.value(name) for name in typed if name.startswith(f"{key}.")}
        if key == "sampling" and any(name.partition(".")[0] == "scheduler" for name in typed):
            given["sampling.schedule"] = parts.value("scheduler")
        found = [node for run in runs if (node := settings_of(run, [key]).get(key)) and "_target_" in node]
        if key != "prompts" and any(node != found[0] for node in found):
            raise ConfigError([f"run: the runs differ in {key}; compare them one at a time, or give {key}=…"])
        for name, value in {**({key: found[0]} if found else {}), **given}.items():
            parts.settle(name, value)


def _chosen(parts: Components, items: "list[Item]", reward: Any, device: "torch.device") -> "list[Item]":
    """The questions to ask, in order: those of all prompts, or of the first `most`.

    Raises:
        ConfigError: Disagreement has no ensemble.
    """
    if parts.value("order") == "disagreement":
        from t2ifb.annotation.selection import by_disagreement

        if (members := getattr(reward, "members", None)) is None:
            raise ConfigError(["order=disagreement: give +scorer@reward=ensemble 'reward.sources=[RUN,RUN,RUN]'"])
        items = by_disagreement(items, list(members), device)
    prompts = [*dict.fromkeys(item.prompt for item in items)][: parts.value("most")]
    return [item for item in items if item.prompt in {*prompts}]


def _serve(parts: Components, items: "list[Item]", log: "AnswerLog", scores: Scores) -> None:
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
            lambda: summarise(log.current(), items, scores(), parts.value("seed")).lines(),
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
            listener.listen()  # before the address is printed: who opens it at once waits for the server
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


def _conclude(parts: Components, items: "list[Item]", log: "AnswerLog", scores: Scores) -> None:
    """Print and write the results, and export the rankings if wished."""
    from t2ifb.annotation.results import export, summarise
    from t2ifb.utils.files import write_json

    answers = log.current()
    if not answers:
        return
    results: Results = summarise(answers, items, scores(), parts.value("seed"))
    for name, text in results.lines().items():
        print(f"{name}: {text}")
    write_json(log.folder / "results.json", results.to_json())
    if (images := log.folder.parent).name == "rankings" and (rounds := images.parent.parent / ".hydra").is_dir():
        print(f"continue the rounds: python -m t2ifb.train {typed('resume', rounds.parent)}")
    else:
        rest = f"{typed('domain', parts.value('domain'))} dataset=own_rankings {typed('dataset.source', log.folder)}"
        print(f"train a reward on them: python -m t2ifb.train +experiment=reward_mlp {rest}")
    if parts.value("export"):
        counts = export(log.folder, Path(parts.value("export")).expanduser())
        print(f"{sum(counts.values())} rankings in ImageRewardDB's layout: {parts.value('export')}")


def _scores(reward: Any, items: "list[Item]", device: "torch.device") -> dict[str, list[float]] | None:
    """Scores by the reward that annotators are compared with; None, with a message, if it fails."""
    from t2ifb.annotation.results import score_items

    try:
        return score_items(reward, items, device)
    except (ValueError, RuntimeError, OSError) as error:  # answers must not wait for it
        print(f"the answers are not compared with the reward: {error}", flush=True)
        return None


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
