"""Referring sets: masks as the reference's, but unions; pickles cannot run code; evaluation pictures are known."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.datasets.recipe_root import old_pickle, refer_sets
from tests.golden.places import EXTRAS

from lisaseg.datasets.refer import GRefCoco, RefCoco, evaluation_images, in_split
from lisaseg.datasets.safe_pickle import load_data_pickle
from lisaseg.errors import DataError
from lisaseg.formats.coco import segmentation_to_mask

TESTS = Path(__file__).parents[1]
CASES: list[dict[str, Any]] = json.loads((EXTRAS / "refer_masks.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_masks_equal_the_reference_where_it_is_right(case: dict[str, Any]) -> None:
    mask = segmentation_to_mask(case["segmentation"], case["height"], case["width"])
    golden = load_file(EXTRAS / "refer_masks.safetensors")[case["name"]]
    np.testing.assert_array_equal(mask, golden > 0)  # it adds overlapping polygons: 2 there, which no target may be
    assert mask.dtype == np.bool_


def test_nothing_and_lines_cover_nothing() -> None:
    assert not segmentation_to_mask([], 4, 5).any() and not segmentation_to_mask([[1, 1, 3, 3]], 4, 5).any()
    for wrong in ("abc", [5], {"size": [9, 9], "counts": [81]}):
        with pytest.raises(DataError):
            segmentation_to_mask(wrong, 4, 5)


def fixture_root(root: Path) -> Path:
    folder, pictures = root / "refer_seg/refcoco", root / "refer_seg/images/mscoco/images/train2014"
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    for path in (TESTS / "fixtures/refcoco_format/refcoco").iterdir():
        copy(path, folder)
    for path in (TESTS / "fixtures/coco/val2017").iterdir():
        copy(path, pictures)
    return root


def test_real_files(tmp_path: Path) -> None:
    fixture_root(tmp_path)
    refs = json.loads((tmp_path / "refer_seg/refcoco/refs_unc.json").read_text(encoding="utf-8"))
    for split in sorted({ref["split"] for ref in refs}):
        data = RefCoco(tmp_path, split)
        said = sorted(sentence["sent"] for ref in refs if ref["split"] == split for sentence in ref["sentences"])
        assert sorted(query.text for sample in data for query in sample.queries) == said
        assert all((query.masks[0] == 1).any() and query.name for sample in data for query in sample.queries)
    assert load_data_pickle(tmp_path / "refer_seg/refcoco/refs(unc).p") == refs


def test_targets_of_several_one_and_none(tmp_path: Path) -> None:
    refer_sets(tmp_path)
    queries = {query.text: query for query in GRefCoco(tmp_path)[0].queries}
    left, small = (q.masks[0] for q in RefCoco(tmp_path)[0].queries if q.text in ("the left cup", "small cup"))
    assert queries["the dog"].masks == () and len(queries["both cups"].masks) == 1
    np.testing.assert_array_equal(queries["both cups"].masks[0], left | small)
    assert not RefCoco(tmp_path, "testA")[0].queries[0].masks[0].any()  # empty segmentation: a zero mask, as in the reference


def test_evaluation_pictures_leave_every_set(tmp_path: Path) -> None:
    refer_sets(tmp_path)
    assert evaluation_images(tmp_path) == {"2", "3"}
    assert RefCoco(tmp_path, "val").image_keys() == {"2"}
    assert len(GRefCoco(tmp_path, "val")) == 1 and len(GRefCoco(tmp_path, "val", exclude=evaluation_images(tmp_path))) == 0
    for name in (2, "2", "000000000002.jpg", "COCO_train2014_000000000002", Path("x/000000000002.png")):
        assert len(RefCoco(tmp_path, "val", exclude=[name])) == 0
    assert evaluation_images(tmp_path / "nothing") == frozenset()


def test_splits_of_several_tests() -> None:
    assert in_split("testAB", "testA") and in_split("testAB", "testB") and in_split("testAB", "test") and not in_split("testAB", "testC")
    assert in_split("train", "train") and not in_split("test", "testA") and not in_split("val", "test")


HOSTILE = [
    b"cos\nsystem\n(S'touch ran'\ntR.",
    b"(S'touch ran'\nios\nsystem\n.",
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x0bopen('ran','w')\x85R.",
    b"\x80\x02c__builtin__\nset\n.",
    b"\x80\x02ccollections\nOrderedDict\n)R.",
    b"Pid\n.",
]  # fmt: skip
BROKEN = [b"", b"(lp0\n", b"not a pickle", b"\x80\x04", b"0.", b"(dp0\nS'a'\n", b"]q\x00h\x07."]


@pytest.mark.parametrize("raw", HOSTILE + BROKEN)
def test_files_cannot_run_code(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p"):
        load_data_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_plain_data_comes_through(tmp_path: Path) -> None:
    data = [{"a": [1, 2, -3], "b": "it's", "c": {"d": []}}]
    (tmp_path / "x.p").write_bytes(old_pickle(data))
    assert load_data_pickle(tmp_path / "x.p") == data


@pytest.mark.parametrize(
    ("change", "named"),
    [({"ann_id": 99}, "entry 0"), ({"image_id": 99}, "entry 0"), ({"sentences": [{}]}, r"entry 0 .*sentences\[0\]"),
     ({"sentences": [{"sent": "a [SEG]"}]}, r"sentences\[0\]")],
)  # fmt: skip
def test_a_wrong_entry_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    refer_sets(tmp_path)
    path = tmp_path / "refer_seg/refcoco/refs(unc).p"
    refs = load_data_pickle(path)
    refs[0].update(change)
    path.write_bytes(old_pickle(refs))
    with pytest.raises(DataError, match=named):
        RefCoco(tmp_path)


def test_missing_files_and_splits_are_named(tmp_path: Path) -> None:
    refer_sets(tmp_path)
    with pytest.raises(DataError, match="testB"):
        RefCoco(tmp_path, "testB")
    with pytest.raises(DataError, match=r"refs\(google\)\.p"):
        RefCoco(tmp_path, by="google")
    (tmp_path / "refer_seg/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(DataError, match=r"images\[0\].*COCO_train2014_000000000001\.jpg does not exist"):
        RefCoco(tmp_path)[0]
