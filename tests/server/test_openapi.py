"""Z2: schemathesis reads `/openapi.json` and sends what it allows and what it forbids, one operation at a time and in chains (upload, ask, undo)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.server.running import Server, picture
from tests.server.sizes import size

pytestmark = pytest.mark.serve


def test_the_document_is_what_the_server_does(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--stub-seconds", "0", "--limit", "deadline_seconds=600")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run"]
    options = [
        "--max-examples",
        str(size(300, 5_000)),
        "--checks",
        "all",
        "--seed",
        "1",
        "--no-color",
        "--request-timeout",
        "300",
        "--warnings",
        "off",
    ]
    run = subprocess.run(
        [*command, *options, f"{server.url}/openapi.json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "150"},
    )
    assert run.returncode == 0, run.stdout[-5_000:] + run.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert tested and int(tested[1]) == sum(map(len, server.http.get("/openapi.json").json()["paths"].values())), run.stdout[-2_000:]
    assert not [line for line in server.logged("request") if line["status"] >= 500]
    assert server.ask(server.upload(picture()), "after").status_code == 200
