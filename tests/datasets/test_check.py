"""`check_root`: one row a set; what is missing and what is wrong is named, with the source."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.datasets.recipe_root import make_root

from lisaseg.datasets import DATASETS
from lisaseg.datasets.check import PLACES, check_root, table
from lisaseg.errors import DataError


def test_a_complete_root(tmp_path: Path) -> None:
    rows = check_root(make_root(tmp_path), every=True)
    assert [row.name for row in rows] == [place.name for place in PLACES]
    assert all(row.status == "found" and row.count and not row.missing and not row.faults for row in rows)
    assert {row.name for row in rows} == set(DATASETS.names()) - {"pool", "jsonl"}
    assert len(table(rows).splitlines()) == len(rows) + 1


def test_an_empty_root(tmp_path: Path) -> None:
    rows = check_root(tmp_path)
    assert all(row.status == "missing" and row.count == 0 and row.missing and row.source for row in rows)
    text = table(rows)
    assert all(row.source in text and row.missing[0] in text for row in rows)
    with pytest.raises(DataError, match="nowhere"):
        check_root(tmp_path / "nowhere")
    with pytest.raises(DataError, match="imagenet"):
        check_root(tmp_path, ["imagenet"])


def test_faults_are_named_with_their_file(tmp_path: Path) -> None:
    make_root(tmp_path)
    (tmp_path / "ade20k/annotations/training/ADE_train_00000002.png").write_bytes(b"cut")
    (tmp_path / "vlpart/pascal_part/train.json").write_text("{", encoding="utf-8")
    (tmp_path / "mapillary/config_v2.0.json").unlink()
    rows = {row.name: row for row in check_root(tmp_path, ["ade20k", "pascal_part", "mapillary", "cocostuff"])}
    assert rows["ade20k"].status == "faulty" and "ADE_train_00000002.png" in rows["ade20k"].faults[0] and rows["ade20k"].count == 2
    assert rows["pascal_part"].status == "faulty" and "train.json" in rows["pascal_part"].faults[0]
    assert rows["mapillary"].missing == ("mapillary/config_v2.0.json",) and rows["cocostuff"].status == "found"
