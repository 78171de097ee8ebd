"""Files as the tools write them: every shape that has an area is read, every other is refused by file, place and reason."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lisaseg.datasets import DATASETS
from lisaseg.errors import DataError
from lisaseg.formats import FORMATS
from lisaseg.formats.answer import answer_to_sample
from lisaseg.formats.mask_forms import mask_png
from lisaseg.types import IGNORE, Answer, Query, Sample, Segment

H, W = 20, 30
FIXTURES = Path(__file__).parents[1] / "fixtures"
BOX = np.zeros((H, W), bool)
BOX[4:10, 5:15] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (W, H)).save(tmp_path / "a.jpg")
    return tmp_path


def first(name: str, path: Path, images: Path | None = None) -> Sample:
    sample: Sample = next(iter(FORMATS.get(name).read(path, images)))
    return sample


def masks_of(sample: Sample) -> dict[str, list[np.ndarray]]:
    return {query.text: [mask == 1 for mask in query.masks] for query in sample.queries}


# --- labelme --------------------------------------------------------------------------------------------------------------------------------------


def labelme(folder: Path, *shapes: dict[str, Any], **fields: Any) -> Path:
    base = {"imagePath": "a.jpg", "imageData": None, "imageHeight": H, "imageWidth": W, "shapes": list(shapes)}
    (folder / "a.json").write_text(json.dumps({**base, **fields}))
    return folder


def drawn(kind: str | None, *points: list[float], **fields: Any) -> dict[str, Any]:
    return {"label": "dog", "points": list(points), "shape_type": kind, "group_id": None, **fields}


@pytest.mark.parametrize(
    "shape",
    [
        drawn("rectangle", [5, 4], [14, 9]),
        drawn("rectangle", [14, 9], [5, 4]),
        drawn("rectangle", [5, 4], [14, 4], [14, 9], [5, 9]),
        drawn("polygon", [5, 4], [14, 4], [14, 9], [5, 9]),
        drawn(None, [5, 4], [14, 4], [14, 9], [5, 9]),
        drawn("oriented_rectangle", [5, 4], [14, 4], [14, 9], [5, 9]),
        drawn("mask", [5, 4], [14, 9], mask=base64.b64encode(mask_png(BOX[4:10, 5:15])).decode()),
    ],
    ids=lambda shape: str(shape["shape_type"]),
)
def test_labelme_shapes(folder: Path, shape: dict[str, Any]) -> None:
    (mask,) = masks_of(first("labelme", labelme(folder, shape)))["dog"]
    assert (mask == BOX).all()


def test_labelme_circles_groups_and_ignored_regions(folder: Path) -> None:
    circle = drawn("circle", [20, 10], [24, 10])
    parts = [drawn("rectangle", [0, 0], [2, 2], group_id=1), drawn("rectangle", [8, 8], [9, 9], group_id=1)]
    hidden = {**drawn("rectangle", [0, 15], [29, 19]), "label": "__ignore__"}
    sample = first("labelme", labelme(folder, circle, *parts, hidden))
    one, two = sample.queries[0].masks
    assert one[10, 20] == 1 and one[10, 24] == 1 and one[10, 25] == 0 and (one[16:] == IGNORE).all()
    assert (two == 1).sum() == 9 + 4 and len(sample.queries) == 1


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (drawn("point", [1, 1]), "has no area"),
        (drawn("linestrip", [1, 1], [2, 2]), "has no area"),
        (drawn("polygon", [1, 1], [2, 2]), "2 points make no polygon"),
        (drawn("polygon", [1, 1], [2, 2], ["x", 1]), "no [x, y]"),
        (drawn("polygon", [1, 1], [2, 2], [1e9, 1]), "no [x, y]"),
        (drawn("polygon", [1, 1], [2, 2], [float("nan"), 1]), "no [x, y]"),
        (drawn("mask", [5, 4], [14, 9]), "field 'mask'"),
        (drawn("mask", [5, 4], [14, 9], mask="!!"), "base64"),
        (drawn("mask", [5, 4], [14, 8], mask=base64.b64encode(mask_png(BOX[4:10, 5:15])).decode()), "does not fit"),
        (drawn("mask", [25, 4], [34, 9], mask=base64.b64encode(mask_png(BOX[4:10, 5:15])).decode()), "does not fit"),
        ({"label": "dog"}, "field 'points'"),
        ({"points": []}, "field 'label'"),
        (drawn("polygon", label="[SEG]"), "[SEG]"),
        ("no shape", "shapes[0]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_labelme_faults(folder: Path, shape: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        first("labelme", labelme(folder, shape))
    assert str(folder / "a.json") in caught.value.message and "shapes[0]" in caught.value.message and reason in caught.value.message
    assert caught.value.next_step


# --- CVAT -----------------------------------------------------------------------------------------------------------------------------------------


def cvat(folder: Path, shapes: str, *, name: str = "a.jpg", width: int = W) -> Path:
    text = f'<annotations><version>1.1</version><image id="7" name="{name}" width="{width}" height="{H}">{shapes}</image></annotations>'
    (folder / "annotations.xml").write_text(text)
    return folder / "annotations.xml"


@pytest.mark.parametrize(
    "shape",
    [
        '<box label="dog" xtl="5.0" ytl="4.0" xbr="15.0" ybr="10.0"/>',
        '<polygon label="dog" points="5.0,4.0;15.0,4.0;15.0,10.0;5.0,10.0" rotation="0.0"/>',
        '<mask label="dog" rle="0, 60" left="5" top="4" width="10" height="6"/>',
        '<tag label="x"/><box label="dog" group_id="1" xtl="5" ytl="4" xbr="9" ybr="10"/>'
        '<box label="dog" group_id="1" xtl="8" ytl="4" xbr="15" ybr="10"/>',
    ],
)
def test_cvat_shapes(folder: Path, shape: str) -> None:
    sample = first("cvat", cvat(folder, shape))
    (mask,) = masks_of(sample)["dog"]
    assert (mask == BOX).all() and sample.id == "7"


def test_cvat_ellipses_and_archives(folder: Path) -> None:
    (mask,) = masks_of(first("cvat", cvat(folder, '<ellipse label="dog" cx="15" cy="10" rx="8" ry="5"/>')))["dog"]
    yy, xx = np.mgrid[:H, :W]
    true = ((xx + 0.5 - 15) / 8) ** 2 + ((yy + 0.5 - 10) / 5) ** 2 <= 1
    assert (mask & true).sum() / (mask | true).sum() > 0.95
    (folder / "images").mkdir()
    (folder / "a.jpg").rename(folder / "images" / "b.jpg")
    assert Path(str(first("cvat", cvat(folder, "", name="b.jpg")).image)).parent.name == "images"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<polyline label="dog" points="1,1;2,2"/>', "has no area"),
        ('<box label="dog" xtl="5" ytl="4" xbr="15"/>', "'ybr' is missing"),
        ('<box label="dog" xtl="5" ytl="4" xbr="15" ybr="x"/>', "no number"),
        ('<box label="dog" xtl="5" ytl="4" xbr="15" ybr="10" rotation="30"/>', "rotated"),
        ('<box xtl="5" ytl="4" xbr="15" ybr="10"/>', "'label' is missing"),
        ('<mask label="dog" rle="0, 59" left="5" top="4" width="10" height="6"/>', "do not cover"),
        ('<mask label="dog" rle="0, -1, 61" left="5" top="4" width="10" height="6"/>', "do not cover"),
        ('<mask label="dog" rle="0, 99999999999999999999" left="5" top="4" width="10" height="6"/>', "whole numbers"),
        ('<mask label="dog" rle="0, 60" left="25" top="4" width="10" height="6"/>', "does not lie"),
        ('<mask label="dog" rle="0, 60" left="5" top="4.5" width="10" height="6"/>', "no whole number"),
        ('<polygon label="dog" points="1,1;2"/>', "points"),
        ('<polygon label="dog" points="1,1;2,y;3,3"/>', "x,y;x,y"),
    ],
)
def test_cvat_faults(folder: Path, shape: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        first("cvat", cvat(folder, shape))
    where = f"{folder / 'annotations.xml'}, image 7, "
    assert caught.value.message.startswith(where) and reason.casefold() in caught.value.message.casefold() and caught.value.next_step


def test_cvat_refuses_entities_and_tracks(folder: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'
    for text in (bomb, "<annotations><track/></annotations>", "<other/>"):
        (folder / "x.xml").write_text(text)
        with pytest.raises(DataError, match=r"x\.xml"):
            first("cvat", folder / "x.xml")
    with pytest.raises(DataError, match="upright"):
        first("cvat", cvat(folder, "", width=W + 1))


# --- Label Studio ---------------------------------------------------------------------------------------------------------------------------------


def studio(folder: Path, kind: str, value: dict[str, Any], *, image: str = "a.jpg", **fields: Any) -> Path:
    result = {"type": kind, "original_height": H, "original_width": W, "image_rotation": 0, "value": {kind: ["dog"], **value}, **fields}
    (folder / "tasks.json").write_text(json.dumps([{"id": 3, "data": {"image": image}, "annotations": [{"result": [result]}]}]))
    return folder / "tasks.json"


def percent(*points: tuple[float, float]) -> list[list[float]]:
    return [[100 * x / W, 100 * y / H] for x, y in points]


RECTANGLE = {"x": 500 / W, "y": 400 / H, "width": 1000 / W, "height": 600 / H}


@pytest.mark.parametrize("image", ["a.jpg", "/data/local-files/?d=a.jpg", "/data/local-files/?d=sub%20dir/a.jpg"])
def test_label_studio_polygons_and_rectangles(folder: Path, image: str) -> None:
    if "sub" in image:
        (folder / "sub dir").mkdir()
        (folder / "a.jpg").rename(folder / "sub dir" / "a.jpg")
    polygon = {"points": percent((5, 4), (15, 4), (15, 10), (5, 10))}
    for kind, value in (("polygonlabels", polygon), ("rectanglelabels", RECTANGLE)):
        (mask,) = masks_of(first("labelstudio", studio(folder, kind, value, image=image)))["dog"]
        assert (mask == BOX).all()


def test_label_studio_uploads_are_found_by_name(folder: Path) -> None:
    path = studio(folder, "rectanglelabels", RECTANGLE, image="/data/upload/1/0a1b2c3d-a.jpg")
    with pytest.raises(DataError, match="--images"):
        first("labelstudio", path)
    assert Path(str(first("labelstudio", path, folder).image)).name == "a.jpg"


def test_label_studio_predictions_and_cancelled_work(folder: Path) -> None:
    (done,) = json.loads(studio(folder, "rectanglelabels", RECTANGLE).read_text())
    good = done["annotations"][0]["result"]
    for task in (
        {**done, "annotations": [], "predictions": [{"result": good}]},
        {**done, "annotations": [{"was_cancelled": True, "result": []}, {"result": good}]},
    ):
        (folder / "t.json").write_text(json.dumps([task]))
        assert masks_of(first("labelstudio", folder / "t.json"))["dog"]


@pytest.mark.parametrize(
    ("kind", "value", "fields", "reason"),
    [
        ("brushlabels", {"rle": "abc"}, {}, "list of bytes"),
        ("brushlabels", {"rle": [1, 2, 3]}, {}, "ends early"),
        ("brushlabels", {"rle": [0, 0, 0, 4, 56, 37, 127, 0, 0, 0]}, {}, "original_height"),
        ("rectanglelabels", {"x": 1}, {}, "percent"),
        ("rectanglelabels", {**RECTANGLE, "rotation": 30}, {}, "rotated"),
        ("rectanglelabels", RECTANGLE, {"image_rotation": 90}, "rotated"),
        ("rectanglelabels", RECTANGLE, {"original_width": W + 1}, "upright"),
        ("polygonlabels", {"points": [[1, 2]]}, {}, "3 points"),
        ("polygonlabels", {"polygonlabels": [], "points": []}, {}, "not empty"),
    ],
)
def test_label_studio_faults(folder: Path, kind: str, value: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        first("labelstudio", studio(folder, kind, value, **fields))
    told = str(caught.value)
    assert told.startswith(f"{folder / 'tasks.json'}, task 0, result[0]") and reason in told


# --- YOLO -----------------------------------------------------------------------------------------------------------------------------------------


def yolo(folder: Path, label: str, setup: str = "train: images/train\nval: images/train\nnames: [dog, cat]\n") -> Path:
    (folder / "images/train").mkdir(parents=True, exist_ok=True)
    (folder / "labels/train").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H)).save(folder / "images/train/p.png")
    (folder / "labels/train/p.txt").write_text(label)
    (folder / "data.yaml").write_text(setup)
    return folder


def test_yolo_splits_names_and_pictures_without_labels(folder: Path) -> None:
    line = f"1 {5.5 / W} {4.5 / H} {14.5 / W} {4.5 / H} {14.5 / W} {9.5 / H} {5.5 / W} {9.5 / H}\n"
    assert (masks_of(first("yolo", yolo(folder, line)))["cat"][0] == BOX).all()
    named = yolo(folder, line, "path: /nowhere\ntrain: images\nnames:\n  0: dog\n  1: 'big: cat'\n")
    assert list(masks_of(first("yolo", named / "data.yaml"))) == ["big: cat"]
    (folder / "labels/train/p.txt").unlink()
    assert first("yolo", folder).queries == ()


@pytest.mark.parametrize(
    ("label", "reason"),
    [("0 0.1 0.1 0.2 0.2", "a box"), ("0 0.1 0.1 0.2", "make no outline"), ("2 0 0 1 0 1 1", "class 2"), ("0.5 0 0 1 0 1 1", "class 0.5"),
     ("0 0 0 5 0 5 5", "0..1"), ("0 0 0 nan 0 1 1", "0..1"), ("dog 0 0 1 0 1 1", "no line of numbers")],
)  # fmt: skip
def test_yolo_faults(folder: Path, label: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        list(FORMATS.get("yolo").read(yolo(folder, f"0 0 0 1 0 1 1\n{label}\n"), None))
    assert caught.value.message.startswith(f"{folder / 'labels/train/p.txt'}:2: ") and reason in caught.value.message


@pytest.mark.parametrize(
    "setup", ["names: 3\ntrain: images\n", "names: {x: dog}\ntrain: images\n", "- 1\n", "train: gone\nnames: [dog]\n", "names: ['']\n"]
)
def test_yolo_setups_that_cannot_be_used(folder: Path, setup: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml"):
        list(FORMATS.get("yolo").read(yolo(folder, "", setup), None))


# --- PNG, ReasonSeg, COCO, answers ----------------------------------------------------------------------------------------------------------------


def test_png_folders_without_a_table(folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    (folder / "a.jpg").rename(folder / "images/a.jpg")
    for name in ("a.png", "a.mask2.png"):
        (folder / "masks" / name).write_bytes(mask_png(BOX))
    assert [len(masks) for masks in masks_of(first("png", folder)).values()] == [2] and list(masks_of(first("png", folder))) == ["target"]
    Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W)).save(folder / "masks/a.png")
    with pytest.raises(DataError, match=r"masks/a\.png.*values"):
        first("png", folder)


def test_index_pngs_as_voc_and_camvid_have_them(folder: Path) -> None:
    (folder / "SegmentationClass").mkdir()
    values = np.zeros((H, W), np.uint8)
    values[BOX], values[0] = 2, 255
    Image.fromarray(values).save(folder / "SegmentationClass/a.png")
    for names, found in (("__ignore__\n_background_\ncat\ndog\n", ["dog"]), ("sky\nroad\ncar\n", ["sky", "car"])):
        (folder / "class_names.txt").write_text(names)
        sample = first("png-index", folder, folder)
        assert list(masks_of(sample)) == found
        assert all((query.masks[0][0] == IGNORE).all() for query in sample.queries)
    (folder / "class_names.txt").write_text("_background_\ncat\n")
    with pytest.raises(DataError, match=r"class 2"):
        first("png-index", folder, folder)


def test_reasonseg_files_are_read_as_the_data_set_reads_them() -> None:
    ours = list(FORMATS.get("reasonseg").read(FIXTURES / "reasonseg_format/val", None))
    theirs = DATASETS.get("reasonseg")(FIXTURES, "val", folder="reasonseg_format")
    assert len(ours) == len(theirs) == 4
    for one, two in zip(ours, theirs, strict=True):
        assert one.id == two.id and one.queries[0].text == two.queries[0].text and (one.queries[0].masks[0] == two.queries[0].masks[0]).all()


def test_written_reasonseg_is_training_data(folder: Path) -> None:
    query = Query("What barks?", (BOX.astype(np.uint8),), True, explanation="It does.", rephrasings=("Who barks?",))
    (folder / "reason_seg/ReasonSeg").mkdir(parents=True)
    FORMATS.get("reasonseg").write([Sample("x", folder / "a.jpg", (query,))], folder / "reason_seg/ReasonSeg/train")
    (read,) = DATASETS.get("reasonseg")(folder, "train")
    assert (read.queries[0].masks[0] == BOX).all() and read.queries[0].explanation == "It does." and read.queries[0].rephrasings == ("Who barks?",)


def test_coco_keeps_ids_and_crowds() -> None:
    path = FIXTURES / "coco/annotations/instances_val2017.json"
    samples = list(FORMATS.get("coco").read(path, FIXTURES / "coco/val2017"))
    document = json.loads(path.read_text())
    assert [sample.id for sample in samples] == [str(image["id"]) for image in document["images"]]
    things = sum(not a["iscrowd"] for a in document["annotations"])
    assert sum(bool((mask == 1).any()) for s in samples for query in s.queries for mask in query.masks) == things


def test_an_answer_becomes_an_annotation(folder: Path) -> None:
    other = np.roll(BOX, 8, 0)
    segments = tuple(
        Segment.from_mask(k, mask, (0, 1), 0.5, phrase) for k, (mask, phrase) in enumerate([(BOX, "the dog"), (other, ""), (other, "the dog")])
    )
    answer = Answer("t", "[SEG][SEG][SEG]", "masks", segments, (H, W), "What barks?", "m")
    question = answer_to_sample(answer, folder / "a.jpg", "x")
    assert [(q.text, len(q.masks), q.is_sentence, q.name) for q in question.queries] == [("What barks?", 3, True, "the dog")]
    objects = answer_to_sample(answer, folder / "a.jpg", "x", by_phrase=True)
    assert [(q.text, len(q.masks)) for q in objects.queries] == [("the dog", 2), ("What barks?", 1)]
    nothing = answer_to_sample(Answer("t", "", "no_target", (), (H, W), "the zebra"), folder / "a.jpg", "x", by_phrase=True)
    assert [(q.text, q.masks) for q in nothing.queries] == [("the zebra", ())]


def test_pictures_of_any_kind_become_jpeg_for_reasonseg(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("LA", (W, H)).save(buffer, "PNG")
    (folder / "b.png").write_bytes(buffer.getvalue())
    FORMATS.get("reasonseg").write([Sample("x", folder / "b.png", (Query("x"),))], folder / "o")
    assert Image.open(folder / "o/b.jpg").format == "JPEG"
