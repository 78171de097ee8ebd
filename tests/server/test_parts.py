"""The parts on their own: queue, rates, ids, store, limits, fetching. (The engine: `test_engine.py`.)"""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.apps.server import fetching
from lisaseg.apps.server.catalogue import ApiError
from lisaseg.apps.server.ids import Ids
from lisaseg.apps.server.jobs import FairQueue, Job, Rates
from lisaseg.apps.server.pictures import decode_base64
from lisaseg.apps.server.settings import Limits
from lisaseg.apps.server.storage import Storage, StoredTurn
from lisaseg.errors import UsageError


def job(owner: str, mode: str = "auto") -> Job:
    return Job(owner, {}, "x", mode, 8, time.monotonic() + 60)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["auto", "text"])), max_size=40), st.integers(1, 8))
def test_the_queue_loses_nothing_and_keeps_each_owners_order(jobs: list[tuple[str, str]], most: int) -> None:
    queue, put, taken = FairQueue(), [job(*j) for j in jobs], []
    for one in put:
        queue.put(one)
    while len(queue):
        batch = queue.take(most)
        assert 1 <= len(batch) <= most and len({one.kind for one in batch}) == 1
        taken += batch
    for owner in "abc":
        assert [j.id for j in taken if j.owner == owner] == [j.id for j in put if j.owner == owner]
    assert queue.take(3) == []


def test_a_long_conversation_slows_nobody_else() -> None:
    queue = FairQueue()
    sizes = (10, 20, 900, 30, 40)
    for owner, size in enumerate(sizes):
        one = job(str(owner))
        one.prompt = "x" * size
        queue.put(one)
    assert [[j.chars for j in queue.take(8, chars=1000)] for _ in range(2)] == [[10, 20, 30, 40], [900]]


def test_the_queue_is_fair() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.put(job("loud"))
    quiet = job("quiet")
    queue.put(quiet)
    assert quiet in queue.take(8)
    first = next(iter(queue))
    assert queue.remove(first) and not queue.remove(first) and len(queue) == 92


def test_rates_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("lisaseg.apps.server.jobs.time.monotonic", lambda: now[0])
    rates = Rates(60)  # one a second, ten at once
    for _ in range(10):
        rates.take("a")
    with pytest.raises(ApiError) as refused:
        rates.take("a")
    assert refused.value.code == "rate_limited" and refused.value.headers == {"Retry-After": "1"}
    rates.take("b")
    now[0] = 1.01
    rates.take("a")
    with pytest.raises(ApiError):
        rates.take("a")


@given(st.text(max_size=60))
def test_ids_cannot_be_made_up(given_id: str) -> None:
    ids = Ids(b"s" * 32)
    assert not ids.issued("ses", "a", given_id)
    real = ids.new("ses", "a")
    assert (
        ids.issued("ses", "a", real)
        and not ids.issued("ses", "b", real)
        and not ids.issued("img", "a", real)
        and not ids.issued("ses", "a", real + "0")
    )
    assert ids.of_content("img", "a", "x") == ids.of_content("img", "a", "x") != ids.of_content("img", "b", "x")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Storage]:
    storage = Storage(tmp_path / "state", Limits(max_image_store_bytes=1000, max_sessions=3))
    yield storage
    storage.close()


def test_the_store_makes_room_for_pictures(store: Storage) -> None:
    kept = store.add_image("a", b"k" * 300, {})
    store.add_session("a", kept.id, [])
    others = [store.add_image("a", bytes([n]) * 300, {}) for n in range(4)]
    assert store.image_bytes() <= 1000 and len(list(store.pictures.iterdir())) == 3
    assert store.get_image("a", kept.id).path.read_bytes() == b"k" * 300, "it has a session"
    with pytest.raises(ApiError) as gone:
        store.get_image("a", others[0].id)
    assert gone.value.code == "image_expired"
    with pytest.raises(ApiError) as never:
        store.get_image("b", others[0].id)
    assert never.value.code == "not_found"


def test_the_store_shares_equal_pictures(store: Storage) -> None:
    a, b = store.add_image("a", b"x" * 600, {}), store.add_image("b", b"x" * 600, {})
    assert a.id != b.id and a.path == b.path and store.image_bytes() == 600
    store.delete_image("a", a.id)
    assert store.get_image("b", b.id).path.exists()
    store.delete_image("b", b.id)
    assert not b.path.exists()


def test_the_store_keeps_turns_and_replies(store: Storage) -> None:
    session = store.add_session("a", store.add_image("a", b"x", {}).id, [StoredTurn("old", "auto", "raw", None)])
    store.add_turn("a", session.id, StoredTurn("one", "auto", "r1", {"n": 1}), reply_name="messages k")
    store.add_turn("a", session.id, StoredTurn("one", "segment", "r2", {"n": 2}), replace_last=True)
    assert [t.raw_text for t in store.get_session("a", session.id).turns] == ["raw", "r2"]
    assert store.reply("a", session.id, "messages k") == {"n": 1} and store.reply("b", session.id, "messages k") is None
    assert store.undo("a", session.id)[1] == 1 and store.undo("a", session.id)[1] == 0
    with pytest.raises(ApiError, match="nothing_to_undo"):
        store.undo("a", session.id)


def test_the_store_forgets_what_is_old(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    image = store.add_image("a", b"x", {})
    session = store.add_session("a", image.id, [])
    (store.pictures / "stray").write_bytes(b"of a server that was killed")
    now = time.time()
    monkeypatch.setattr("lisaseg.apps.server.storage.time.time", lambda: now + 1900)
    with pytest.raises(ApiError, match="session_expired"):
        store.get_session("a", session.id)
    store.sweep()
    assert store.session_count() == 0 and list(store.pictures.iterdir()) == []
    with pytest.raises(ApiError, match="image_expired"):
        store.get_image("a", image.id)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing_is_said_and_survived(store: Storage, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def broken(*_: Any) -> None:
        raise OSError(number, "secret /path")

    with monkeypatch.context() as patch:
        patch.setattr("lisaseg.apps.server.storage.write_aside", broken)
        with pytest.raises(ApiError) as refused:
            asyncio.run(store.run(store.add_image, "a", b"x", {}))
        assert refused.value.status == 503 and refused.value.code == "storage_full" and "secret" not in refused.value.message
    assert asyncio.run(store.run(store.add_image, "a", b"x", {})).path.read_bytes() == b"x"


def test_limits_are_numbers_in_range() -> None:
    assert Limits.parse(["max_queue=7", "deadline_seconds=2.5", "max_body_bytes=1_000_000"]).max_body_bytes == 1_000_000
    for wrong in ("max_queue", "nothing=1", "max_queue=zero", "max_queue=-1", "max_turns=21", "=1"):
        with pytest.raises(UsageError):
            Limits.parse([wrong])


@pytest.mark.parametrize("text", ["data:image/png", "data:image/png,abc", "%%%", "YQ", "data:;base64", "YQ==\0", "data:image/png;base64,YQ=", "é"])
def test_bad_base64_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="invalid_base64"):
        decode_base64(text)


@given(st.binary(max_size=100))
def test_base64_comes_back(data: bytes) -> None:
    import base64

    text = base64.b64encode(data).decode()
    assert decode_base64(text) == decode_base64(f"data:image/png;base64,{text}") == decode_base64(f"DATA:image/x;q=1;BASE64,\r\n {text}\n") == data


PRIVATE = ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1",
           "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:a00:1", "64:ff9b::7f00:1",
           "2002:7f00:1::", "::127.0.0.1", "2001:0:0:0:0:0:0:1", "2001:db8::1", "fe80::1%eth0", "64:ff9b:1::1", "not an address")  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known(address: str) -> None:
    assert not fetching.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_known(address: str) -> None:
    assert fetching.is_public(address)


BAD_URLS = ("http://a.example/x", "https://a.example:8443/x", "https://u:p@a.example/", "ftp://a.example/", "file:///etc/hosts", "https://",
            "https:///x", "gopher://a.example", "https://b.example/x", "https://a.example/é", "https://a.example/a b", "https://[::1/",
            "javascript:alert(1)", "//a.example")  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_urls_that_are_not_fetched(url: str) -> None:
    with pytest.raises(ApiError, match="url_not_allowed"):
        fetching.fetch(url, ["a.example"], 1000)


def test_names_that_lead_inside_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [[("8.8.8.8", 443), ("127.0.0.1", 443)], [("10.0.0.1", 443)]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", address) for address in answers.pop()])
    for _ in range(2):
        with pytest.raises(ApiError, match="url_not_allowed"):
            fetching.fetch("https://a.example/x", ["*"], 1000)


class Web:
    """A host on this machine that answers with what the test wants; the fetcher is told that it is a.example and public."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *replies: Any) -> None:
        self.replies, self.resolved, self.connected = list(replies), [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: str, port: int, **_: Any) -> Any:
        self.resolved.append(host)
        return [(2, 1, 6, "", ("203.0.113.9" if host != "inside.example" else "127.0.0.1", port))]

    def _serve(self) -> None:
        while self.replies:
            connection, _ = self.listener.accept()
            connection.recv(65536)
            try:
                for part in self.replies.pop(0):
                    connection.sendall(part) if isinstance(part, bytes) else time.sleep(part)
            except OSError:
                pass
            connection.close()

    def connect(self, address: str, host: str, port: int, seconds: float) -> http.client.HTTPConnection:
        self.connected.append(address)
        connection = http.client.HTTPConnection(host, timeout=seconds)
        raw = socket.socket()
        raw.settimeout(seconds)
        raw.connect(self.listener.getsockname())
        connection.sock = raw
        return connection

    def fetch(self, most: int = 1000, seconds: float = 1.0) -> bytes:
        return fetching.fetch("https://a.example/x", ["*"], most, seconds=seconds, allowed=lambda a: not a.startswith("127."), connect=self.connect)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


def moved(where: str) -> list[bytes]:
    return [f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode()]


def test_a_picture_is_fetched_from_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    web = Web(monkeypatch, moved("https://b.example/y"), [OK, b"hello"])
    assert web.fetch() == b"hello"
    assert web.resolved == ["a.example", "b.example"] and web.connected == ["203.0.113.9"] * 2, "each name is looked up once"


@pytest.mark.parametrize(
    ("replies", "code"),
    [
        ([moved("https://inside.example/")], "url_not_allowed"),
        ([moved("http://b.example/")], "url_not_allowed"),
        ([moved("file:///etc/hosts")], "url_not_allowed"),
        ([moved("/x")] * 9, "url_fetch_failed"),
        ([[b"HTTP/1.1 404 No\r\n\r\n"]], "url_fetch_failed"),
        ([[b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 500] * 9]], "url_fetch_failed"),
        ([[b"HTTP/1.1 200 OK\r\n\r\n", *[b"x", 0.2] * 400]], "url_fetch_failed"),
        ([[b"HTTP/1.1 200 OK\r\nX: ", *[b"x", 0.2] * 400]], "url_fetch_failed"),
        ([[b"\0\1\2"]], "url_fetch_failed"),
        ([[60.0]], "url_fetch_failed"),
    ],
)
def test_hosts_that_cheat(monkeypatch: pytest.MonkeyPatch, replies: Any, code: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ApiError, match=code):
        Web(monkeypatch, *replies).fetch()
    assert time.monotonic() - begin < 30, "the slow ones go on for a minute or more"
