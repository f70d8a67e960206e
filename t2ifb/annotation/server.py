"""The web page for annotators, and its protection against other pages and other machines."""

import hmac
import io
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from t2ifb.annotation.answers import Answer, name_of
from t2ifb.annotation.items import Item, Mode
from t2ifb.annotation.queues import AnsweredByOthers, Queues

LOCAL = ("127.0.0.1", "localhost", "::1")
COOKIE = "t2ifb_token"
PARTS = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
IMAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LARGEST_REQUEST = 100_000
"""Bytes."""


def make_app(
    queues: Queues,
    mode: Mode = "rank",
    ratings: bool = False,
    token: str | None = None,
    port: int | None = None,
    results: Callable[[], dict[str, Any]] | None = None,
) -> Starlette:
    """The application.

    Args:
        queues: Questions and answers.
        mode: What the page asks for.
        ratings: Whether it also asks for ratings.
        token: Secret without which nothing is shown. It is needed if other machines can reach the address.
        port: Port in the addresses of the page; by default any.
        results: Gives what is shown when all questions have their answers, so that nobody learns a verdict before.
    """
    targets = {image: image.resolve() for item in queues.items for image in item.images}

    def question(annotator: str, item: Item | None) -> dict[str, Any]:
        progress = queues.progress(annotator)
        state: dict[str, Any] = {
            "mode": mode,
            "ratings": ratings,
            "done": progress.done,
            "left": progress.left,
            "seconds_left": progress.seconds_left,
            "item": None,
        }
        if item is not None:
            images = [{"place": place, "url": f"image/{item.key}/{place}"} for place in queues.order(annotator, item)]
            state["item"] = {"key": item.key, "prompt": item.prompt, "images": images}
        elif results is not None:
            state["results"] = results() if queues.finished() else {}
        return state

    async def ask(request: Request) -> Response:
        def work() -> dict[str, Any]:
            annotator = name_of(request.query_params.get("annotator"))
            return question(annotator, queues.next(annotator))

        return await _json(work)

    async def answer(request: Request) -> Response:
        body = await _body(request)

        def work() -> dict[str, Any]:
            item = queues.find(body.get("item"))
            values = (body.get(name) for name in ("annotator", "answer", "ranks", "ratings", "seconds"))
            given = Answer.checked(item, *values)
            if given.kind == "undone":
                raise ValueError("answer must be one of ranks, skip, all bad")
            queues.answer(given)
            return question(given.annotator, queues.next(given.annotator))

        return await _json(work)

    async def undo(request: Request) -> Response:
        body = await _body(request)

        def work() -> dict[str, Any]:
            annotator = name_of(body.get("annotator"))
            return question(annotator, queues.undo(annotator) or queues.next(annotator))

        return await _json(work)

    async def image(request: Request) -> Response:
        try:
            item, place = queues.find(request.path_params["key"]), request.path_params["place"]
        except ValueError:
            return Response("no such image", 404)
        if place >= len(item.images):
            return Response("no such image", 404)
        return await run_in_threadpool(_image, targets[item.images[place]])

    async def part(request: Request) -> Response:
        name, kind = PARTS[request.path_params.get("name", "")]
        text = files("t2ifb.annotation").joinpath("page", name).read_text(encoding="utf-8")
        return Response(text, media_type=kind)

    async def static(request: Request) -> Response:
        return await part(request) if request.path_params["name"] in PARTS else Response("not found", 404)

    routes = [
        Route("/", part),
        Route("/api/next", ask),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/undo", undo, methods=["POST"]),
        Route("/image/{key}/{place:int}", image),
        Route("/{name}", static),
    ]
    app = Starlette(routes=routes, exception_handlers={ValueError: _refused})
    app.add_middleware(Guard, token=token, port=port)  # type: ignore[arg-type]
    return app


async def _json(work: Callable[[], dict[str, Any]]) -> Response:
    """The result of blocking work, computed in a thread."""
    return _answer(await run_in_threadpool(work))


def _answer(content: dict[str, Any], status: int = 200) -> Response:
    """JSON in ASCII, which can hold every text, also half of a surrogate pair."""
    return Response(json.dumps(content), status, media_type="application/json")


def _image(path: Path) -> Response:
    """An image file in its own format; 404 if it is gone, is a link by now, or is no image."""
    try:
        if path.resolve() != path:
            return Response("no such image", 404)
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            kind = Image.MIME[picture.format or ""]
    except (OSError, UnidentifiedImageError, KeyError):
        return Response("no such image", 404)
    return Response(content, media_type=kind, headers=IMAGE_HEADERS)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ValueError: The body is not a JSON object.
    """
    try:
        body = await request.json()
    except RecursionError as error:
        raise ValueError("the JSON object is nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError("expected a JSON object")
    return body


async def _refused(request: Request, error: Exception) -> Response:
    # `StorageError` is an `OSError` and a `ValueError`.
    status = 507 if isinstance(error, OSError) else 409 if isinstance(error, AnsweredByOthers) else 400
    return _answer({"error": str(error)}, status)


class Guard:
    """Refuses requests from other pages, under other names, too large ones, and those without the token.

    The `Host` header must name this machine or, with a token, anything: a page of another site whose name is made to
    point here (DNS rebinding) sends its own name. `Origin` must be this page. Posted data must be JSON, which another
    site's form cannot send. Every answer has a policy by which the page loads nothing from elsewhere.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, port: int | None = None) -> None:
        """Wrap an application; see `make_app`."""
        self.app, self.token, self.port = app, token, port
        self.cookie = f"{COOKIE}_{port}"  # browsers send cookies to all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        refusal = self._refusal(request) or self._entry(request)
        await (refusal or self.app)(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        host = _address(headers.get("host", ""))
        if host is None or (self.token is None and host.hostname not in LOCAL):
            return Response("this host name is not accepted", 421)
        if self.port is not None and self.token is None and (host.port or 80) != self.port:
            return Response("this port is not accepted", 421)
        if not (_same_page(headers, host) or _is_link(request)):
            return Response("requests of other pages are not accepted", 403)
        if request.method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return Response("expected application/json", 415)
            length = headers.get("content-length", "")
            if not length.isdecimal() or int(length) > LARGEST_REQUEST:
                return Response("the request is too large", 413)
        return None

    def _entry(self, request: Request) -> Response | None:
        """Check the token: once in the address, then in a cookie."""
        if self.token is None:
            return None
        given = request.query_params.get("token")
        if given is not None and _equal(given, self.token):
            entry = RedirectResponse(".", 303)
            # Not `strict`: the link may be on a page of another site. Posts of other sites get no such cookie either.
            entry.set_cookie(self.cookie, quote(self.token, safe=""), httponly=True, samesite="lax")
            return entry
        if _equal(request.cookies.get(self.cookie, ""), quote(self.token, safe="")):
            return None
        return Response("open the address with ?token=… as the command printed it", 401)


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _address(host: str) -> URL | None:
    """A host header as an address; None if it is not one."""
    try:
        address = URL(f"http://{host}/")
        _ = address.port
    except ValueError:
        return None
    return address if address.hostname else None


def _is_link(request: Request) -> bool:
    """Whether the page itself is opened, perhaps by a link on another site, which cannot read it."""
    headers = request.headers
    document = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return document and request.method == "GET" and request.url.path == "/"


def _same_page(headers: Headers, host: URL) -> bool:
    """Whether a request comes from this page or from the address bar."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin in (f"http://{host.netloc}", f"https://{host.netloc}")
