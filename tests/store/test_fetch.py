from __future__ import annotations

import base64
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lisaseg.errors import ModelLoadError
from lisaseg.store.fetch import RefusedError, download, make_opener, matches

DATA = bytes(range(256)) * 4000  # about 1 MB: larger than one read
SHA = hashlib.sha256(DATA).hexdigest()
PATH = "/file.bin"


def get(server: Any, target: Path, **changes: Any) -> None:
    download(server.url + PATH, target, **{"size": len(DATA), "sha256": SHA, "pause": 0.001} | changes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def target(server: Any, tmp_path: Path) -> Path:
    server.files[PATH] = DATA
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder / "file.bin"


def test_plain_download_reports_progress_up_to_the_size(server: Any, target: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    get(server, target, progress=lambda done, total: calls.append((done, total)))
    assert target.read_bytes() == DATA and names(target.parent) == {"file.bin"}
    assert calls == sorted(calls) and calls[-1] == (len(DATA), len(DATA)) and {total for _, total in calls} == {len(DATA)}


def test_interrupted_at_half_the_next_call_asks_for_the_other_half_only(server: Any, target: Path) -> None:
    half = len(DATA) // 2
    server.cuts = [half]
    with pytest.raises(ModelLoadError, match=f"at {half} of {len(DATA)} bytes.*goes on where it stopped"):
        get(server, target, attempts=1)
    assert names(target.parent) == {"file.bin.part", "file.bin.part.json"}
    get(server, target)
    assert target.read_bytes() == DATA and names(target.parent) == {"file.bin"}
    assert server.requests[-1] == (PATH, f"bytes={half}-", '"one"')
    assert server.sent == len(DATA)


def test_ctrl_c_keeps_what_came(server: Any, target: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, target, progress=stop)
    kept = (target.parent / "file.bin.part").stat().st_size
    assert 0 < kept <= len(DATA)
    get(server, target)
    assert target.read_bytes() == DATA
    assert kept == len(DATA) or server.requests[-1][1] == f"bytes={kept}-"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(DATA) - 1), max_size=6))
def test_any_broken_line_that_moves_on_ends_whole_and_sends_no_byte_twice(server: Any, target: Path, cuts: list[int]) -> None:
    target.unlink(missing_ok=True)
    server.sent, server.cuts = 0, list(cuts)
    get(server, target, attempts=2)
    assert target.read_bytes() == DATA
    assert server.sent == len(DATA)
    server.cuts = []


def test_server_without_ranges_starts_anew_and_still_ends_whole(server: Any, target: Path) -> None:
    server.ranges, server.cuts = False, [1000]
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.sent == 1000 + len(DATA)


def test_changed_file_is_not_glued_to_the_old_half(server: Any, target: Path) -> None:
    server.files[PATH], server.cuts = bytes(len(DATA)), [5000]
    with pytest.raises(ModelLoadError):
        get(server, target, attempts=1)
    server.files[PATH], server.etag = DATA, '"two"'
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.requests[-1][2] == '"one"', "If-Range names the old file"
    assert len(server.requests) == 2, "one answer with the whole new file, no second try"


def test_damaged_part_costs_one_fresh_start(server: Any, target: Path) -> None:
    (target.parent / "file.bin.part").write_bytes(b"damaged" * 100)
    get(server, target)
    assert target.read_bytes() == DATA
    assert [asked for _, asked, _ in server.requests] == ["bytes=700-", None]


def test_part_longer_than_the_file_is_dropped(server: Any, target: Path) -> None:
    (target.parent / "file.bin.part").write_bytes(DATA + b"x")
    get(server, target)
    assert target.read_bytes() == DATA and server.requests[-1][1] is None


def test_whole_part_needs_no_request(server: Any, target: Path) -> None:
    (target.parent / "file.bin.part").write_bytes(DATA)
    get(server, target)
    assert target.read_bytes() == DATA and server.requests == []


def test_wrong_hash_removes_the_file_and_says_both_hashes(server: Any, target: Path) -> None:
    server.files[PATH] = bytes(len(DATA))
    with pytest.raises(ModelLoadError, match="is not the pinned file") as caught:
        get(server, target)
    assert caught.value.code == "wrong_hash" and caught.value.exit_code == 3
    assert SHA in str(caught.value) and hashlib.sha256(bytes(len(DATA))).hexdigest() in str(caught.value)
    assert names(target.parent) == set()


@pytest.mark.parametrize("other", [DATA[:-1], DATA + b"x", b"<html>please log in</html>"])
def test_file_of_another_size_is_refused_before_it_is_fetched(server: Any, target: Path, other: bytes) -> None:
    server.files[PATH] = other
    with pytest.raises(RefusedError, match=f"{len(other)} bytes"):
        get(server, target)
    assert not target.exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_not_retried(server: Any, target: Path, status: int) -> None:
    server.statuses = [status, 200]
    with pytest.raises(RefusedError, match=str(status)):
        get(server, target)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(server: Any, target: Path, status: int) -> None:
    server.statuses = [status, status]
    get(server, target)
    assert target.read_bytes() == DATA and len(server.requests) == 3


def test_busy_for_ever_ends_in_a_clear_error(server: Any, target: Path) -> None:
    server.statuses = [503] * 9
    with pytest.raises(ModelLoadError, match="broke 3 times") as caught:
        get(server, target, attempts=3)
    assert caught.value.code == "download_failed" and len(server.requests) == 3


def test_nobody_listens(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ModelLoadError, match="0 of"):
        download(f"http://127.0.0.1:{port}{PATH}", target, size=len(DATA), sha256=SHA, attempts=2, pause=0.001)


def test_credentials_reach_neither_message_nor_notes(server: Any, target: Path) -> None:
    server.files[PATH] = bytes(len(DATA))
    address = server.url.replace("http://", "http://user:se%40cret@") + PATH + "?token=se@cret"
    with pytest.raises((ModelLoadError, RefusedError)) as caught:
        download(address, target, size=len(DATA), sha256=SHA, pause=0.001, attempts=1)
    assert "cret" not in str(caught.value)
    assert all(b"cret" not in path.read_bytes() for path in target.parent.iterdir())
    server.files[PATH + "?token=se@cret"] = DATA
    download(address, target, size=len(DATA), sha256=SHA)
    assert server.authorization == "Basic " + base64.b64encode(b"user:se@cret").decode()


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"url": 1}', "null", '{"url": "x", "validator": null}', "\x00"])
def test_unreadable_notes_do_not_stop_a_resume(server: Any, target: Path, notes: str) -> None:
    (target.parent / "file.bin.part").write_bytes(DATA[:4096])
    (target.parent / "file.bin.part.json").write_text(notes)
    get(server, target)
    assert target.read_bytes() == DATA and server.sent == len(DATA) - 4096


def test_notes_of_another_mirror_are_not_sent(server: Any, target: Path) -> None:
    (target.parent / "file.bin.part").write_bytes(DATA[:4096])
    (target.parent / "file.bin.part.json").write_text(json.dumps({"url": "http://other/file.bin", "validator": '"zero"'}))
    get(server, target)
    assert server.requests == [(PATH, "bytes=4096-", None)]


def test_proxy_of_pip_is_used(server: Any, target: Path) -> None:
    server.files["http://far.invalid" + PATH] = DATA  # a proxy is asked with the whole address
    download("http://far.invalid" + PATH, target, size=len(DATA), sha256=SHA, opener=make_opener({"proxy": server.url}))
    assert target.read_bytes() == DATA


def test_matches_needs_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    assert matches(path, len(DATA), SHA)
    assert not matches(path, len(DATA) + 1, SHA) and not matches(path, len(DATA), SHA[::-1]) and not matches(tmp_path, 0, SHA)
