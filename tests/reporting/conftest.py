"""A headless browser for the page; tests that need it are skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2ifb.reporting.page import make_page


class Visit:
    """A page in the browser.

    Attributes:
        page: Playwright's.
        errors: Errors on the console and in scripts.
        requests: What was asked for beside data inside the page.
    """

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **context})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note)
        self.page.goto(file.as_uri())

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)

    def draw(self, section: str) -> None:
        """Go to a section and wait until its charts that are on the screen are drawn."""
        self.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        ready = f"document.querySelector('#{section} .plot:is(.js-plotly-plot) .main-svg') !== null"
        self.page.wait_for_function(ready)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def plot(self, selector: str) -> list[dict[str, Any]]:
        """The traces of a chart."""
        return self.page.locator(selector).evaluate("element => JSON.parse(JSON.stringify(element.data))")


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open the page of some runs; at the end nothing may have been fetched and no error may have come up."""
    visits = []

    def of(*folders: Path, **context: Any) -> Visit:
        file = tmp_path / "report.html"
        file.write_bytes(make_page(folders).html)
        visits.append(Visit(browser, file, **context))
        return visits[-1]

    yield of
    for one in visits:
        assert one.errors == []
        assert len(one.requests) == 1
        one.context.close()
