"""I and P through the command line: every picture, then every prompt, in one `lisaseg batch`, with the tiny taught model of `tests.tiny_random`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import tiny_random as tiny
from tests.corpora.images import ACCEPT, image_cases
from tests.corpora.instructions import EMPTY, TOO_LONG, instruction_cases
from tests.server.running import clean, picture
from typer.testing import CliRunner

from lisaseg.apps.cli import app
from lisaseg.predictor import Predictor

pytestmark = pytest.mark.serve


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch, predictor: Predictor, tmp_path: Path) -> Any:
    """Run `lisaseg batch`; the lines of results.jsonl and of failed.jsonl, by path."""
    predictor.remembered_bytes = 10**12  # many files of the corpus hold the same picture
    monkeypatch.setattr("lisaseg.predictor.load", lambda name, **options: predictor)

    def run(source: Path, *options: object) -> tuple[dict[str, Any], dict[str, Any]]:
        result = CliRunner().invoke(app, ["batch", str(source), str(tmp_path / "out"), *map(str, options), "--no-files", "--batch-size", "32"])
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
        answered, failed = (
            {record["path"]: record for record in map(json.loads, (tmp_path / "out" / name).read_bytes().splitlines())}
            for name in ("results.jsonl", "failed.jsonl")
        )
        assert not set(answered) & set(failed)
        for record in failed.values():
            clean(record["message"])
        return answered, failed

    return run


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_pictures(batch: Any, tmp_path: Path) -> None:
    cases = {f"{k:03}.png": case for k, case in enumerate(image_cases())}
    (tmp_path / "in").mkdir()
    for name, case in cases.items():
        (tmp_path / "in" / name).write_bytes(case.data)
    answered, failed = batch(tmp_path / "in", "--prompt", tiny.ONE)
    assert len(cases) >= 180 and set(answered) | set(failed) == set(cases)
    for name, case in cases.items():
        if case.expected != ACCEPT:
            assert failed[name]["code"] == case.expected and name in failed[name]["message"], case.name
            continue
        answer = answered[name]["answer"]
        assert case.rgb is not None and (answer["image"]["height"], answer["image"]["width"]) == case.rgb.shape[:2], case.name
        assert [tuple(segment["mask"]["size"]) for segment in answer["segments"]] == [case.rgb.shape[:2]], case.name


def test_prompts(batch: Any, tmp_path: Path) -> None:
    cases = {f"{k:03}.png": case for k, case in enumerate(instruction_cases())}
    for name in cases:
        (tmp_path / name).write_bytes(picture())
    rows = [{"image": name, "text": case.text} for name, case in cases.items()]
    blank = {f"pairs.jsonl:{k}": case for k, case in enumerate(cases.values(), 1) if not case.text.strip()}  # refused as lines of the file
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    answered, failed = batch(tmp_path / "pairs.jsonl", "--mode", "text", "--max-new-tokens", 1)
    assert {name: failed.pop(name)["code"] for name in blank} == dict.fromkeys(blank, "bad_line")
    assert {case.expected for case in blank.values()} == {EMPTY, TOO_LONG}  # a million blanks are too long
    asked = {name: case for name, case in cases.items() if case.text.strip()}
    assert len(asked) >= 400 and set(answered) | set(failed) == set(asked)
    for name, case in asked.items():
        expected = {case.expected, TOO_LONG} if len(case.text) > 1_000 else {case.expected}  # the context of this model is short
        assert failed.get(name, {"code": ACCEPT})["code"] in expected, case.name
    answers = [record["answer"] for record in answered.values()]
    assert len({answer["usage"]["image_tokens"] for answer in answers}) == 1, "one slot for the picture, whatever was written"
    assert not any(answer["segments"] for answer in answers)
