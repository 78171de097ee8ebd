"""A bar on a real terminal, plain lines in a pipe, and nothing on stdout in either."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisaseg.train.progress import duration, line, reporting

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
MEANS = "dict(bce=0.9, iou=0.5, hit=0.25, loss=1.5, grad_norm=7.0, seconds_per_step=2.0)"
JOB = f"""
import sys
sys.path.insert(0, {SOURCE!r})
from lisaseg.train.progress import reporting
with reporting("joint") as report:
    for step in (10, 20, 30):
        report(step, 30, {MEANS})
with reporting("views", every=100) as report:
    for done in range(1, 251):
        report(done, 250)
with reporting("nothing to do"):
    pass
assert "torch" not in sys.modules
"""
LINE = "joint {}/30  2.00 s/step  {} min left  bce 0.900  iou 0.500  hit 0.250  loss 1.500  grad_norm 7.000"


def test_a_pipe_gets_plain_lines_on_stderr() -> None:
    run = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == ""
    assert run.stderr.splitlines() == [LINE.format(10, 1), LINE.format(20, 0), LINE.format(30, 0), "views 100/250", "views 200/250", "views 250/250"]


def on_terminal(job: str, columns: int, term: str = "xterm-256color") -> str:
    """What a person's terminal of this width gets from stderr, control sequences left out; stdout must stay empty."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": str(columns)}
    process = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.communicate(timeout=60)[0] == b"" and process.returncode == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_one_bar_a_job(columns: int) -> None:
    shown = on_terminal(JOB, columns)
    rows = [row.strip() for row in re.split(r"[\r\n]+", shown) if row.strip()]
    assert max(map(len, rows)) <= columns and "nothing to do" not in shown
    last = [row for row in rows if row.startswith("joint")][-1]
    assert re.fullmatch(r"joint [━ ]+30/30 2\.0 s/step {2}0 s left loss 1\.50 {2}iou 0\.50 {2}hit 0\.25", last), last
    assert re.match(r"views [━ ]+250/250 ", [row for row in rows if row.startswith("views")][-1])
    assert "bce" not in shown and "joint 10/30" not in shown, "no plain lines beside the bar"


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert LINE.format(20, 0) in on_terminal(JOB, 160, term="dumb")


def test_an_error_leaves_the_terminal_usable() -> None:
    job = JOB.replace("report(step, 30", "1 / (20 - step); report(step, 30").replace(
        "with reporting(\"joint\")", "import contextlib\nwith contextlib.suppress(ZeroDivisionError), reporting(\"joint\")"
    )  # fmt: skip
    shown = on_terminal(job, 100)
    assert "10/30" in shown and "250/250" in shown, "the next bar can start"


@given(st.floats(0, 1e6))
def test_durations_are_rounded_up_and_short(seconds: float) -> None:
    text = duration(seconds)
    hours, minutes, rest = (int(m.group(1)) if (m := re.search(rf"(\d+) {unit}\b", text)) else 0 for unit in ("h", "min", "s"))
    shown = 3600 * hours + 60 * minutes + rest
    assert -0.5 <= shown - seconds <= 60 and (seconds > 59.5 or shown - seconds <= 0.5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (-3, "0 s"), (59.4, "59 s"), (60, "1 min"), (61, "2 min"), (3600, "1 h 00 min"), (11000, "3 h 04 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    means = {"loss": 0.1234, "seconds_per_step": 90.0}
    with reporting("text") as report:
        report(1, 5, means)
        report(5, 5, {})
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [line("text", 1, 5, means), line("text", 5, 5, {})]
    assert line("text", 1, 5, means) == "text 1/5  90.00 s/step  6 min left  loss 0.123"
