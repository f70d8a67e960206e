"""A scorer that is an external program: one JSON request per line on its input, one answer per line on its output."""

import queue
import shlex
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any, Self

from torch import Tensor, nn

from t2ifb.scorers.protocol import ExternalFailure, brief_text, check_limits, decode_answer, score_in_batches


class CommandScore(nn.Module):
    """Scores by a program that stays running and speaks the protocol of `t2ifb.scorers.protocol`.

    The program is started by the first request. It reads one request per line and writes one answer per line; lines on
    its standard output that do not begin with `{` are ignored. It is started again if it stops or takes too long. It
    has no gradient, so it is for judging and for algorithms that need none.

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
                scores differently. Files among the arguments are part of it by their content.
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
            ValueError: The program cannot be started, stops, takes too long, reports an error, or returns no finite
                number for each image.
        """
        return score_in_batches(images, prompts, self.batch_size, self._ask)

    def _ask(self, request: str, count: int) -> list[float]:
        for _ in range(self.retries + 1):
            limit = self.time_limit if self._running is not None else self.start_limit
            if self._running is None:
                self._running = _Program(self.command)
            try:
                return decode_answer(self._running.exchange(request, limit), count, self.name)
            except ExternalFailure as error:
                failure = error
                self._running.stop()
                self._running = None
        tries = f", {self.retries + 1} times" if self.retries else ""
        raise ValueError(f"{failure}{tries}") from failure


class _Program:
    """A running program, stopped when it is no longer used."""

    def __init__(self, command: list[str]) -> None:
        self.title = shlex.join(command)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the program runs
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, encoding="utf-8"
            )
        except OSError as error:
            raise ValueError(f"cannot start {self.title}: {error.strerror or error}") from error
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        self.stop = weakref.finalize(self, _stop, self.process)

    def exchange(self, request: str, limit: float) -> str:
        """Send a request and wait for the answer.

        Raises:
            ExternalFailure: The program has stopped or does not answer in time.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=limit)
        except queue.Empty as error:
            raise ExternalFailure(f"{self.title} did not answer within {limit:g} s{self._last_words()}") from error
        except OSError:
            line = None
        if line is None:
            state = self.process.wait()
            how = f"was ended by signal {-state}" if state < 0 else f"stopped with exit status {state}"
            raise ExternalFailure(f"{self.title} {how}{self._last_words()}")
        return line

    def _last_words(self) -> str:
        """The last line that the program wrote to its standard error."""
        self.errors.seek(0)
        lines = self.errors.read()[-5000:].decode("utf-8", "replace").strip().splitlines()
        return f": {brief_text(lines[-1])}" if lines else ""


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """Put the answers of a program into a queue, and None at its end."""
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
    lines.put(None)


def _stop(process: "subprocess.Popen[str]") -> None:
    """End a program and wait for it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # a request that the program did not read
                stream.close()
