"""Laws of `Pool` over small COCO files that are written here: everything labelled comes back, nothing else, and errors name the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from lisaseg.datasets import DATASETS, SegmentationDataset
from lisaseg.datasets.pool import Pool, natural_name
from lisaseg.errors import DataError
from lisaseg.types import Sample

HEIGHT, WIDTH = 24, 32
CATEGORIES = [(1, "mouse"), (2, "person"), (3, "wall-tile"), (4, "border"), (5, "cat"), (6, "gizmo_(odd)"), (7, "tie"), (8, "necktie"), (9, "shirt")]
IDS = {name: number for number, name in CATEGORIES}


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def coded(mask: np.ndarray) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def annotation(name: str, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": IDS[name], "segmentation": coded(mask), "iscrowd": 0, "kind": "thing", **more}


def document(annotations: list[dict[str, Any]], **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "sub/a.png", "width": WIDTH, "height": HEIGHT, **image}],
        "annotations": [{"id": k, **entry} for k, entry in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }


def write(root: Path, data: Any) -> Pool:
    (root / "images" / "sub").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "sub" / "a.png")
    (root / "set_train.json").write_text(json.dumps(data), encoding="utf-8")
    return Pool(root, "set_train.json")


def masks_by_text(sample: Sample) -> dict[str, np.ndarray]:
    assert len({query.text for query in sample.queries}) == len(sample.queries)
    return {query.text: query.masks[0] for query in sample.queries}


def test_it_is_a_data_set(tmp_path: Path) -> None:
    pool = write(tmp_path, document([annotation("cat", box(1, 1, 5, 5))]))
    assert DATASETS.get("pool") is Pool and isinstance(pool, SegmentationDataset)
    assert len(pool) == 1 and len(Pool(tmp_path, "set_train")) == 1
    sample = pool[0]
    assert isinstance(sample.image, Path) and Image.open(sample.image).size == (WIDTH, HEIGHT)
    assert (sample.id, sample.source) == ("a", "set_train")
    with pytest.raises(IndexError):
        pool[1]


boxes = st.tuples(st.integers(0, HEIGHT - 2), st.integers(0, WIDTH - 2), st.integers(1, HEIGHT), st.integers(1, WIDTH)).map(
    lambda b: box(b[0], b[1], min(HEIGHT, b[0] + b[2]), min(WIDTH, b[1] + b[3]))
)
entries = st.lists(st.tuples(st.sampled_from(["mouse", "person", "wall-tile", "tie", "necktie"]), boxes, st.booleans()), max_size=8)


@given(entries=entries)
@settings(max_examples=40, deadline=None)
def test_a_query_is_the_union_of_its_instances(entries: list[tuple[str, np.ndarray, bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    pool = write(
        tmp_path_factory.mktemp("pool"), document([annotation(n, m, iscrowd=int(crowd)) for n, m, crowd in entries], annotation_scope="person_only")
    )
    found = masks_by_text(pool[0])
    assert set(found) == {natural_name(n) for n, _, crowd in entries if not crowd}
    for text, mask in found.items():
        target = np.zeros((HEIGHT, WIDTH), bool)
        crowded = target.copy()
        for n, m, crowd in entries:
            if natural_name(n) == text:
                (crowded if crowd else target)[m > 0] = True
        assert ((mask == 1) == target).all()
        assert ((mask == 255) == (crowded & ~target)).all()
    assert not set(found) & set(pool[0].absent)
    counted = {text: sum(natural_name(n) == text and not crowd for n, _, crowd in entries) for text in found}
    crowds = {natural_name(n) for n, _, crowd in entries if crowd}
    names = [name for name, _ in pool.instances(0)]
    assert {name: names.count(name) for name in set(names)} == {name: k for name, k in counted.items() if name not in crowds}
    again = pool[0]
    assert [(q.text, q.masks[0].tobytes()) for q in again.queries] == [(t, m.tobytes()) for t, m in found.items()]


def test_ignored_regions_win_for_every_query_and_are_no_query(tmp_path: Path) -> None:
    pool = write(tmp_path, document([annotation("cat", box(2, 2, 20, 20)), annotation("border", box(0, 0, 4, 30), kind="ignore")]))
    (query,) = pool[0].queries
    assert (query.masks[0][:4, :30] == 255).all() and (query.masks[0][4:20, 2:20] == 1).all() and (query.masks[0][20:] == 0).all()


@pytest.mark.parametrize(("attribute", "text"), [("Abyssinian", "Abyssinian cat"), ("american wirehair cat", "American wirehair cat")])
def test_an_attribute_makes_a_finer_query(tmp_path: Path, attribute: str, text: str) -> None:
    sample = write(tmp_path, document([annotation("cat", box(2, 2, 9, 9), attribute=attribute), annotation("cat", box(12, 2, 19, 9))]))[0]
    found = masks_by_text(sample)
    assert (found["cat"] == 1).sum() == 98 and (found[text] == 1).sum() == 49
    assert {query.text: (query.name, query.kind) for query in sample.queries} == {"cat": ("cat", "category"), text: ("cat", "attribute")}


def test_absent_names_follow_the_scope(tmp_path: Path) -> None:
    cat = [annotation("cat", box(1, 1, 9, 9))]
    things = write(tmp_path, document(cat, annotation_scope="instances80"))[0].absent
    assert len(things) == 79 and "computer mouse" in things and "cat" not in things and "sky" not in things
    both = write(tmp_path, document(cat, annotation_scope="things_from_panoptic+panoptic133"))[0].absent
    assert len(both) == 79 + 53 and "sky" in both
    assert write(tmp_path, document(cat, annotation_scope="trimap"))[0].absent == ()
    assert write(tmp_path, document(cat))[0].absent == ()
    checked = document(cat, annotation_scope="person_only+lvis", absent_categories=["mailbox_(at_home)", "cat"])
    assert write(tmp_path, checked)[0].absent == ("mailbox", "person")


def test_a_name_that_fits_something_present_is_not_absent(tmp_path: Path) -> None:
    absent = write(tmp_path, document([annotation("shirt", box(1, 1, 9, 9), kind="clothing")], annotation_scope="semantic58"))[0].absent
    assert "shoes" in absent and not {"shirt", "blouse", "top", "T-shirt"} & set(absent)
    absent = write(tmp_path, document([annotation("wall-tile", box(1, 1, 9, 9), kind="stuff")], annotation_scope="panoptic133"))[0].absent
    assert "sky" in absent and not {"wall", "brick wall", "tiled wall"} & set(absent)


def test_instances_leave_out_what_is_not_masked_one_by_one(tmp_path: Path) -> None:
    entries = [
        annotation("mouse", box(1, 1, 5, 5)),
        annotation("mouse", box(1, 1, 5, 5), kind="lvis"),  # the same object from a second source
        annotation("shirt", box(6, 6, 9, 9), kind="clothing"),
        annotation("wall-tile", box(0, 0, 24, 32), kind="stuff"),
        annotation("person", box(10, 10, 20, 20), iscrowd=1),
        annotation("person", box(1, 20, 5, 25)),
    ]
    pool = write(tmp_path, document(entries))
    ((name, mask),) = pool.instances(0)
    assert name == "computer mouse" and mask.dtype == np.uint8 and (mask == box(1, 1, 5, 5)).all()


def test_captions_and_size(tmp_path: Path) -> None:
    pool = write(tmp_path, document([], captions=[" A cat. ", ""]))
    assert pool.captions(0) == ("A cat.",) and pool.size(0) == (HEIGHT, WIDTH) and pool.scope(0) == frozenset()
    assert write(tmp_path, document([])).captions(0) == ()


def test_all_coco_codings_of_a_mask_agree(tmp_path: Path) -> None:
    mask = box(4, 6, 12, 20)
    flat = mask.flatten(order="F")
    counts, value = [], 0
    while len(flat):
        run = int(np.argmax(flat != value)) if (flat != value).any() else len(flat)
        counts.append(run)
        flat, value = flat[run:], 1 - value
    codings = [coded(mask), {"size": [HEIGHT, WIDTH], "counts": counts}, [[6, 4, 20, 4, 20, 12, 6, 12]]]
    for coding in codings:
        (query,) = write(tmp_path, document([annotation("cat", mask, segmentation=coding)]))[0].queries
        assert ((query.masks[0] == 1) == (mask == 1)).all()


def broken(change: str) -> dict[str, Any]:
    data = document([annotation("cat", box(1, 1, 5, 5)), annotation("cat", box(1, 1, 5, 5))], key="first")
    if change.startswith("no "):
        where, key = change[3:].split(".")
        del data[where][-1][key]
    elif change == "list":
        return []  # type: ignore[return-value]
    elif change == "twice":
        data["images"].append(data["images"][0])
    else:
        data["annotations"][1][change] = {"image_id": 99, "category_id": 99, "segmentation": {"size": [3, 3], "counts": "09"}}[change]
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no images.width", r"images\[0\].*'width'"),
        ("no images.file_name", r"images\[0\].*'file_name'"),
        ("no categories.name", r"categories\[8\].*'name'"),
        ("no annotations.segmentation", r"annotations\[1\].*'segmentation'"),
        ("image_id", r"annotations\[1\].*99"),
        ("category_id", r"annotations\[1\].*99"),
        ("segmentation", r"annotations\[1\].*decoded"),
        ("twice", r"images\[1\].*twice"),
        ("list", "'images' is missing"),
    ],
)
def test_errors_name_file_and_entry(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"set_train\.json.*{message}"):
        write(tmp_path, broken(change))[0]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    pool = write(tmp_path, document([]))
    (tmp_path / "images" / "sub" / "a.png").unlink()
    with pytest.raises(DataError, match=r"images\[0\].*a\.png does not exist"):
        pool[0]
    with pytest.raises(DataError, match=r"the folder holds set_train\.json"):
        Pool(tmp_path, "set_val")
    (tmp_path / "set_train.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        Pool(tmp_path, "set_train")
