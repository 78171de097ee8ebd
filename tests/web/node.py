"""The page's modules, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

WEB = Path(__file__).resolve().parents[2] / "src/lisaseg/apps/web"
NODE = "node 20 or newer (it comes with Debian as `nodejs`)"


def run(script: str, data: Any = None, seconds: float = 60) -> Any:
    """What the ES module `script` gives to its function `give(value)`; `data` stands there as `data`, `WEB` as the address of the page's modules."""
    node = shutil.which("node")
    if node is None:
        pytest.fail(f"These tests need {NODE} on the PATH.")
    head = """
        import { readFileSync } from "node:fs";
        const data = JSON.parse(readFileSync(0, "utf-8"));
        const give = (value) => process.stdout.write(JSON.stringify(value));
    """
    script = head + script.replace("WEB/", f"{WEB.as_uri()}/js/")
    command = [node, "--input-type=module", "--no-warnings", "-e", script]
    found = subprocess.run(command, input=json.dumps(data), capture_output=True, text=True, timeout=seconds, check=False)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)
