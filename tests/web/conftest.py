"""Debian's chromium, driven by playwright, at the page of real servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.running import Server
from tests.web.desk import Desk
from tests.web.project import Project

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("These tests need chromium: `apt-get install chromium`, or its path in the environment variable CHROMIUM.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with lisa-tiny."""
    server = Server(tmp_path_factory.mktemp("tiny"), "--dtype", "float32", engine="lisa")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes half a second for an answer that repeats the question, and makes faults on demand (see its `stub.py`)."""
    server = Server(tmp_path_factory.mktemp("stub"), "--stub-seconds", "0.5")
    yield server
    assert server.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of this test's own."""
    servers: list[Server] = []

    def make(*options: str, **more: Any) -> Server:
        servers.append(Server(tmp_path / "state", *options, **more))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def desk(browser: Any) -> Iterator[Callable[..., Desk]]:
    """Open the page of a server in a fresh browser profile. At the end of the test: no error on the console, no request to anywhere else."""
    desks: list[Desk] = []

    def sit(server: Server, path: str = "/", **context: Any) -> Desk:
        desks.append(Desk(browser, server.url, path, **context))
        return desks[-1]

    yield sit
    for one in desks:
        one.close()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    found = Project(tmp_path)
    yield found
    if found.server is not None:
        found.server.kill()
