"""A data root laid out as for the reference implementation, with a few small pictures in every set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

H, W = 12, 16
SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]
CORNER = [[10, 0, 15, 0, 15, 6, 10, 6]]
CROWD = {"size": [H, W], "counts": [H * (W - 3), H * 3]}  # the three columns at the right


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H), (90, 120, 30)).save(path)


def label_png(path: Path, rows: list[tuple[int, int]], palette: bool = False) -> None:
    """A map of rows: (value, number of rows) from the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.concatenate([np.full((n, W), value, np.uint8) for value, n in rows])
    assert label.shape == (H, W)
    image = Image.fromarray(label)
    if palette:
        image = Image.frombytes("P", (W, H), label.tobytes())
        image.putpalette([k % 256 for k in range(768)])
    image.save(path)


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def coco(categories: dict[int, str], images: list[dict[str, Any]], annotations: list[tuple[int, int, Any, int]]) -> dict[str, Any]:
    """annotations: (image id, category id, segmentation, iscrowd)."""
    return {
        "categories": [{"id": k, "name": name} for k, name in categories.items()],
        "images": [{"height": H, "width": W, **image} for image in images],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "segmentation": s, "iscrowd": crowd} for k, (i, c, s, crowd) in enumerate(annotations, start=1)
        ],
    }


def old_pickle(data: Any) -> bytes:
    """Protocol 0 as Python 2 wrote it, in which the referring sets are published; written by hand: the package must not need to trust a pickler."""

    def code(value: Any) -> str:
        if isinstance(value, dict):
            return "(d" + "".join(f"{code(k)}{code(v)}s" for k, v in value.items())
        if isinstance(value, list):
            return "(l" + "".join(f"{code(v)}a" for v in value)
        return f"I{value}\n" if isinstance(value, int) else f"S{value!r}\n"

    return (code(data) + ".").encode()


def reference(ref_id: int, image_id: int, ann_id: Any, split: str, *sentences: str) -> dict[str, Any]:
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": ann_id,
        "category_id": 1,
        "split": split,
        "sentences": [{"sent_id": k, "sent": text, "raw": text, "tokens": text.split()} for k, text in enumerate(sentences)],
    }


def semantic_sets(root: Path) -> None:
    for k in (1, 2):
        picture(root / f"ade20k/images/training/ADE_train_{k:08}.jpg")
        label_png(root / f"ade20k/annotations/training/ADE_train_{k:08}.png", [(0, 2), (1, 4), (13, 6)])
        label_png(root / f"cocostuff/train2017/{k:012}.png", [(0, 3), (255, 3), (156, 3), (170, 3)])  # person, none, sky, wall-brick
        picture(root / f"mapillary/training/images/street{k}.jpg")
        label_png(root / f"mapillary/training/v2.0/labels/street{k}.png", [(0, 4), (1, 4), (2, 2), (3, 2)], palette=True)
    for k in range(1, 5):
        picture(root / f"coco/train2017/{k:012}.jpg")
    labels = [{"readable": "Bird", "evaluate": True}, {"readable": "Lane Marking - Crosswalk", "evaluate": True}]
    labels += [{"readable": "Static", "evaluate": False}, {"readable": "Unlabeled", "evaluate": True}]
    write_json(root / "mapillary/config_v2.0.json", {"labels": labels})


def part_sets(root: Path) -> None:
    images = [{"id": k, "file_name": f"train2017/{k:012}.jpg", "neg_category_ids": [3], "not_exhaustive_category_ids": []} for k in (1, 2, 3)]
    images[1]["not_exhaustive_category_ids"] = [1]
    names = {1: "mug", 2: "mug:handle", 3: "trash_can_(bin):lid_(top)"}
    found = [(1, 2, SQUARE, 0), (1, 2, CORNER, 0), (1, 1, SQUARE, 0), (2, 1, SQUARE, 0), (2, 2, CORNER, 0)]
    write_json(root / "vlpart/paco/annotations/paco_lvis_v1_train.json", coco(names, images, found))
    picture(root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg")
    pascal = coco({1: "dog:left_ear"}, [{"id": 7, "file_name": "2008_000002.jpg"}], [(7, 1, SQUARE, 0)])
    write_json(root / "vlpart/pascal_part/train.json", pascal)
    instances = coco({1: "person", 2: "cup"}, [{"id": 4, "file_name": f"{4:012}.jpg"}], [(4, 1, SQUARE, 0), (4, 1, CROWD, 1), (4, 2, CROWD, 1)])
    write_json(root / "coco/annotations/instances_train2017.json", instances)
    segments = [
        {"id": 5 + 256 * 2, "category_id": 1, "iscrowd": 0},
        {"id": 9, "category_id": 2, "iscrowd": 0},
        {"id": 11, "category_id": 3, "iscrowd": 0},
    ]
    panoptic = coco({1: "person", 2: "floor-other-merged", 3: "floor-wood"}, [{"id": 4, "file_name": f"{4:012}.jpg"}], [])
    panoptic["annotations"] = [{"image_id": 4, "file_name": "4.png", "segments_info": segments}]
    write_json(root / "coco/annotations/panoptic_train2017.json", panoptic)
    rgb = np.zeros((H, W, 3), np.uint8)
    rgb[0:3], rgb[3:6], rgb[6:9] = (5, 2, 0), (9, 0, 0), (11, 0, 0)
    (root / "coco/annotations/panoptic_train2017").mkdir()
    Image.fromarray(rgb).save(root / "coco/annotations/panoptic_train2017/4.png")


def refer_sets(root: Path) -> None:
    refer = root / "refer_seg"
    names = [f"COCO_train2014_{k:012}.jpg" for k in (1, 2, 3)]
    for name in names:
        picture(refer / "images/mscoco/images/train2014" / name)
    images = [{"id": k, "file_name": name} for k, name in enumerate(names, start=1)]
    document = coco({1: "cup"}, images, [(1, 1, SQUARE, 0), (1, 1, CORNER, 0), (2, 1, SQUARE, 0), (3, 1, [], 0)])
    refs = [
        reference(0, 1, 1, "train", "the left cup", "big cup"),
        reference(1, 2, 3, "val", "cup"),
        reference(2, 1, 2, "train", "small cup", " "),
        reference(3, 3, 4, "testA", "a cup without an outline"),
    ]
    for folder, files in {"refcoco": ["refs(unc).p"], "refcoco+": ["refs(unc).p"], "refcocog": ["refs(umd).p", "refs(google).p"]}.items():
        write_json(refer / folder / "instances.json", document)
        for file in files:
            (refer / folder / file).write_bytes(old_pickle(refs))
    picture(refer / "images/saiapr_tc-12/00/25.jpg")
    clef = coco({1: "cup"}, [{"id": 25, "file_name": "00/25.jpg"}], [(25, 1, [CROWD], 0)])
    write_json(refer / "refclef/instances.json", clef)
    (refer / "refclef/refs(unc).p").write_bytes(old_pickle([reference(0, 25, 1, "train", "right side"), reference(1, 25, 1, "testAB", "edge")]))
    write_json(refer / "grefcoco/instances.json", document)
    both = [reference(0, 1, [1, 2], "train", "both cups"), reference(1, 1, [-1], "train", "the dog"), reference(2, 2, [3], "val", "cup")]
    write_json(refer / "grefcoco/grefs(unc).json", both)


def text_sets(root: Path) -> None:
    said = [("human", "What is this?\n<image>"), ("gpt", "A cup."), ("human", "Why?"), ("gpt", "It holds tea.")]
    entry = {"id": "x", "image": f"{1:012}.jpg", "conversations": [{"from": who, "value": text} for who, text in said]}
    write_json(root / "llava_dataset/llava_instruct_150k.json", [entry, {**entry, "image": f"{2:012}.jpg"}])
    shape = {"label": "target", "points": [[2, 2], [9, 2], [9, 9], [2, 9]]}
    for split, stems in {"train": ("a_0", "b_0"), "val": ("c_0",), "test": ("d_0",)}.items():
        for stem in stems:
            picture(root / f"reason_seg/ReasonSeg/{split}/{stem}.jpg")
            texts = ["What holds tea?", "Which thing can I drink from?", "What is for tea?", "Where is the tea?"] if stem == "a_0" else ["the vessel"]
            data = {"text": texts, "is_sentence": stem == "a_0", "shapes": [shape, {"label": "ignore", "points": [[12, 2], [14, 2], [14, 5]]}]}
            write_json(root / f"reason_seg/ReasonSeg/{split}/{stem}.json", data)
    explained = [{"image": "a_0.jpg", "query": "What holds tea?", "outputs": "The cup holds tea."}]
    write_json(root / "reason_seg/ReasonSeg/explanatory/train.json", explained)
    lines = [{"id": k, "image": f"coco/train2017/{n:012}.jpg", "text": "a cup", "mask": {"polygons": SQUARE}} for k, n in (("one", 1), ("two", 2))]
    (root / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")


def make_root(root: Path) -> Path:
    semantic_sets(root)
    part_sets(root)
    refer_sets(root)
    text_sets(root)
    return root
