"""A scorer that is an external program: one JSON request per line on its input, one answer per line on its output."""

import io
import json
import os
import queue
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, Self

from torch import Tensor, nn

from t2ifb.scorers.protocol import ExternalFailure, brief_text, check_limits, decode_answer, score_in_batches
from t2ifb.utils.files import sha256_file
from t2ifb.utils.fingerprints import identity

POLL = 0.2
"""Seconds between two looks at whether the program still runs."""
GRACE = 2.0
"""Seconds for a program to end that has closed its output, and for the threads that read and write."""


class CommandScore(nn.Module):
    """Scores by a program that stays running and speaks the protocol of `t2ifb.scorers.protocol`.

    The program is started by the first request. It reads one request per line and writes one answer per line; lines on
    its standard output that do not begin with `{` are ignored. Each request has an `id`, a number; an answer may
    repeat it, and is refused if it has another one. The program is started again if it stops or takes too long, and
    stopped after any other error. It has no gradient, so it is for judging and for algorithms that need none.

    Attributes:
        name: Name in messages.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        name: str = "",
        version: str = "",
        batch_size: int = 8,
        time_limit: float = 120.0,
        start_limit: float = 600.0,
        retries: int = 1,
    ) -> None:
        """Store the settings. Nothing is started yet.

        Args:
            command: The program and its arguments, as a list or as one text, which is split as a shell does; no shell
                runs it.
            name: Name in messages; by default the program's. Tables use the scorer's key.
            version: Version of the scores. Scores are kept by command and version: give another one when the program
                scores differently. Files among the arguments, also `--name=FILE`, count by their content.
            batch_size: Maximum number of images in a request.
            time_limit: Seconds for one request.
            start_limit: Seconds for the first request after a start, which includes loading the program's weights.
            retries: Number of further tries if the program stops or takes too long.

        Raises:
            ValueError: The command is empty or a number is out of range.
        """
        super().__init__()
        self.command = shlex.split(command) if isinstance(command, str) else [str(part) for part in command]
        if not self.command:
            raise ValueError("command is empty; expected a program and its arguments")
        check_limits(batch_size, min(time_limit, start_limit), retries)
        self.name, self.version, self.batch_size = name or self.command[0], version, batch_size
        self.time_limit, self.start_limit, self.retries = time_limit, start_limit, retries
        self._running: _Program | None = None
        self._asked = 0

    @classmethod
    def on_meta(cls, command: str | Sequence[str], **options: object) -> Self:
        """Build the scorer for planning: its memory is the program's own. See `scorers.meta`."""
        return cls(command, **options)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """State without the running program, which a copy starts for itself."""
        return {**self.__dict__, "_running": None}

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, without gradient.

        Raises:
            ValueError: The program cannot be started, stops, takes too long, reports an error, returns no finite
                number for each image, or answers another request.
        """
        return score_in_batches(images, prompts, self.batch_size, self._ask)

    def fingerprint(self) -> str:
        """Identity for kept scores: the command, with files and folders by their content, and the version."""
        parts = [[part] if os.path.exists(part) else part.split("=", 1) for part in self.command]
        return json.dumps({"command": identity(parts, sha256_file, "command"), "version": self.version}, sort_keys=True)

    def _ask(self, request: str, count: int) -> list[float]:
        for _ in range(self.retries + 1):
            limit = self.time_limit if self._running is not None else self.start_limit
            if self._running is None:
                self._running = _Program(self.command)
            self._asked += 1
            try:
                answer = self._running.exchange(f'{{"id": {self._asked}, {request.removeprefix("{")}', limit)
                return decode_answer(answer, count, self.name, self._asked)
            except BaseException as error:  # also Ctrl-C: a late answer must not be taken for that of the next request
                self._running.stop()
                self._running = None
                if not isinstance(error, ExternalFailure):
                    raise
                failure = error
        tries = f", {self.retries + 1} times" if self.retries else ""
        raise ValueError(f"{failure}{tries}") from failure


class _Program:
    """A running program, stopped when it is no longer used."""

    def __init__(self, command: list[str]) -> None:
        self.title = shlex.join(command)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the program runs
        try:
            self.process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,  # so that its own child processes end with it
            )
        except OSError as error:
            raise ValueError(f"cannot start {self.title}: {error.strerror or error}") from error
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.threads = [threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True)]
        self.threads[0].start()
        self.stop = weakref.finalize(self, _stop, self.process, self.threads)

    def exchange(self, request: str, limit: float) -> str:
        """Send a request and wait for the answer.

        Args:
            request: The request, on one line.
            limit: Seconds for both.

        Raises:
            ExternalFailure: The program has stopped or does not answer in time.
            ValueError: A line that no request asked for is waiting.
        """
        end = time.monotonic() + limit
        with suppress(queue.Empty):
            if (early := self.lines.get_nowait()) is not None:
                raise ValueError(
                    f"{self.title} wrote {brief_text(early)!r} before it was asked; expected one line that begins with "
                    "{ for each request, and none at other times"
                )
            self.lines.put(None)
        writer = threading.Thread(target=_write, args=(self.process.stdin, request.encode() + b"\n"), daemon=True)
        self.threads[1:] = [writer]
        writer.start()
        line: str | None = None
        ended = False
        while time.monotonic() < end:
            try:
                line = self.lines.get(timeout=max(0.0, min(POLL, end - time.monotonic())))
                break
            except queue.Empty:
                if ended:
                    break
                ended = self.process.poll() is not None  # a child process may keep the output open: look once more
        else:
            raise ExternalFailure(f"{self.title} did not answer within {limit:g} s{self._last_words()}")
        if line is not None:
            return line
        try:
            state = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            raise ExternalFailure(f"{self.title} closed its output{self._last_words()}") from None
        how = f"was ended by signal {-state}" if state < 0 else f"stopped with exit status {state}"
        raise ExternalFailure(f"{self.title} {how}{self._last_words()}")

    def _last_words(self) -> str:
        """The last line that the program wrote to its standard error."""
        file = self.errors.fileno()
        size = os.fstat(file).st_size
        lines = os.pread(file, 5000, max(0, size - 5000)).decode("utf-8", "replace").strip().splitlines()
        return f": {brief_text(lines[-1])}" if lines else ""


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """Put the answers of a program into a queue, and None at its end."""
    with suppress(OSError):
        for line in io.BufferedReader(stream):
            text = line.decode("utf-8", "replace")
            if text.startswith("{"):
                lines.put(text)
    lines.put(None)


def _write(stream: Any, request: bytes) -> None:
    """Write a request. That the program does not read it shows in its missing answer."""
    rest = memoryview(request)
    with suppress(OSError):
        while rest:
            rest = rest[stream.write(rest) :]


def _stop(process: "subprocess.Popen[bytes]", threads: list[threading.Thread]) -> None:
    """End a program and its child processes, and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for thread in threads:
        thread.join(GRACE)
    if any(thread.is_alive() for thread in threads):
        return  # a child process in a session of its own holds the pipes; closing them would wait for it
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
