"""How far a run is, on stderr: a bar where a person watches, one plain line at a time in a pipe or a log file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[..., None]  # report(done, total), or report(done, total, means) as `Trainer.run` calls it
_ON_BAR = ("loss", "iou", "hit", "text_hit", "text_seg")  # what one looks at first, in this order; at most three fit


def on_terminal() -> bool:
    """Whether stderr can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextlib.contextmanager
def reporting(name: str, every: int = 1) -> Iterator[Report]:
    """Show the progress of one job; nothing appears before the first report.

    Args:
        name: what is being done, for example the stage.
        every: in a pipe, reports whose number is no multiple of this are left out, except the last one. A bar shows all.

    Yields:
        `report(done, total, means=None)`. means: numbers of the last steps; "seconds_per_step" among them gives the time that is left, without it
        the bar estimates it from its own reports.
    """
    if not on_terminal():
        yield lambda done, total, means=None: _print(name, every, done, total, means)
        return
    with contextlib.ExitStack() as stack:
        yield _Bar(name, stack)


def line(name: str, done: int, total: int, means: Mapping[str, float] | None = None) -> str:
    """One report as plain text: all numbers, in the order given."""
    if means is None:
        return f"{name} {done}/{total}"
    pace = means.get("seconds_per_step", 0.0)
    numbers = "  ".join(f"{k} {v:.3f}" for k, v in means.items() if k != "seconds_per_step")
    return f"{name} {done}/{total}  {pace:.2f} s/step  {(total - done) * pace / 60:.0f} min left  {numbers}".rstrip()


def duration(seconds: float) -> str:
    """A time that is left, rounded up to what matters: "45 s", "12 min", "3 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = -(-whole // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _print(name: str, every: int, done: int, total: int, means: Mapping[str, float] | None) -> None:
    if done % every == 0 or done == total:
        print(line(name, done, total, means), file=sys.stderr, flush=True)


class _Bar:
    """A bar that starts with its first report, so that a job with nothing to do leaves no trace."""

    def __init__(self, name: str, stack: contextlib.ExitStack) -> None:
        self.name, self.stack = name, stack
        self.bar: Progress | None = None
        self.seen: list[tuple[float, int]] = []  # (time, done) of the last reports

    def __call__(self, done: int, total: int, means: Mapping[str, float] | None = None) -> None:
        if self.bar is None:
            self.bar = self.stack.enter_context(_columns())
            self.bar.add_task(self.name, total=total, completed=done, pace="", numbers="")
        pace = self._pace(done) if means is None else means.get("seconds_per_step")
        shown = [k for k in _ON_BAR if k in (means or {})][:3]
        numbers = "  ".join(f"{k} {(means or {})[k]:.2f}" for k in shown)
        text = "" if pace is None else f"{pace:.1f} s/step  {duration((total - done) * pace)} left"
        self.bar.update(self.bar.task_ids[0], total=total, completed=done, pace=text, numbers=numbers)

    def _pace(self, done: int, window: float = 30.0) -> float | None:
        """Seconds a step over the last half minute; views that are there already are passed in no time and must not count for long."""
        now = time.monotonic()
        self.seen.append((now, done))
        while len(self.seen) > 2 and now - self.seen[0][0] > window:
            del self.seen[0]
        began, first = self.seen[0]
        return (now - began) / (done - first) if done > first else None


def _columns() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    name, pace, numbers = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[pace]", "fields[numbers]"))
    bar = BarColumn(bar_width=None, table_column=Column(ratio=1))  # takes what the texts leave of the line
    return Progress(name, bar, MofNCompleteColumn(), pace, numbers, console=Console(stderr=True), expand=True)
