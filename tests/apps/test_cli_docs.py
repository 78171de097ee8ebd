"""docs/cli.md is written by `make docs` from the command line itself; a command that is missing there means that nobody ran it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from lisaseg.apps.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def commands(command: Any, name: str) -> Iterator[str]:
    yield name
    for word, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, f"{name} {word}")


def test_the_page_names_every_command_and_no_other() -> None:
    named = {line.strip("# `") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("#")}
    assert named == set(commands(get_command(app), "lisaseg")), "run `make docs`"
