"""The language of the page: the one that its switch chose, else the browser's.

Gradio takes the language of its own words from `navigator.language`. A script at the start of the page's head sets it,
so that the whole page speaks one language. The script also sets the title, because the sign-in page has no other.
"""

from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.demo.texts import TEXTS, Language

COOKIE = "kd_language"
DEFAULT: Language = "en"
LOCALES: dict[Language, str] = {"en": "en", "zh": "zh-CN"}


def choose_language(cookies: str, accept: str) -> Language:
    """From the headers Cookie and Accept-Language; English if they ask for no language that the page speaks."""
    try:
        chosen = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        chosen = None
    if chosen is not None and (language := _known(chosen.value)):
        return language
    wishes = [
        (_weight(parameters), name) for name, _, parameters in (wish.partition(";") for wish in accept.split(","))
    ]
    for weight, name in sorted(wishes, key=lambda wish: -wish[0]):
        if weight > 0 and (language := _known(name)):
            return language
    return DEFAULT


class SpeakLanguage:
    """ASGI middleware: the page at `/` gets its language."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        language = choose_language(headers.get("cookie", ""), headers.get("accept-language", ""))
        start: dict[str, Any] = {}
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            answer = MutableHeaders(raw=list(start["headers"]))
            if answer.get("content-type", "").startswith("text/html"):
                page = _speak(body, language)
                answer["content-length"] = str(len(page))
                answer["vary"] = "Cookie, Accept-Language"
            else:
                page = body
            await send({**start, "headers": answer.raw})
            await send({"type": "http.response.body", "body": page})

        await self.app(scope, receive, rewrite)


def _speak(page: bytes, language: Language) -> bytes:
    locale = LOCALES[language]
    script = (
        f'<script>document.documentElement.lang="{locale}";document.title="kd-toolkit";for(const [name,value] of '
        f'[["language","{locale}"],["languages",["{locale}"]]])'
        "Object.defineProperty(navigator,name,{get:()=>value});</script>"
    )
    return page.replace(b"<head>", b"<head>" + script.encode(), 1)


def _known(name: str) -> Language | None:
    """The language of a tag such as zh-Hans-CN, if the page speaks it."""
    return next((language for language in TEXTS if name.strip().lower().partition("-")[0] == language), None)


def _weight(parameters: str) -> float:
    """The weight in `q=0.8`; 1 if it is missing, 0 if it is not a number."""
    _, given, value = parameters.strip().partition("q=")
    try:
        return float(value) if given else 1.0
    except ValueError:
        return 0.0
