"""A browser for tests of the studio: the system's Chromium, and what a page may not do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

SCREENSHOTS = Path(__file__).resolve().parents[1] / "out/studio"
NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 60_000
expect.set_options(timeout=TIMEOUT_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser; a test without one is skipped.

    Only for files whose tests are all synchronous: Playwright keeps an event loop running in this thread.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
        yield browser


class Visit:
    """One visitor's page of a server, and everything that it did wrong."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.context = browser.new_context(viewport=context.pop("viewport", {"width": 1280, "height": 900}), **context)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.errors: list[str] = []
        self.requests: list[Request] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))

    def _hear(self, message: ConsoleMessage) -> None:
        is_answer = message.text.startswith("Failed to load resource")  # a refusal, which the page itself shows
        if message.type in ("error", "warning") and not is_answer:
            self.errors.append(message.text)

    def open(self, view: str = "draw") -> Page:
        self.page.goto(f"{self.url}/#{view}")
        expect(self.page.locator("main")).to_have_attribute(
            "data-view", view.partition("=")[0].replace("request", "draw")
        )
        return self.page

    def foreign(self) -> set[str]:
        """Hosts, other than the server's, that anything was asked of."""
        own = urlsplit(self.url).netloc
        hosts = {urlsplit(request.url).netloc for request in self.requests if not request.url.startswith("data:")}
        return {host for host in hosts if host not in (own, "")}

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def barriers(self) -> list[str]:
        """What axe finds serious or critical: who can't see, or use a mouse, stops there."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    def keep(self, name: str) -> None:
        """Save a picture of the whole page among the artefacts; nobody may be shut out of what it shows."""
        assert self.barriers() == [], name
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    def close(self) -> None:
        self.context.close()
        assert self.errors == []
        assert self.foreign() == set()
