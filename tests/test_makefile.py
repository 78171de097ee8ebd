"""`make help` is made of the comments behind the targets, so that a target without one cannot hide."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def test_help_names_every_target_and_what_it_does() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    shown = subprocess.run(["make", "--no-print-directory", "help"], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout
    lines = [re.fullmatch(r"make (\S+) +(\S.*)", line) for line in shown.splitlines()]
    assert phony and [line and line[1] for line in lines] == phony[1].split()


def test_make_alone_sets_up() -> None:
    plan = subprocess.run(["make", "-n", "-p"], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT).stdout
    assert re.search(r"^\.DEFAULT_GOAL := setup$", plan, re.MULTILINE)
