"""The demo's server: its visitors, the paths that it serves, and its end."""

import concurrent.futures
import contextlib
import http.client
import json
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import free_port
from demo_server import (
    LAST_WORDS,
    Reply,
    Server,
    as_pairs,
    ask,
    connect,
    post_file,
    post_json,
    request,
    save_picture,
)
from gradio_client import Client, handle_file
from gradio_client.exceptions import AuthenticationError, ValidationError
from PIL import Image
from toolkit_process import toolkit
from typer.testing import CliRunner

from toolkit.cli.app import app
from toolkit.demo.firewall import INPUTS
from toolkit.demo.server import GRACE_S, read_login, serve
from toolkit.errors import ToolkitError, UsageError
from toolkit.modeldir import ModelDir
from toolkit.predict import predict_files

PREDICT = "/gradio_api/call/predict"
SECRET = b"this is the server's own"
USER, PASSWORD = "guest", "blühende-Träume 1"
UPLOAD_FIRST = "upload the picture first: POST /gradio_api/upload"


def uploaded(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    (path,) = json.loads(reply.body)
    return str(path)


def predict(url: str, path: str, seconds: float = 600) -> tuple[int, Any]:
    """Ask as a program without a client library: (200, answer) if all went well, else status and message."""
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = post_json(url, PREDICT, {"data": [picture, "", ""]})
    reply = json.loads(asked.body)
    if asked.status != 200:
        return asked.status, reply["detail"]
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=seconds)) as connection:
        connection.request("GET", f"{PREDICT}/{reply['event_id']}")
        text = connection.getresponse().read().decode()
    (data,) = re.findall(r"^event: complete\ndata: (.*)$", text, re.MULTILINE)
    return 200, json.loads(data)[0]


@pytest.fixture
def stranger() -> Iterator[tuple[socket.socket, str]]:
    """A host that nobody may ask, with its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"


def test_health_is_one_word(url: str) -> None:
    reply = request(url, "/healthz")
    assert (reply.status, reply.body) == (200, b"ok")


def test_the_policy_forbids_a_browser_to_ask_other_hosts(url: str) -> None:
    for path in ("/", "/theme.css", "/healthz", "/nowhere"):
        headers = request(url, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        sources = re.findall(r"[^\s;]+", headers["content-security-policy"])
        assert not [source for source in sources if "*" in source or "." in source or source in ("http:", "https:")]


def test_the_page_names_no_other_host(url: str) -> None:
    page = request(url, "/")
    assert page.status == 200
    for outside in (b"googleapis", b"gstatic", b"cdnjs", b"jsdelivr", b"unpkg"):
        assert outside not in page.body
    styles = request(url, "/theme.css").body
    addresses = re.findall(rb"""(?:url\(|@import)\s*["']?([^"')]*)""", styles)
    assert [address for address in addresses if not address.startswith(b"data:")] == []


def test_only_this_machine_is_served_by_default(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.socket() as other_address, pytest.raises(ConnectionRefusedError):
        other_address.connect(("127.0.0.2", port))


def test_a_taken_port_is_one_clear_line(url: str) -> None:
    port = url.rpartition(":")[2]
    done = toolkit("demo", "nowhere", "--port", port, code=1)
    assert done.stdout == ""
    assert done.stderr == (
        f"error: cannot serve on 127.0.0.1, port {port}: Address already in use; give another --port or --host\n"
    )


@pytest.fixture
def _signals() -> Iterator[None]:
    """`serve` says what SIGTERM does in its process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "", "x" * 70])
def test_an_address_of_another_machine_is_one_clear_line(host: str) -> None:
    with pytest.raises(ToolkitError, match=r"^cannot serve on .*, port \d+: .+; give another --port or --host$"):
        serve([], host, free_port())


@pytest.mark.usefixtures("_signals")
def test_no_folder_for_uploads_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    message = r"there is no folder for uploads: No such file or directory; make /tmp writable, or set TMPDIR"
    with pytest.raises(ToolkitError, match=message):
        serve([], port=free_port())


def test_half_a_login_is_one_clear_line_without_the_secret() -> None:
    for given, missing in (("USER", "PASSWORD"), ("PASSWORD", "USER")):
        environment = {f"KD_TOOLKIT_{given}": "xyzzy", f"KD_TOOLKIT_{missing}": ""}
        with pytest.raises(ToolkitError) as error:
            read_login(environment)
        assert str(error.value) == (
            f"KD_TOOLKIT_{given} is set and KD_TOOLKIT_{missing} is not; "
            f"set both, so that visitors sign in, or unset KD_TOOLKIT_{given}"
        )
    assert read_login({"KD_TOOLKIT_USER": "", "OTHER": "x"}) is None


def test_a_login_takes_this_user_and_this_password() -> None:
    login = read_login({"KD_TOOLKIT_USER": USER, "KD_TOOLKIT_PASSWORD": PASSWORD})
    assert login is not None
    assert login(USER, PASSWORD)
    for user, password in ((USER, ""), ("", PASSWORD), (PASSWORD, USER), (USER, PASSWORD + " "), ("", "")):
        assert not login(user, password)


def test_the_upload_limit_is_an_option_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("toolkit.demo.server.serve", lambda *_, max_upload_mb, **__: seen.append(max_upload_mb))
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert CliRunner().invoke(app, ["demo", "--max-upload", "3"]).exit_code == 0
    assert CliRunner().invoke(app, ["demo"], env={"KD_TOOLKIT_MAX_UPLOAD": "25"}).exit_code == 0
    assert seen == [10, 3, 25]
    refused = CliRunner().invoke(app, ["demo", "--max-upload", "0"])
    assert isinstance(refused.exception, UsageError)
    assert "--max-upload" in refused.exception.problem


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_too_large_a_file_is_refused_and_not_kept(url: str, server: Server) -> None:
    largest = uploaded(post_file(url, bytes(10 * 2**20)))
    folder = Path(largest).parents[1]
    before = files_below(folder)
    for size, expected in (
        (10 * 2**20 + 1, b"File size exceeded maximum allowed size of 10485760 bytes."),  # as gradio says it
        (10_600_000, b'{"detail":"the file is too large; give one of at most 10 MB"}'),
        (40_000_000, b'{"detail":"the file is too large; give one of at most 10 MB"}'),
    ):
        reply = post_file(url, bytes(size))
        assert (reply.status, reply.body) == (413, expected)
    assert files_below(folder) == before
    assert "Traceback" not in server.log.read_text()


def test_a_body_of_unknown_length_is_refused(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=600)) as connection:
        for path in ("/gradio_api/upload", PREDICT):
            connection.request("POST", path, iter([b"{}"]), {"Content-Type": "application/json"}, encode_chunked=True)
            response = connection.getresponse()
            assert response.status == 411
            assert json.loads(response.read()) == {
                "detail": "the request has no length; send the header Content-Length"
            }


def test_a_picture_within_the_call_is_refused(url: str, server: Server) -> None:
    data = "data:image/png;base64," + "A" * 1_100_000
    for path in (PREDICT, "/gradio_api/queue/join", "/login"):
        reply = post_json(url, path, {"data": [{"url": data}], "session_hash": "s", "fn_index": 0})
        assert reply.status == 413
        assert UPLOAD_FIRST in json.loads(reply.body)["detail"]
    assert "Traceback" not in server.log.read_text()


def test_a_call_may_name_nothing_but_an_upload(
    url: str, server: Server, model_dirs: list[ModelDir], stranger: tuple[socket.socket, str], tmp_path: Path
) -> None:
    listener, address = stranger
    picture = save_picture(tmp_path / "a.png")
    upload = uploaded(post_file(url, picture.read_bytes()))
    link = Path(upload).with_name("link.png")
    link.symlink_to(picture)
    for path in (
        address,
        address.upper(),
        address.replace("http:", "https:"),
        f" {address}",
        address.replace("http:", "ftp:"),
        address.replace("http:", ""),
        f"/gradio_api/file={address}",
        f"/gradio_api/proxy={address}",
        address.replace("http://", "file://"),
        "data:image/png;base64,AAAA",
        str(picture),
        f"{upload}/../../../{picture}",
        str(link),
        str(model_dirs[0].onnx("teacher")),
        "/etc/passwd",
        "a.png",
        "",
        "a\0b",
        "a" * 5000,
        None,
        7,
        [upload],
        {"path": upload},
    ):
        for marks in ({"meta": {"_type": "gradio.FileData"}}, {}, {"url": address}):
            item = {"path": path, **marks}
            for route, data in ((PREDICT, [item]), ("/gradio_api/call/v2/predict", [[{"x": item}]])):
                reply = post_json(url, route, {"data": data})
                assert (reply.status, UPLOAD_FIRST.encode() in reply.body) == (422, True), (path, reply.body)
            body = {"data": [item, "first", "fp32"], "fn_index": 0, "session_hash": "s"}
            assert post_json(url, "/gradio_api/queue/join", body).status == 422
    assert predict(url, upload)[0] == 200
    with pytest.raises(BlockingIOError):  # nobody has come
        listener.accept()
    assert "Traceback" not in server.log.read_text()


def test_the_client_s_user_gets_a_message_to_upload(client: Client, stranger: tuple[socket.socket, str]) -> None:
    listener, address = stranger
    with pytest.raises(ValidationError, match=f"image: this is not an uploaded file; {UPLOAD_FIRST}"):
        client.predict(handle_file(address), api_name="/predict")
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_body_that_is_not_json_is_refused(url: str, server: Server) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 500_000, b"NaN,", b'{"data": [], "fn_index": 0'):
        reply = request(url, PREDICT, "POST", body, {"Content-Type": "application/json"})
        assert (reply.status, reply.body) == (400, b'{"detail":"the request is not JSON"}')
    assert "Traceback" not in server.log.read_text()


def test_a_call_without_all_its_inputs_gets_their_names(
    url: str, client: Client, server: Server, tmp_path: Path
) -> None:
    (endpoint,) = client.view_api(return_format="dict")["named_endpoints"].values()
    assert [parameter["parameter_name"] for parameter in endpoint["parameters"]] == list(INPUTS)
    path = uploaded(post_file(url, save_picture(tmp_path / "a.png").read_bytes()))
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for call in ([], {}, {"data": picture}, {"data": [picture]}, {"data": [picture, "", "", ""]}):
        reply = post_json(url, PREDICT, call)
        assert reply.status == 422
        assert json.loads(reply.body)["detail"].startswith('give {"data": [image, model, precision]}; ')
    for call in ([], {}, {"picture": picture}, {"image": picture, "size": 3}):
        reply = post_json(url, "/gradio_api/call/v2/predict", call)
        assert reply.status == 422
        assert json.loads(reply.body) == {"detail": "name the image; valid names: image, model, precision"}
    assert post_json(url, "/gradio_api/call/v2/predict", {"image": picture}).status == 200
    assert "Traceback" not in server.log.read_text()


def test_a_visitor_who_leaves_while_sending_leaves_no_trace(url: str, server: Server) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    for path, kind in (("/gradio_api/upload", "multipart/form-data; boundary=b"), (PREDICT, "application/json")):
        with socket.create_connection((host, int(port)), timeout=600) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: 9000\r\n\r\n"
            connection.sendall(head.encode() + b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n')
            time.sleep(0.2)  # so that it is being read
    assert request(url, "/healthz").status == 200
    time.sleep(0.2)
    assert "Traceback" not in server.log.read_text()


def test_a_stream_that_is_not_known_ends_with_its_reason(url: str, server: Server) -> None:
    """As after a restart of the server, when a page that is still open asks on."""
    for path in ("/gradio_api/queue/data?session_hash=gone", f"{PREDICT}/gone"):
        assert b"404: Not Found" in request(url, path).body
    assert request(url, "/?page=gone").status == 200
    assert "Traceback" not in server.log.read_text()


def test_the_progress_of_no_upload_is_no_error(url: str) -> None:
    reply = request(url, "/gradio_api/upload_progress?upload_id=none")
    assert (reply.status, reply.body) == (200, b'data: {"msg": "done"}\n\n')


def spellings(path: str) -> Iterator[str]:
    """Spellings that a server might take for `path`."""
    yield quote(path)
    yield quote(path, safe="").replace(".", "%2e")
    yield quote(quote(path, safe=""), safe="")
    yield quote(path.replace("/", "\\"))
    yield quote(path.lstrip("/"))
    yield quote("../" * 12 + path.lstrip("/"))
    yield "%2e%2e%2f" * 12 + quote(path.lstrip("/"), safe="")
    yield "..%5c" * 12 + quote(path.lstrip("/"))
    yield quote(f"/{path}")
    yield quote(f"file://{path}")


FILE_ROUTES = (
    *("/", "/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/static/", "/assets/", "/svelte/"),
    *("/gradio_api/stream/", "/gradio_api/stream/s/r/1/", "/gradio_api/custom_component/", "/custom_component/"),
    *("/gradio_api/custom_component/x/client/component/", "/gradio_api/proxy=", "/proxy=", "/pwa_icon/", "/deep_link="),
    "/gradio_api/deep_link?session_hash=",
)


def test_no_file_but_the_visitors_own_can_be_had(
    url: str, server: Server, model_dirs: list[ModelDir], home: Path, tmp_path: Path
) -> None:
    """`home` is the folder that the server runs in; Gradio has given such files away."""
    own = uploaded(post_file(url, SECRET, "own.txt"))
    assert request(url, f"/gradio_api/file={own}").body == SECRET  # that is how it would look
    secret = tmp_path / "secret.png"
    secret.write_bytes(SECRET)
    link = Path(own).with_name("link.png")
    link.symlink_to(secret)
    teacher = model_dirs[0].onnx("teacher")
    targets = [secret, link, *files_below(home), teacher, Path("/proc/self/environ"), Path("/etc/passwd")]
    assert len(targets) == 8
    opening = teacher.read_bytes()[:32]
    for target in [*map(str, targets), *(path.relative_to(home).as_posix() for path in files_below(home))]:
        for route in FILE_ROUTES:
            for spelling in spellings(target):
                reply = request(url, route + spelling)
                assert reply.status >= 400, route + spelling
                for content in (SECRET, opening, b"root:", b"PATH="):
                    assert content not in reply.body, route + spelling
    assert "Traceback" not in server.log.read_text()


def test_nobody_sees_which_files_others_have_uploaded(url: str) -> None:
    own = Path(uploaded(post_file(url, SECRET, "own.txt")))
    assert own.parents[1].stat().st_mode & 0o077 == 0
    for folder in (own.parent, own.parents[1], own.parents[2]):
        for end in ("", "/", "/.", "/*"):
            assert request(url, f"/gradio_api/file={folder}{end}").status >= 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/run/predict"),  # past the queue
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/call/look"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/dev/reload"),
        ("GET", "/gradio_api/token"),
        ("GET", "/monitoring"),
        ("GET", "/logout"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("OPTIONS", "/config"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
    ],
)
def test_paths_that_the_page_does_not_need_are_not_there(url: str, method: str, path: str) -> None:
    assert request(url, path, method, b"{}").status == 404


def test_fifty_visitors_at_once_all_get_their_own_answer(
    url: str, server: Server, model_dirs: list[ModelDir], tmp_path: Path
) -> None:
    pictures = [save_picture(tmp_path / f"{seed}.png", seed) for seed in range(5)]

    def visit(number: int) -> tuple[int, Any]:
        return predict(url, uploaded(post_file(url, pictures[number % 5].read_bytes())))

    with concurrent.futures.ThreadPoolExecutor(50) as visitors:
        answers = list(visitors.map(visit, range(50)))
    expected = [one.answer for one in predict_files(model_dirs[0].path, pictures, provider="cpu")]
    for number, (status, answer) in enumerate(answers):
        assert status == 200
        want = expected[number % 5]
        assert want is not None
        assert as_pairs(answer["student"]) == list(want.top)
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def large_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12,000×9,000 px in a small file: about a second's work."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    Image.new("1", (12_000, 9_000)).save(path)
    return path


def test_a_full_queue_says_so_and_sigterm_ends_all(
    model_dirs: list[ModelDir], large_picture: Path, tmp_path: Path
) -> None:
    server = Server.start(
        model_dirs[:1], tmp_path / "stderr", environment={"GRADIO_ROOT_PATH": "/kd"}, host="0.0.0.0", queue_length=2
    )
    try:
        check_prefix(server.url)
        picture = uploaded(post_file(server.url, save_picture(tmp_path / "a.png", size=(900, 900)).read_bytes()))
        large = uploaded(post_file(server.url, large_picture.read_bytes(), "large.png"))
        with concurrent.futures.ThreadPoolExecutor(50) as visitors:
            replies = list(visitors.map(lambda _: predict(server.url, picture), range(50)))
        statuses = Counter(status for status, _ in replies)
        assert set(statuses) == {200, 503}
        assert all(answer.startswith("Queue is full.") for status, answer in replies if status == 503)
        with open_streams(server.url), concurrent.futures.ThreadPoolExecutor(3) as visitors:
            for _ in range(3):
                visitors.submit(predict, server.url, large, 10)
            time.sleep(0.7)  # the first is being read, the others wait
            assert GRACE_S < 5
            words = server.stop()  # without a limit it would wait for the streams for ever
    finally:
        server.process.kill()
    assert server.process.returncode == 0
    assert words.startswith("torch imported: False")
    assert server.log.read_text() == "the demo has ended\n"
    assert not Path(picture).exists()
    assert not Path(picture).parents[1].exists()


def check_prefix(url: str) -> None:
    """A proxy may serve the page under a path; closed paths stay closed there. The address is 0.0.0.0 here."""
    assert json.loads(request(url, "/config").body)["root"] == f"{url}/kd"
    assert request(url, "/kd/healthz").body == b"ok"
    assert request(url, "/kd/config").status == 200
    assert request(url, "/kd/gradio_api/run/predict", "POST", b"{}").status == 404
    assert request(url.replace("127.0.0.1", "127.0.0.2"), "/healthz").body == b"ok"


@contextlib.contextmanager
def open_streams(url: str) -> Iterator[None]:
    """The connections of open pages: streams of events, and one that asks nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as stack:
        for path in ("/gradio_api/heartbeat/one", "/gradio_api/heartbeat/two", "/config"):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host, int(port))))
            connection.request("GET", path)
            assert connection.getresponse().status == 200
        stack.enter_context(socket.create_connection((host, int(port))))
        yield


HOSTILE = {
    "GRADIO_SHARE": "True",
    "GRADIO_ALLOWED_PATHS": "/",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_SERVER_PORT": "1",
    "GRADIO_ANALYTICS_ENABLED": "True",
    "GRADIO_TEMP_DIR": "/",
    "GRADIO_EXAMPLES_CACHE": "/",
    "GRADIO_MCP_SERVER": "True",
    "GRADIO_SSR_MODE": "True",
    "GRADIO_VIBE_MODE": "1",
    "GRADIO_WATCH_DIRS": "/",
    "GRADIO_PROFILING": "1",
    "GRADIO_NUM_WORKERS": "2",
    "GRADIO_DEBUG": "1",
}


@pytest.fixture(scope="module")
def guarded(model_dirs: list[ModelDir], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a login, and an environment that could make Gradio open more than this demo wants."""
    login = {"KD_TOOLKIT_USER": USER, "KD_TOOLKIT_PASSWORD": PASSWORD}
    folder = tmp_path_factory.mktemp("guarded")
    # onnxruntime keeps its reports below HOME until they are sent; it makes none if CI is set.
    places = {"HOME": str(folder), "XDG_CACHE_HOME": "", "CI": ""}
    log = folder / "stderr"
    server = Server.start(model_dirs, log, environment={**HOSTILE, **login, **places})
    yield server
    assert not list(folder.rglob("*onnxruntime*"))
    assert server.stop(signal.SIGINT) == LAST_WORDS  # Ctrl-C ends it, too
    assert server.process.returncode == 0
    assert log.read_text() == "the demo has ended\n"


def test_the_environment_opens_nothing(guarded: Server) -> None:
    client = connect(guarded.url, auth=(USER, PASSWORD))
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    reply = request(guarded.url, "/gradio_api/file=/etc/passwd", headers={"Cookie": cookies})
    assert reply.status == 403
    for path in ("/gradio_api/mcp/", "/gradio_api/profiling/summary", "/gradio_api/vibe-code"):
        assert request(guarded.url, path, headers={"Cookie": cookies}).status == 404
    test_only_this_machine_is_served_by_default(guarded.url)


def test_without_the_login_there_is_only_its_page(guarded: Server, tmp_path: Path) -> None:
    page = request(guarded.url, "/")
    assert page.status == 200
    assert b'"auth_required":true' in page.body.replace(b" ", b"")
    for name in (b"second", b"magenta"):  # models and classes
        assert name not in page.body
    assert request(guarded.url, "/healthz").body == b"ok"
    for cookie in ("", "access-token-x=y; access-token-unsecure-x=", "None=None"):
        for path in (
            *("/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/file=/etc/passwd"),
            *("/gradio_api/heartbeat/s", "/gradio_api/queue/data?session_hash=s", "/gradio_api/startup-events"),
            *("/gradio_api/app_id", "/gradio_api/user", "/gradio_api/upload_progress?upload_id=1"),
            f"{PREDICT}/1",
        ):
            assert request(guarded.url, path, headers={"Cookie": cookie}).status == 401, path
        for path in (PREDICT, "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel"):
            assert request(guarded.url, path, "POST", b"{}", {"Cookie": cookie}).status == 401, path


def test_a_program_signs_in(guarded: Server, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png")
    client = connect(guarded.url, auth=(USER, PASSWORD))
    (expected,) = predict_files(model_dirs[0].path, [picture], provider="cpu")
    assert expected.answer is not None
    assert as_pairs(ask(client, picture)["student"]) == list(expected.answer.top)
    with pytest.raises(ValueError, match="Could not login"):
        connect(guarded.url, auth=(USER, "wrong"))
    with pytest.raises(AuthenticationError):
        connect(guarded.url)
    assert PASSWORD not in guarded.log.read_text()
