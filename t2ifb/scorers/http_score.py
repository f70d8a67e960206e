"""A scorer behind an HTTP address: a program in another environment or on another machine."""

import asyncio
import json
import os
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx2
from torch import Tensor, nn

from t2ifb.scorers.protocol import ExternalFailure, brief_text, check_limits, decode_answer, score_in_batches

AGAIN = {429, 502, 503, 504}
"""States after which a request is repeated."""
MOST_BYTES = 2**20
"""Size of the longest answer."""


class HTTPScore(nn.Module):
    """Scores by a server that answers POST requests as `t2ifb.scorers.protocol` describes.

    The server is asked directly: proxies and other network settings of the environment are not used, so images and
    token go nowhere else. It has no gradient, so it is for judging and for algorithms that need none.

    Attributes:
        name: Name in messages.
    """

    def __init__(
        self,
        url: str,
        name: str = "",
        version: str = "",
        batch_size: int = 8,
        time_limit: float = 120.0,
        retries: int = 3,
        retry_seconds: float = 1.0,
        token_variable: str | None = None,
    ) -> None:
        """Store the settings. Nothing is sent yet.

        Args:
            url: Address, `http://` or `https://`.
            name: Name in messages; by default the address. Tables use the scorer's key.
            version: Version of the scores. Scores are kept by address and version: give another one when the server
                scores differently.
            batch_size: Maximum number of images in a request.
            time_limit: Seconds for one request, up to the end of its answer.
            retries: Number of further tries if the server cannot be reached, is busy or takes too long.
            retry_seconds: Pause before the second try; doubled before each further one.
            token_variable: Environment variable with a token, which is sent as `Authorization: Bearer <token>`. The
                token itself is not stored in a configuration.

        Raises:
            ValueError: The address or a number is invalid.
        """
        super().__init__()
        if not _is_address(url):
            raise ValueError(f"url={url!r}: expected an address such as http://localhost:8000/score")
        check_limits(batch_size, time_limit, retries)
        self.url, self.name, self.version = url, name or url, version
        self.batch_size, self.time_limit = batch_size, time_limit
        self.retries, self.retry_seconds, self.token_variable = retries, retry_seconds, token_variable

    def fingerprint(self) -> str:
        """Identity for kept scores: address and version."""
        return json.dumps({"url": self.url, "version": self.version})

    @classmethod
    def on_meta(cls, url: str, **options: object) -> Self:
        """Build the scorer for planning: it needs no memory here. See `scorers.meta`."""
        return cls(url, **options)  # type: ignore[arg-type]

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, without gradient.

        Raises:
            ValueError: The server cannot be reached, reports an error, or returns no finite number for each image or
                too long an answer.
        """
        return score_in_batches(images, prompts, self.batch_size, self._ask)

    def _ask(self, request: str, count: int) -> list[float]:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.retry_seconds * 2 ** (attempt - 1))
            try:
                return decode_answer(self._send(request), count, self.name)
            except ExternalFailure as error:
                failure = error
        tries = f", {self.retries + 1} times" if self.retries else ""
        raise ValueError(f"{failure}{tries}") from failure

    def _send(self, request: str) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.token_variable is not None:
            if not (token := os.environ.get(self.token_variable, "").strip()):
                raise ValueError(f"the environment variable {self.token_variable} with a token is not set")
            if not (token.isascii() and token.isprintable()):
                raise ValueError(f"the token in {self.token_variable} has characters that cannot be sent")
            headers["Authorization"] = f"Bearer {token}"
        try:
            state, content = _run(self._post(request, headers))
        except TimeoutError as error:
            raise ExternalFailure(f"{self.url} did not answer within {self.time_limit:g} s") from error
        except httpx2.HTTPError as error:
            raise ExternalFailure(f"{self.url} cannot be reached: {error or type(error).__name__}") from error
        if state in AGAIN:
            raise ExternalFailure(f"{self.url} answered with state {state}")
        if state != 200:
            raise ValueError(f"{self.url} answered with state {state}: {brief_text(content)}")
        return content

    async def _post(self, request: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """State and content of the answer.

        Raises:
            TimeoutError: It is not complete within `time_limit`.
            ValueError: It is too long.
        """
        content = b""
        async with (
            asyncio.timeout(self.time_limit),
            httpx2.AsyncClient(trust_env=False, timeout=None) as client,
            client.stream("POST", self.url, content=request, headers=headers) as answer,
        ):
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"{self.url} answered with more than {MOST_BYTES} bytes; expected some numbers")
            return answer.status_code, content


def _is_address(url: str) -> bool:
    """Whether it is the address of a server."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        return False
    return address.scheme in ("http", "https") and bool(address.host)


def _run(work: Coroutine[Any, Any, tuple[int, bytes]]) -> tuple[int, bytes]:
    """The result of a coroutine, also where an event loop is running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
