"""What a batch run does to things in OUT that are not its own: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisaseg.apps.batch import Outcome, Results, export
from lisaseg.apps.batch_inputs import Pair
from lisaseg.errors import UsageError

SETTING: dict[str, Any] = {"model": "m", "prompt": "x"}
FAILED = Outcome({"path": "a.jpg", "prompt": "x", "code": "corrupt_image", "message": "Broken."}, failed=True)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_refused_run_changes_nothing(tmp_path: Path) -> None:
    with Results(tmp_path, None, SETTING) as results:
        results.add(FAILED)
    before = everything(tmp_path)
    assert "failed.jsonl" in before
    with pytest.raises(UsageError, match="another run"):
        Results(tmp_path, None, {**SETTING, "prompt": "y"})
    assert everything(tmp_path) == before
    with Results(tmp_path, None, SETTING):
        assert not (tmp_path / "failed.jsonl").exists(), "what failed is tried again"


@pytest.mark.parametrize("name", ["results.jsonl", "results-1-of-2.jsonl"])
def test_results_of_somebody_else_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"no": "line end"}')
    with pytest.raises(UsageError, match="no run of ours"):
        Results(tmp_path, None, SETTING)
    assert everything(tmp_path) == {name: b'{"no": "line end"}'}
    (tmp_path / name).rename(tmp_path / "results_of_last_year.jsonl")
    with Results(tmp_path, None, SETTING) as results:
        assert not results.done, "only names that runs give are read"


@pytest.mark.parametrize(("name", "place"), [("yolo", "yolo/weights.pt"), ("coco", "coco.json")])
def test_exports_replace_only_exports(tmp_path: Path, name: str, place: str) -> None:
    theirs = tmp_path / place
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("precious")
    pairs = [Pair("a.jpg", str(tmp_path / "a.jpg"), "x", "a")]  # not answered: an export of nothing
    with Results(tmp_path, None, SETTING) as results:
        with pytest.raises(UsageError, match="not of this run"):
            export(results, pairs, name)
        assert theirs.read_text() == "precious"
        theirs.unlink()
        if theirs.parent != tmp_path:
            theirs.parent.rmdir()
        made = export(results, pairs, name)
    with Results(tmp_path, None, SETTING) as results:
        assert export(results, pairs, name) == made and made.exists(), "its own is replaced, also by a later start"
