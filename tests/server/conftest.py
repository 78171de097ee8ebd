"""Servers for the tests: one with the stub engine and one with lisa-tiny for all that leave them as they were, and as many others as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.running import Server


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers by a rule, fast."""
    server = Server(tmp_path_factory.mktemp("stub"), "--stub-seconds", "0.01", "--limit", "deadline_seconds=600")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with lisa-tiny."""
    server = Server(tmp_path_factory.mktemp("tiny"), "--dtype", "float32", "--max-queue", "200", "--limit", "deadline_seconds=600", engine="lisa")
    yield server
    assert server.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of this test's own; whatever is left is ended afterwards."""
    servers: list[Server] = []

    def make(*options: str, state: str = "state", **more: Any) -> Server:
        servers.append(Server(tmp_path / state, *options, **more))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the stub engine and every door for annotation tools."""
    server = Server(tmp_path_factory.mktemp("tools"), "--stub-seconds", "0.01", "--integrations", "label-studio, X-AnyLabeling")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def tiny_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with lisa-tiny and every door for annotation tools."""
    server = Server(tmp_path_factory.mktemp("tiny_tools"), "--integrations", "label-studio,x-anylabeling", engine="lisa")
    yield server
    assert server.stop() == 0
