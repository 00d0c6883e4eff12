"""The page's language: the switch's choice, else the browser's, and one language for the whole page."""

import asyncio
import re
import string
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from toolkit.demo.language import SpeakLanguage, choose_language
from toolkit.demo.texts import TEXTS


@pytest.mark.parametrize(
    ("cookies", "accept", "language"),
    [
        ("", "", "en"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "zh-Hant-TW", "zh"),
        ("", "de-DE,de;q=0.9", "en"),
        ("", "de, zh;q=0.5", "zh"),
        ("", "zh;q=0.3,en;q=0.7", "en"),
        ("", "zh;q=0, en;q=0.1", "en"),
        ("", "zh;q=abc", "en"),
        ("", "*", "en"),
        ("kd_language=zh", "en-US", "zh"),
        ("other=1; kd_language=en", "zh-CN", "en"),
        ("kd_language=fr", "zh-CN", "zh"),
        ("kd_language=<script>", "", "en"),
        ("=;;=\x00", "zh", "zh"),
    ],
)
def test_the_switch_goes_before_the_browser(cookies: str, accept: str, language: str) -> None:
    assert choose_language(cookies, accept) == language


def test_both_languages_say_the_same_things() -> None:
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        fields, translated = (
            sorted(name for _, name, *_ in string.Formatter().parse(t) if name) for t in (text, chinese[key])
        )
        if text:  # if it is empty, the error's own sentence is shown
            assert fields == translated, key
        assert re.search(r"[\u4e00-\u9fff]", chinese[key]) or key == "col_top1"


async def page(request: Request) -> Response:
    return HTMLResponse("<!doctype html><html><head><title>x</title></head><body>é</body></html>")


async def other(request: Request) -> Response:
    return PlainTextResponse("<head>")


def fetch(path: str, **headers: str) -> tuple[dict[str, str], bytes]:
    """An application of one page behind the middleware."""
    app = SpeakLanguage(Starlette(routes=[Route("/", page), Route("/other", other)]))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": raw}
    asyncio.run(app(scope, receive, send))
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return names, b"".join(message.get("body", b"") for message in sent[1:])


def test_a_script_that_sets_the_language_comes_first() -> None:
    headers, body = fetch("/", accept_language="zh-CN")
    assert headers["content-length"] == str(len(body))
    assert "Accept-Language" in headers["vary"]
    assert body.startswith(b'<!doctype html><html><head><script>document.documentElement.lang="zh-CN";')
    assert body.endswith("é</body></html>".encode())
    assert b'lang="en"' in fetch("/", accept_language="zh-CN", cookie="kd_language=en")[1]


def test_nothing_else_is_changed() -> None:
    assert fetch("/other", accept_language="zh")[1] == b"<head>"
