"""Pictures in Label Studio itself are read with its access token, and that token goes to that Label Studio and nowhere else.

The Label Studio here is an HTTP server of this file that answers as Label Studio 1.23 does.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.server.running import Server, code_of, picture
from tests.server.test_label_studio import body, mask_of, predict

from lisaseg.apps.server import label_studio_files
from lisaseg.apps.server.app import create_app
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.label_studio_files import PLACES, LabelStudioFiles
from lisaseg.apps.server.settings import Settings
from lisaseg.errors import UsageError
from lisaseg.formats import rle

KEY = "0123456789abcdef0123456789abcdef01234567"  # a legacy token
LASTING = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2ln"  # a personal access token


class Web(http.server.ThreadingHTTPServer):
    """A host: answers files to who brings the right token, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.files: dict[str, bytes] = {"/data/upload/1/cat.png": picture(1)}
        self.moved: dict[str, str] = {}
        self.right, self.short_lived = {f"Token {KEY}"}, "short-1"
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Authorization
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Visit(http.server.BaseHTTPRequestHandler):
    server: Web

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        web, key = self.server, self.headers.get("Authorization")
        web.asked.append(("GET", self.path, key))
        if self.path in web.moved:
            self.answer(302, Location=web.moved[self.path])
        elif key not in web.right:
            self.answer(401)
        elif self.headers["Accept"] != "*/*":
            self.answer(406)  # as Label Studio 1.23 does
        elif unquote(self.path) in web.files:
            self.answer(200, web.files[unquote(self.path)])
        else:
            self.answer(404)

    def do_POST(self) -> None:
        web, sent = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        web.asked.append(("POST", self.path, self.headers.get("Authorization")))
        if self.path.endswith("/api/token/refresh/") and json.loads(sent) == {"refresh": LASTING}:
            self.answer(200, json.dumps({"access": web.short_lived}).encode())
        else:
            self.answer(401)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def studio() -> Iterator[Web]:
    web = Web()
    yield web
    web.shutdown()
    web.server_close()


elsewhere = studio  # another host: pytest makes a second one under this name


def failure(files: LabelStudioFiles, address: str, most: int = 10**6) -> ApiError:
    with pytest.raises(ApiError) as failed:
        files.fetch(address, most)
    assert KEY not in failed.value.message and LASTING not in failed.value.message
    return failed.value


# --- the service ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Web, Web]]:
    """Label Studio, and another host."""
    webs = Web(), Web()
    yield webs
    for web in webs:
        web.shutdown()
        web.server_close()


@pytest.fixture(scope="module")
def connected(world: tuple[Web, Web], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that was given the token, and may fetch from any public host as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABEL_STUDIO_URL", world[0].url)
        patch.setenv("LABEL_STUDIO_API_KEY", KEY)
        options = ("--stub-seconds", "0", "--integrations", "label-studio", "--allow-url-host", "*")
        server = Server(tmp_path_factory.mktemp("connected"), *options)
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize(
    "name", ["/data/upload/1/a.png", "/data/local-files/?d=b/a b.png", "/storage-data/uploaded/?filepath=upload/1/a.png", "/data/upload/1/é.png"]
)
def test_a_picture_in_label_studio_is_asked_about(connected: Server, world: tuple[Web, Web], name: str) -> None:
    studio, _ = world
    studio.files[name] = picture(2)
    truth = connected.ask(connected.upload(picture(2)), "cup", mode="segment").json()["segments"][0]
    for address in (name, studio.url + name):
        (said,) = predict(connected, body({"photo": address, "prompt": "cup"})).json()["results"]
        assert np.array_equal(mask_of(said["result"][0]), rle.decode(truth["mask"]))
    assert all(key == f"Token {KEY}" for _, _, key in studio.asked)


def test_the_token_never_goes_to_another_host(connected: Server, world: tuple[Web, Web]) -> None:
    studio, other = world
    studio.moved["/data/upload/9/away.png"] = f"{other.url}/data/upload/1/cat.png"
    by_name = other.url.replace("127.0.0.1", "localhost")
    tried = {
        f"{other.url}/data/upload/1/cat.png": "url_not_allowed",
        f"{by_name}/data/upload/1/cat.png": "url_not_allowed",
        f"//127.0.0.1:{other.server_port}/data/upload/1/cat.png": "url_not_allowed",
        f"http://{studio.url[7:]}@{other.url[7:]}/data/upload/1/cat.png": "url_not_allowed",
        f"{studio.url.replace('127.0.0.1', 'localhost')}/data/upload/1/cat.png": "url_not_allowed",
        f"https{studio.url[4:]}/data/upload/1/cat.png": "url_not_allowed",
        f"{studio.url}/api/users": "url_not_allowed",
        "/api/users": "url_not_allowed",
        "/data/upload/9/away.png": "url_fetch_failed",
    }
    for address, code in tried.items():
        assert code_of(predict(connected, body({"photo": address, "prompt": "cup"}))) == code, address
    assert other.asked == [] and all(path.startswith(PLACES) for _, path, _ in studio.asked)
    assert KEY not in "\n".join(connected.lines)


def test_without_the_token_the_way_to_switch_it_on_is_said(tools: Server) -> None:
    response = predict(tools, body({"photo": "/data/upload/1/cat.png", "prompt": "cup"}))
    assert code_of(response) == "url_not_allowed"
    assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in response.json()["error"]["message"]


# --- one Label Studio ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://a", "http://", "http://u:p@a", "http://a:99999", "http://a b", "http://a?b=c", "http://[::1"]
)
def test_a_wrong_address_or_token_is_said_at_the_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="LABEL_STUDIO_URL"):
        LabelStudioFiles(url, KEY)
    for key in ("", "a b", "a\nX: y", "é"):
        with pytest.raises(UsageError, match="LABEL_STUDIO_API_KEY"):
            LabelStudioFiles("http://a", key)
    settings = {"label_studio_url": url or "x", "label_studio_key": KEY}
    with pytest.raises(UsageError, match="LABEL_STUDIO_URL"):
        create_app(Settings(state=tmp_path, integrations=("label-studio",), **settings))
    create_app(Settings(state=tmp_path, **settings))  # the door is closed: nobody asks
    assert KEY not in repr(Settings(state=tmp_path, **settings))


def test_what_went_wrong_is_said(studio: Web, elsewhere: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = LabelStudioFiles(studio.url, KEY), LabelStudioFiles(studio.url, "wrong")
    assert good.fetch("/data/upload/1/cat.png", 10**6) == picture(1)
    assert "LABEL_STUDIO_API_KEY" in failure(bad, "/data/upload/1/cat.png").message
    assert "404" in failure(good, "/data/upload/1/dog.png").message
    assert failure(good, "/data/upload/1/cat.png", 100).code == "url_fetch_failed"
    assert failure(good, "/etc/passwd").code == "url_not_allowed"
    port = elsewhere.server_port
    elsewhere.shutdown()
    elsewhere.server_close()
    assert "cannot be reached" in failure(LabelStudioFiles(f"http://127.0.0.1:{port}", KEY), "/data/x").message


def test_redirects_are_followed_to_files_of_the_same_label_studio_only(studio: Web, elsewhere: Web) -> None:
    files = LabelStudioFiles(studio.url, KEY)
    for good in ("/data/upload/1/cat.png", f"{studio.url}/data/upload/1/cat.png"):
        studio.moved["/data/a"] = good
        assert files.fetch("/data/a", 10**6) == picture(1)
    port = studio.server_port
    away = [
        f"{elsewhere.url}/data/upload/1/cat.png", f"//127.0.0.1:{elsewhere.server_port}/data/x", f"https://127.0.0.1:{port}/data/x",
        f"http://localhost:{port}/data/upload/1/cat.png", f"http://x@127.0.0.1:{port}/data/upload/1/cat.png", "/data/../api/users", "/api/users",
        "/user/login/?next=/data/a", "upload/1", "", "javascript:1", "/data/a",
    ]  # fmt: skip
    for where in away:
        studio.asked.clear()
        studio.moved["/data/a"] = where
        assert failure(files, "/data/a").code == "url_fetch_failed"
        assert {path for _, path, _ in studio.asked} == {"/data/a"} and len(studio.asked) <= 4, where
    assert elsewhere.asked == []


def test_a_label_studio_below_a_path(studio: Web) -> None:
    studio.files["/annotate/data/upload/1/x.png"] = b"x"
    files = LabelStudioFiles(f"{studio.url}/annotate/", KEY)
    for address in ("/data/upload/1/x.png", "/annotate/data/upload/1/x.png", f"{studio.url}/annotate/data/upload/1/x.png"):
        assert files.fetch(address, 10) == b"x"
    assert {path for _, path, _ in studio.asked} == {"/annotate/data/upload/1/x.png"}


def test_a_personal_access_token_is_exchanged_and_renewed(studio: Web) -> None:
    studio.right = {"Bearer short-1"}
    files = LabelStudioFiles(studio.url, LASTING)
    for _ in range(2):
        assert files.fetch("/data/upload/1/cat.png", 10**6) == picture(1)
    assert [method for method, _, _ in studio.asked] == ["POST", "GET", "GET"], "one exchange serves many pictures"
    studio.right, studio.short_lived = {"Bearer short-2"}, "short-2"
    assert files.fetch("/data/upload/1/cat.png", 10**6) == picture(1)
    studio.right = set()
    studio.asked.clear()
    assert "refuses" in failure(files, "/data/upload/1/cat.png").message
    assert [method for method, _, _ in studio.asked] == ["GET", "POST", "GET"], "not for ever"
    assert all(LASTING not in f"{path}{key}" for _, path, key in studio.asked)
    assert "refuses" in failure(LabelStudioFiles(studio.url, LASTING + "x"), "/data/upload/1/cat.png").message


@given(
    st.text(max_size=40).map("/data/".__add__)
    | st.text(st.sampled_from("/.\\%2eE5cdat:@#?&=x"), max_size=40)
    | st.from_regex(r"(http://a:80)?/data/[./%2eEfF5cC\\]{1,20}")
)
@example("/data/../api")
@example("/data/%2e%2e/api")
@example("/data/%252e%252E/api")
@example("/data/..\\api")
@example("/data/x\r\nX: y")
@example("http://a/data/x")
def test_whatever_a_task_says_only_files_are_asked_for(address: str) -> None:
    target = LabelStudioFiles("http://a/base", KEY)._target(address)
    if target is not None:
        assert target.isascii() and target.isprintable() and " " not in target
        path = urlsplit(f"http://a{target}").path
        assert path.startswith(tuple(f"/base{place}" for place in PLACES))
        assert not {".", ".."} & set(unquote(unquote(path)).replace("\\", "/").split("/"))


def test_the_places_are_those_of_the_sdk() -> None:
    source = Path(pytest.importorskip("label_studio_sdk._extensions.label_studio_tools.core.utils.io").__file__).read_text("utf-8")
    assert all(f'"{place}' in source for place in PLACES)
    assert label_studio_files.SECONDS < 60, "shorter than the deadline of a question"
