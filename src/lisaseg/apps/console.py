"""What the command line prints and reads: answers, tables, progress, and the chat loop. Rich on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lisaseg.errors import InputError
from lisaseg.types import MODES, PLUS_MODES, Answer, Mode, Segment

if TYPE_CHECKING:
    from lisaseg.predictor import Chat

MASK_FILE = re.compile(r"\.mask\d+\.png$")
HELP = "/undo  forget the last turn    /save DIR  write its files    /mode auto|segment|explain|text    /quit    /help"


def printable(text: str) -> str:
    """Text without control characters (line ends and tabs stay): what a model or a file says must not steer the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}" for c in text)


def on_terminal() -> bool:
    """Whether results are read by a person."""
    return sys.stdout.isatty()


def warn(warnings: Iterable[tuple[str, str]]) -> None:
    """Print (code, message) pairs to stderr."""
    for code, message in warnings:
        typer.secho(f"warning: {printable(message)} [{code}]", fg="yellow", err=True)


def mask_facts(segment: Segment, path: Path | None) -> list[str]:
    """Columns of one mask: name, share of the picture, box XYXY in pixels, score, phrase, file; "" where there is none."""
    share = 100 * segment.area / segment.mask.size
    if segment.area == 0:
        size, box = "empty", ""
    else:
        size, box = f"{share:.1f} % of image" if share >= 0.1 else "< 0.1 % of image", "box {},{} {},{}".format(*segment.box)
    score = "" if segment.score is None else f"score {segment.score:.2f}"
    return [f"mask {segment.index + 1}", size, box, score, printable(segment.phrase), str(path or "")]


def show_answer(answer: Answer, files: Sequence[Path] = ()) -> None:
    """Print the answer text, then one line a mask to stdout; whatever else there is to know goes to stderr.

    Args:
        answer: what to show.
        files: what `Answer.save` returned, or nothing.
    """
    typer.echo(printable(answer.text))
    masks = [path for path in files if MASK_FILE.search(path.name)]
    for k, segment in enumerate(answer.segments):
        name, *facts = mask_facts(segment, masks[k] if k < len(masks) else None)
        typer.secho(name, fg=_colour(k) if on_terminal() else None, bold=on_terminal(), nl=False)
        typer.echo("".join(f"  {fact}" for fact in facts if fact))
    if answer.status == "no_target":
        typer.echo("(nothing in the picture fits)", err=True)
    elif answer.status == "truncated":
        typer.echo("warning: the answer was cut at the length limit [truncated]", err=True)
    for path in files:
        if path not in masks:
            typer.echo(f"wrote {path}", err=True)


def _colour(index: int) -> tuple[int, int, int]:
    from lisaseg.drawing import colour_of

    return colour_of(index)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe, one line a row with tabs between the columns and no head."""
    if not on_terminal():
        for row in rows:
            typer.echo("\t".join(" ".join(printable(cell).split()) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"OK": "green", "WARN": "yellow", "FAIL": "bold red", "ready": "green"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, overflow="fold")  # a name that is cut cannot be copied
    for row in rows:
        table.add_row(*(Text(printable(cell), style=styles.get(cell, "")) for cell in row))
    Console().print(table)


@contextlib.contextmanager
def transfer_bar(name: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A progress bar on stderr that takes (bytes so far, bytes in all); None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ChatLoop:
    """Reads instructions and commands until /quit or the end of input; a refused instruction does not end it.

    Args:
        chat: a fresh `Chat` about one picture.
        mode: of the first turns; /mode changes it.
        out: folder for the files of every turn, or None.
        stem: files are called `<stem>.turn<k>...`.
    """

    def __init__(self, chat: Chat, *, mode: Mode, out: Path | None, stem: str) -> None:
        self.chat, self.mode, self.out, self.stem = chat, mode, out, stem
        self.answers: list[Answer] = []

    def run(self) -> None:
        """Loop; returns at /quit or the end of input. Ctrl-C passes through."""
        person = sys.stdin.isatty() and on_terminal()
        if person:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() editing and history
            typer.echo(HELP, err=True)
        for line in self._lines(person):
            try:
                if line.startswith("/"):
                    if not self._command(line):
                        return
                else:
                    self._ask(line)
            except InputError as error:
                typer.echo(f"error: {printable(str(error))}", err=True)

    def _lines(self, person: bool) -> Iterator[str]:
        while True:
            if person:
                try:
                    line = input("> ")
                except EOFError:
                    typer.echo("", err=True)
                    return
            else:
                line = sys.stdin.readline()
                if not line:
                    return
            if line.strip():
                yield line.strip()

    def _ask(self, text: str) -> None:
        answer = self.chat.ask(text, mode=self.mode)
        self.answers.append(answer)
        files = answer.save(self.out, self._turn_stem()) if self.out is not None else []
        warn(answer.warnings if len(self.answers) == 1 else ())  # they are about the picture, so once is enough
        show_answer(answer, files)

    def _turn_stem(self) -> str:
        return f"{self.stem}.turn{len(self.answers)}"

    def _command(self, line: str) -> bool:
        """Obey one /command; False = leave."""
        name, _, value = line.partition(" ")
        value = value.strip()
        if name in ("/quit", "/exit", "/q"):
            return False
        if name == "/help":
            typer.echo(HELP, err=True)
        elif name == "/mode" and value in (*MODES, *PLUS_MODES):  # the model refuses those that it does not know
            self.mode = value
        elif name == "/mode":
            typer.echo(f"error: the mode is {self.mode}; choose one of {', '.join(MODES)}.", err=True)
        elif name in ("/undo", "/save") and not self.answers:
            typer.echo(f"error: there is no turn to {name[1:]} yet.", err=True)
        elif name == "/undo":
            self.chat.undo()
            self.answers.pop()
            typer.echo(f"{len(self.answers)} turns left.", err=True)
        elif name == "/save" and value:
            for path in self.answers[-1].save(value, self._turn_stem()):
                typer.echo(f"wrote {path}", err=True)
        else:
            typer.echo(f"error: {printable(line)} is no command. {HELP}", err=True)
        return True
