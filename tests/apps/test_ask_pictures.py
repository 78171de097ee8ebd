"""What is wrong with a picture is said before a model is loaded: nobody waits seconds to read that a path is mistyped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.running import EXAMPLES, ROOT

COMMAND = """
import sys
from lisaseg.apps.cli import main
sys.argv = ["lisaseg", *sys.argv[1:]]
try:
    main()
finally:
    print("torch was loaded" if "torch" in sys.modules else "at once")
"""


def lisaseg(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, timeout=60, cwd=ROOT / "src", check=False)


@pytest.mark.parametrize("command", ["ask", "chat"])
@pytest.mark.parametrize("kind", ["missing", "cut short", "no picture"])
def test_a_picture_that_cannot_be_used(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "cat.jpg"
    if kind != "missing":
        path.write_bytes((EXAMPLES / "cat.jpg").read_bytes()[:5000] if kind == "cut short" else b"no picture")
    ended = lisaseg(command, str(path), *(["the cat"] if command == "ask" else []), "-m", "no-such-model", "--offline")
    assert ended.returncode == 2 and ended.stderr.startswith("error: cat.jpg ") and "no-such-model" not in ended.stderr
    assert ended.stdout == "at once\n"
