"""The firewall before Gradio: the requests that a visitor may send to the demo.

Gradio serves more than this page needs: it fetches addresses that a visitor names, runs functions past its queue, and
accepts recordings. So only the requests that are named here exist, whatever a newer Gradio adds.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Method and path of all requests of the page, of `gradio_client` and of programs that use HTTP directly.
FOR_ALL = re.compile(
    r"(GET|HEAD) /((assets|static)/.+|theme\.css|favicon\.ico|robots\.txt|manifest\.json)?"
    r"|GET /gradio_api/login_check"
    r"|POST /login"
)
FOR_USERS = re.compile(
    r"(GET|HEAD) /(config|gradio_api/file=.+)"
    r"|GET /gradio_api/(info|openapi\.json|user|app_id|startup-events|upload_progress|queue/data)"
    r"|GET /gradio_api/(heartbeat/\w+|call/(v2/)?predict/\w+)"
    r"|POST /gradio_api/(upload|queue/join|cancel|reset|call/(v2/)?predict)"
)

MAX_CALL_BYTES = 1_000_000
"""A call names an uploaded picture; it does not contain one."""
MB = 2**20
"""As Gradio's page counts file sizes."""
ENVELOPE_BYTES = 65_536
"""Bytes of an upload besides the file: names and boundaries. Gradio counts the file itself."""

INPUTS = ("image", "model", "precision")
"""The inputs of a call, in order: the parameters of `Handlers.predict`."""

NO_PROGRESS = 'data: {"msg": "done"}\n\n'
"""Gradio would look for an upload for three seconds, and fail if the page has refused the file as too large."""

# Nothing on the page, not even a visitor's own file, can make a browser contact another host. Gradio runs code that it
# compiles from strings, and its components contain their styles.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """The answer to a request that is refused; `detail` has the form that Gradio's clients understand."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(status, detail)
        self.response = JSONResponse({"detail": detail}, status)


class Firewall:
    """ASGI application before `gradio_app`; only files in the folder `uploads` can be fetched or named."""

    def __init__(self, app: ASGIApp, gradio_app: Any, uploads: Path, max_upload_mb: int) -> None:
        self.app = app
        self.gradio_app = gradio_app
        self.uploads = uploads.resolve()
        self.max_upload_mb = max_upload_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = self._inner_path(scope["path"])
        send = _with_headers(send)
        if path == "/healthz":
            await PlainTextResponse("ok")(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # the client left: it needs no answer
            await self._pass_on(request, path, scope, receive, send)

    async def _pass_on(self, request: Request, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_route(request, path)
            if path == "/gradio_api/upload_progress":
                await PlainTextResponse(NO_PROGRESS, media_type="text/event-stream")(scope, receive, send)
                return
            if request.method == "POST":
                receive = await self._check_body(request, path)
        except Refusal as refusal:
            await refusal.response(scope, receive, send)
            return
        if path == "/":
            scope["query_string"] = b""  # with it Gradio would look for pages that do not exist
        try:
            await self.app(scope, receive, send)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            # Gradio ends a stream of events that it does not know (any more) so, after a message in the stream.
            await send({"type": "http.response.body"})

    def _inner_path(self, path: str) -> str:
        """`path` as Gradio's router sees it: without the prefix of a proxy (GRADIO_ROOT_PATH)."""
        root = self.gradio_app.root_path
        return path.removeprefix(root) if root and path.startswith(f"{root}/") else path

    def _check_route(self, request: Request, path: str) -> None:
        asked = f"{request.method} {path}"
        if FOR_ALL.fullmatch(asked):
            return
        if not FOR_USERS.fullmatch(asked):
            raise Refusal(404, "there is no such page")
        tokens = self.gradio_app.tokens
        if self.gradio_app.auth is not None and not any(cookie in tokens for cookie in request.cookies.values()):
            raise Refusal(401, "sign in first: POST /login with username and password")
        _, is_file, name = path.partition("/gradio_api/file=")
        if is_file and not self._is_upload(name):  # Gradio would follow links and fetch addresses
            raise Refusal(403, "this file does not belong to the demo")

    async def _check_body(self, request: Request, path: str) -> Receive:
        """Refuse requests that are too large, before reading them, and calls that name files that were not uploaded."""
        try:
            length = int(request.headers["content-length"])
        except (KeyError, ValueError):
            raise Refusal(411, "the request has no length; send the header Content-Length") from None
        if path == "/gradio_api/upload":
            if length > self.max_upload_mb * MB + ENVELOPE_BYTES:
                raise Refusal(413, f"the file is too large; give one of at most {self.max_upload_mb} MB")
            return request.receive
        if length > MAX_CALL_BYTES:
            raise Refusal(413, "the call is too large; upload the picture first: POST /gradio_api/upload")
        body = await request.body()
        if path != "/login":  # the login is a form
            _check_inputs(path, self._read_call(body))
        return _replay(body, request.receive)

    def _read_call(self, body: bytes) -> Any:
        """Gradio would fetch a picture from any address, and does not check the files of every kind of call."""

        def check(item: dict[str, Any]) -> dict[str, Any]:
            if "path" in item and not self._is_upload(item["path"]):
                message = "this is not an uploaded file; upload the picture first: POST /gradio_api/upload"
                failed = {"__type__": "validate", "is_valid": False, "parameter_name": "image", "message": message}
                raise Refusal(422, [failed])  # in this form `gradio_client` and the page show the message
            return item

        try:
            return json.loads(body, object_hook=check)
        except (ValueError, RecursionError):
            raise Refusal(400, "the request is not JSON") from None

    def _is_upload(self, path: Any) -> bool:
        try:
            return isinstance(path, str) and Path(os.path.realpath(path)).is_relative_to(self.uploads)
        except (ValueError, OSError):  # a name that no file can have
            return False


def _check_inputs(path: str, call: Any) -> None:
    """Gradio would fail on a call with a missing input and send no message to the caller."""
    named = call if isinstance(call, dict) else {}
    if path == "/gradio_api/call/predict":
        data = named.get("data")
        if not isinstance(data, list) or len(data) != len(INPUTS):
            raise Refusal(422, f'give {{"data": [{", ".join(INPUTS)}]}}; "" means the default of model and precision')
    elif path == "/gradio_api/call/v2/predict" and not {"image"} <= set(named) <= {*INPUTS}:
        raise Refusal(422, f"name the image; valid names: {', '.join(INPUTS)}")


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers
