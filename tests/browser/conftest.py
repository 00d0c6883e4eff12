"""One demo and one browser for all tests, and a page for each, which is watched: see `Watched`.

The browser is the system's Chromium, driven by Playwright; `make test-browser` installs what is missing.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from demo_server import LAST_WORDS, Server
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from browser.samples import make_bare_dir, make_full_dir
from browser.visitor import OpenPage
from toolkit.modeldir import ModelDir

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    # A request to another host fails at once and is seen, and the browser itself keeps quiet.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # A camera that shows a test picture, and a user who allows it.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
WAIT_MS = 120_000
"""ms after which a test gives up; it says nothing about the machine's speed"""


@dataclass(frozen=True)
class Demo:
    """`toolkit demo` on two model directories: one that has everything, and one that has only its networks."""

    url: str
    full: ModelDir
    bare: ModelDir


@dataclass
class Watched:
    """Forbidden acts of pages: errors in the console, requests that fail or go to another host."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        page.on("request", self._follow)
        page.on("requestfailed", self._lose)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text} ({message.location.get('url')})")

    def _follow(self, request: Request) -> None:
        self.requests.append(f"{request.method} {request.url}")
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.problems.append(f"another host was asked: {request.url}")

    def _lose(self, request: Request) -> None:
        if "ERR_ABORTED" not in str(request.failure):  # requests that a page no longer waits for, because it was left
            self.problems.append(f"failed: {request.url} ({request.failure})")


@contextmanager
def serve(*model_dirs: ModelDir, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The demo's address; it must have had no trouble, have asked no other host, and end well."""
    server = Server.start(model_dirs, log, environment=environment)
    try:
        yield server.url
    finally:
        last_words = server.stop()
    assert last_words == LAST_WORDS
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="package")
def chromium() -> str:
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        pytest.skip("NO CHROMIUM IS HERE (apt-get install chromium, or CHROMIUM=/path/to/it): the page was NOT tried")
    return found


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def demo(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    root = tmp_path_factory.mktemp("demo")
    full, bare = make_full_dir(root / "colours"), make_bare_dir(root / "bare")
    with serve(full, bare, log=root / "stderr") as url:
        yield Demo(url, full, bare)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    assert watched.problems == []


@pytest.fixture
def open_page(browser: Browser, demo: Demo, watched: Watched) -> Iterator[OpenPage]:
    """Opens the demo as a new visitor does, in a browser of that language, size and colour scheme."""
    contexts = []

    def open_page(locale: str = "en-US", width: int = 1280, scheme: str = "light", url: str = demo.url) -> Page:
        context = browser.new_context(
            locale=locale,
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write", "camera"],
        )
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        watched.watch(page)
        page.on("filechooser", lambda _: None)  # now, since it takes a moment until the browser reports its dialogues
        _load(page, url, watched)
        return page

    yield open_page
    for context in contexts:
        context.close()


def _load(page: Page, url: str, watched: Watched, tries: int = 3) -> None:
    page.goto(url)
    try:
        expect(page.get_by_role("tab").first).to_be_visible()
        expect(page.locator("#picture button[aria-dropeffect]")).to_be_visible()  # comes last
    except AssertionError:
        # Chromium drops all connections when an interface of the machine comes or goes, as a container's does.
        if tries == 1 or not any("ERR_NETWORK_CHANGED" in problem for problem in watched.problems):
            raise
        watched.problems.clear()
        _load(page, url, watched, tries - 1)


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page()
