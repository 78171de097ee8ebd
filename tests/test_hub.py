"""Checkpoints by hub id: from the cache without a connection, over the line (a hub of our own on this machine), interrupted and gone on."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub
import pytest
from tests.published_folder import published_tensors as tensors_of
from tests.published_folder import random_model, write_folder, write_weights

from lisaseg import load
from lisaseg.errors import ModelLoadError
from lisaseg.model.published import hub_folder
from lisaseg.store import presets

NAME, TOWER, COMMIT = "someone/LISA-0B", "someone/clip", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that names its tower by hub id; the tower lies beside it."""
    folder = write_folder(tmp_path_factory.mktemp("hub") / "LISA", random_model(), vision_tower=TOWER, mm_vision_tower=TOWER)
    (folder / "clip").rename(folder.parent / "clip")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub client that does not know that tests run offline."""
    from transformers.utils import hub as transformers_hub

    for module, name in ((hub, "HF_HUB_CACHE"), (transformers_hub, "HF_HUB_CACHE"), (transformers_hub.constants, "HF_HUB_CACHE")):
        monkeypatch.setattr(module, name, str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


def fill(cache: Path, name: str, folder: Path) -> Path:
    """Lay a folder into the cache as the hub's client does."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(folder, home / "snapshots" / COMMIT)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that would leave this process; nothing does."""
    tried: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        tried.append(address)
        raise OSError("no connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's client tries again, ever later
    return tried


@pytest.mark.parametrize("quantize", [None, "8bit"])
def test_offline_opens_no_connection(cache: Path, source: Path, connections: list[Any], quantize: str | None) -> None:
    fill(cache, NAME, source)
    fill(cache, TOWER, source.parent / "clip")
    predictor = load(NAME, device="cpu", dtype="float32", quantize=quantize, offline=True)
    assert predictor.name == NAME and predictor.model.vlm.n_image_tokens == 4
    assert not connections
    assert hub_folder(NAME, offline=False).is_dir() and connections, "without offline it does look, and takes what is in the cache"


@pytest.mark.parametrize("lost", [NAME, TOWER])
def test_offline_says_what_is_not_in_the_cache(cache: Path, source: Path, connections: list[Any], lost: str) -> None:
    for name, folder in ((NAME, source), (TOWER, source.parent / "clip")):
        if name != lost:
            fill(cache, name, folder)
    with pytest.raises(ModelLoadError, match=lost) as caught:
        load(NAME, device="cpu", dtype="float32", offline=True)
    assert "without offline" in caught.value.next_step and caught.value.exit_code == 3 and not connections


def test_no_connection_and_nothing_in_the_cache(cache: Path, connections: list[Any]) -> None:
    with pytest.raises(ModelLoadError, match=NAME) as caught:
        load(NAME, device="cpu", dtype="float32")
    assert caught.value.code == "not_fetched" and connections


def test_a_half_fetched_snapshot_is_named(cache: Path, source: Path, connections: list[Any]) -> None:
    snapshot = fill(cache, NAME, source)
    fill(cache, TOWER, source.parent / "clip")
    (snapshot / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"pytorch_model-00002-of-00002\.bin missing"):
        load(NAME, device="cpu", dtype="float32", offline=True)


def test_list_knows_what_is_in_the_cache(cache: Path, source: Path) -> None:
    fill(cache, "xinlai/LISA-7B-v1", source)
    assert {info.name for info in presets() if info.state == "in the hub's cache"} == {"xinlai/LISA-7B-v1"}


class Hub(ThreadingHTTPServer):
    """What of the hub's interface a download needs. `cut`: files whose connection breaks in the middle, once."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.cut, self.served = repositories, set[str](), list[tuple[str, str | None]]()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = self.path.split("?")[0]
        for name, folder in self.server.repositories.items():
            files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            if path.startswith(f"/api/models/{name}/tree/"):
                return self.json([{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": self.tag(folder / f)} for f in files])
            if path in (f"/api/models/{name}", f"/api/models/{name}/revision/main"):
                return self.json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]})
            if path.startswith(f"/{name}/resolve/"):
                file = folder / path.split("/", 5)[5]
                return self.file(file, body) if file.is_file() else self.missing("EntryNotFound")
        return self.missing("RepoNotFound")

    def json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def tag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def file(self, file: Path, body: bool) -> None:
        data, asked = file.read_bytes(), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        part = data[start:]
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{self.tag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        self.server.served.append((file.name, asked))
        if file.name in self.server.cut:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)


@pytest.fixture
def online(source: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that has the checkpoint, with safetensors beside the pickles, and its tower."""
    folder = shutil.copytree(source, tmp_path / "both")
    write_weights(folder, tensors_of(random_model()), "safetensors", 2)
    (folder / "training_args.bin").write_bytes(b"pickle")
    server = Hub({NAME: folder, TOWER: source.parent / "clip"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "ENDPOINT", url)
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    yield server
    server.shutdown()
    server.server_close()


def test_one_load_fetches_what_it_needs_and_the_next_nothing(online: Hub) -> None:
    assert load(NAME, device="cpu", dtype="float32").model.vlm.n_image_tokens == 4
    fetched = {name for name, _ in online.served}
    assert "model-00001-of-00002.safetensors" in fetched and "tokenizer.model" in fetched
    assert not any(name.endswith(".bin") for name in fetched), "one form of the weights is enough"
    online.served.clear()
    load(NAME, device="cpu", dtype="float32", offline=True)
    assert not online.served


def test_an_interrupted_download_goes_on(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "model-00002-of-00002.safetensors"
    online.cut = {whole}
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(ModelLoadError, match=NAME) as caught:
        hub_folder(NAME)
    assert "what was fetched is kept" in caught.value.next_step
    online.cut = set()
    online.served.clear()
    folder = hub_folder(NAME)
    assert (folder / whole).stat().st_size == (online.repositories[NAME] / whole).stat().st_size
    assert [name for name, _ in online.served] == [whole], "only what was missing"


def test_a_name_that_the_hub_does_not_know(online: Hub) -> None:
    with pytest.raises(ModelLoadError, match="someone/else"):
        load("someone/else", device="cpu")
