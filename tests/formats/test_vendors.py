"""What we write, the tools' own packages read, to the pixel; what they write, we read.

pycocotools and cvat-sdk are installed for development, supervision, labelme (Qt) and fiftyone (a database) by `make test-contracts`. Label Studio's
code is held by `brush.json`, which its own encoder wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lisaseg.errors import DataError
from lisaseg.formats import FORMATS, rle
from lisaseg.formats.labelstudio import decode_brush, encode_brush
from lisaseg.types import Query, Sample

H, W = 37, 53
HERE = Path(__file__).parent
BRUSH = json.loads((HERE / "brush.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Two pictures; objects with a hole, in parts, at the border, and overlapping ones of another class."""
    root = tmp_path_factory.mktemp("pictures")
    found = []
    for k in range(2):
        Image.new("RGB", (W, H), (90, 90, 90 * k)).save(root / f"p{k}.jpg")
        ring, parts, corner = (np.zeros((H, W), np.uint8) for _ in range(3))
        yy, xx = np.mgrid[:H, :W]
        ring[(yy - 18) ** 2 + (xx - 20) ** 2 < 200] = 1
        ring[(yy - 18) ** 2 + (xx - 20) ** 2 < 40 + k] = 0
        parts[3:9, 30:50], parts[20:35, 40:47] = 1, 1
        corner[:12, :30] = 1
        found.append(Sample(f"{k}", root / f"p{k}.jpg", (Query("dog", (ring, parts)), Query("cat", (corner,)))))
    return found


def written(samples: list[Sample], folder: Path, name: str) -> Path:
    form = FORMATS.get(name)
    form.write(samples, folder / f"data{form.suffix}")
    return folder / f"data{form.suffix}"


def true_masks(samples: list[Sample]) -> list[tuple[str, np.ndarray]]:
    return [(query.text, mask == 1) for sample in samples for query in sample.queries for mask in query.masks]


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_pycocotools(samples: list[Sample], tmp_path: Path, name: str) -> None:
    coco = COCO(written(samples, tmp_path, name))
    found = [(coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool)) for a in coco.dataset["annotations"]]
    for (label, mask), (text, true) in zip(found, true_masks(samples), strict=True):
        assert label == text and (mask == true).all()
    for a in coco.dataset["annotations"]:
        mask = coco.annToMask(a)
        ys, xs = np.nonzero(mask)
        assert a["area"] == mask.sum() and a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    results = [{**a, "score": 1.0, "segmentation": rle.encode(coco.annToMask(a))} for a in coco.dataset["annotations"]]
    judge = COCOeval(coco, coco.loadRes(results), "segm")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(1), "COCO's own evaluation finds every object"


@given(arrays(np.bool_, (7, 9)))
def test_cvat_sdk(mask: np.ndarray) -> None:
    from cvat_sdk.masks import decode_mask, encode_mask

    from lisaseg.formats.cvat import _encoded

    if not mask.any():
        return
    ours = _encoded(mask)
    box = [int(ours[key]) for key in ("left", "top", "width", "height")]
    corners = [box[0], box[1], box[0] + box[2] - 1, box[1] + box[3] - 1]
    points = [*(int(run) for run in ours["rle"].split(",")), *corners]
    assert points == encode_mask(mask)
    assert (decode_mask(points, image_width=9, image_height=7) == mask).all()


@pytest.mark.parametrize("case", BRUSH, ids=lambda case: str(case["size"]))
def test_label_studio_wrote_this(case: dict[str, Any]) -> None:
    height, width = case["size"]
    runs = np.array(case["runs"])
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    assert (decode_brush(case["rle"], height, width) == mask).all()
    if "soft" not in case:
        code = encode_brush(mask)
        assert code == case["rle"][: len(code)] and set(case["rle"][len(code) :]) <= {0}, "their encoder may end with one byte of zeros"


@given(arrays(np.bool_, (5, 11)))
def test_brush_round_trip(mask: np.ndarray) -> None:
    code = encode_brush(mask)
    assert (decode_brush(code, 5, 11) == mask).all()
    for cut in (0, 3, len(code) - 1):
        with pytest.raises(DataError):
            decode_brush(code[:cut], 5, 11)
    with pytest.raises(DataError, match="original_height"):
        decode_brush(code, 11, 6)


def iou(one: np.ndarray, two: np.ndarray) -> float:
    return float((one & two).sum() / (one | two).sum())


@pytest.mark.parametrize("name", ["yolo", "coco", "coco-polygons"])
def test_supervision(samples: list[Sample], tmp_path: Path, name: str) -> None:
    sv = pytest.importorskip("supervision")
    out = written(samples, tmp_path, name)
    if name == "yolo":
        places = {"images_directory_path": str(out / "images"), "annotations_directory_path": str(out / "labels")}
        data = sv.DetectionDataset.from_yolo(**places, data_yaml_path=str(out / "data.yaml"), force_masks=True)
    else:
        pictures = str(Path(str(samples[0].image)).parent)
        data = sv.DetectionDataset.from_coco(images_directory_path=pictures, annotations_path=str(out), force_masks=True)
    found = [(data.classes[c], m.astype(bool)) for _, _, seen in data for m, c in zip(seen.mask, seen.class_id, strict=True)]
    assert len(found) == len(true_masks(samples))
    for (label, mask), (text, true) in zip(found, true_masks(samples), strict=True):
        # coco-polygons run along the edges of pixels, as pycocotools fills them; supervision's OpenCV adds a pixel to the right and below
        assert label == text and iou(mask, true) >= {"coco": 1, "yolo": 0.95, "coco-polygons": 0.75}[name]


def test_labelme(samples: list[Sample], tmp_path: Path) -> None:
    label_file = pytest.importorskip("labelme._label_file")
    shape = pytest.importorskip("labelme.utils.shape")
    out = written(samples, tmp_path, "labelme")
    found = []
    for file in sorted(out.glob("*.json")):
        data = label_file.read_label_file(str(file))
        for one in data.shapes:
            classes, _ = shape.shapes_to_label((H, W), [one], {one["label"]: 1})
            found.append((one["label"], classes.astype(bool)))
    for (label, mask), (text, true) in zip(found, true_masks(samples), strict=True):
        assert label == text and (mask == true).all()


@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_fiftyone(samples: list[Sample], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of FiftyOne lives in a database server; what reads files needs none, so that is what is asked."""
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    pytest.importorskip("fiftyone")
    from fiftyone.utils.coco import load_coco_detection_annotations

    _, names, _, images, annotations = load_coco_detection_annotations(str(written(samples, tmp_path, name)))
    found = []
    for image in sorted(images):
        size = (images[image]["width"], images[image]["height"])
        for thing in annotations[image]:
            seen = thing.to_detection(size, classes_map=names, load_segmentation=True)
            x, y = round(seen.bounding_box[0] * W), round(seen.bounding_box[1] * H)
            mask = np.zeros((H, W), bool)
            mask[y : y + seen.mask.shape[0], x : x + seen.mask.shape[1]] = seen.mask
            found.append((seen.label, mask))
    for (label, mask), (text, true) in zip(found, true_masks(samples), strict=True):
        assert label == text and (mask == true).all()
