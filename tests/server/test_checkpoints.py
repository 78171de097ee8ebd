"""A published checkpoint behind the service: held as the options say in every engine, told at `/version`, with the modes that it has."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.published_folder import random_model, write_folder
from tests.server.running import EXAMPLES, ROOT, Server, code_of, picture, until
from tests.tiny_random import noise

import lisaseg
from lisaseg.errors import UsageError
from lisaseg.types import MODES, PLUS_MODES

pytestmark = pytest.mark.serve
SETTING: dict[str, Any] = {"device": "cpu", "dtype": "float32", "quantize": "8bit"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of LISA++'s kind."""
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "LISA", random_model(), mm_use_im_start_end=False)


@pytest.fixture(scope="module")
def local(folder: Path) -> lisaseg.Predictor:
    return lisaseg.load(folder, offline=True, **SETTING)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = [part for name, value in SETTING.items() for part in (f"--{name}", value)]
    server = Server(tmp_path_factory.mktemp("state"), "-m", str(folder), *options, engine="lisa")
    yield server
    assert server.stop() == 0


def same(a: lisaseg.Answer, b: lisaseg.Answer) -> bool:
    return (a.raw_text, a.usage, a.status) == (b.raw_text, b.usage, b.status) and np.array_equal(a.masks, b.masks)


def test_an_engine_that_died_comes_back_as_it_was(server: Server, local: lisaseg.Predictor) -> None:
    held = {"model": "LISA", "device": "cpu", "precision": "8bit (float32)"}
    expected = local.ask(noise(1), "Where is the bus?", mode="segment", max_new_tokens=4)
    with lisaseg.Client(server.url) as client:
        for starts in (1, 2):
            assert held.items() <= server.http.get("/version").json().items()
            assert same(client.ask(noise(1), "Where is the bus?", mode="segment", max_new_tokens=4), expected)
            if starts == 1:
                (old,) = server.engines
                os.kill(old, signal.SIGKILL)
                until(lambda: server.metric('lisaseg_engine_restarts_total{reason="died"}') == 1)
                server.wait_ready()
    assert server.engines != [old]


def test_the_modes_of_lisa_plus(server: Server, local: lisaseg.Predictor) -> None:
    assert server.http.get("/v1/limits").json()["modes"] == [*MODES, *PLUS_MODES]
    with lisaseg.Client(server.url) as client:
        assert client.modes == local.modes == MODES + PLUS_MODES
        there, here = client.chat(noise(2)), local.chat(noise(2))
        for mode in PLUS_MODES:  # each reads the turns before it, whose modes count too
            assert same(there.ask("the cups", mode=mode, max_new_tokens=3), here.ask("the cups", mode=mode, max_new_tokens=3))


def test_modes_that_the_model_does_not_have(stub: Server) -> None:
    assert stub.http.get("/v1/limits").json()["modes"] == list(MODES)
    with lisaseg.Client(stub.url) as client:
        assert client.modes == MODES
    with lisaseg.Client(stub.url) as client, pytest.raises(UsageError, match="'reason'") as found:
        client.ask(picture(), "the cups", mode="reason")
    assert "explain" in str(found.value) and "instances" not in str(found.value)
    response = stub.ask(stub.upload(picture()), "the cups", mode="instances")
    assert (response.status_code, code_of(response), response.json()["error"]["param"]) == (400, "invalid_request", "mode")
    assert "explain" in response.json()["error"]["message"]


@pytest.mark.parametrize(("command", "option", "value"), [("serve", "quantize", "4bit"), ("annotate", "device_map", "auto")])
def test_a_model_that_is_small_already_ends_the_command(command: str, option: str, value: str, tmp_path: Path) -> None:
    words = ["serve"] if command == "serve" else ["annotate", str(EXAMPLES), "--out", str(tmp_path / "out.jsonl")]
    words += [f"--{option.replace('_', '-')}", value, "--port", "0", "--state", str(tmp_path / "state"), "--offline"]
    ended = subprocess.run([sys.executable, "-m", "lisaseg", *words], capture_output=True, text=True, timeout=300, cwd=ROOT / "src", check=False)
    assert ended.returncode == 2, ended.stderr
    assert re.search(rf"^error: {option}='{value}' is not available for lisa-tiny.* Leave {option} out\.$", ended.stderr, re.MULTILINE)
