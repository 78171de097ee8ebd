"""Contract of every registered set on look-alikes, what each format means, and real files of COCO, LVIS and pets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.datasets.recipe_root import H, W, label_png, make_root, picture, write_json

from lisaseg.datasets import DATASETS, SegmentationDataset
from lisaseg.datasets.base import Indexed
from lisaseg.datasets.coco import CocoInstances, CocoPanoptic
from lisaseg.datasets.llava_instruct import LlavaInstruct
from lisaseg.datasets.semantic import LabelMaps
from lisaseg.errors import DataError
from lisaseg.types import SEG_TEXT, Sample

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = [name for name in DATASETS.names() if name != "pool"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("coco_images_annotations"))  # words of the layout in a parent's name must not matter


def content(sample: Sample) -> tuple[object, ...]:
    queries = [(q.text, q.name, q.kind, q.is_sentence, q.explanation, q.rephrasings, [m.tobytes() for m in q.masks]) for q in sample.queries]
    return (sample.id, sample.image, queries, [(t.instruction, t.answer) for t in sample.conversation], sample.absent, sample.source)


def check_contract(data: SegmentationDataset) -> None:
    assert isinstance(data, SegmentationDataset) and isinstance(data, Indexed) and len(data)
    ids = set()
    for index in range(len(data)):
        sample = data[index]
        assert content(sample) == content(data[index]) == content(data[index - len(data)]) == content(data[np.int64(index)])
        assert isinstance(sample.image, Path) and sample.id not in ids and sample.source
        ids.add(sample.id)
        size = Image.open(sample.image).size[::-1]
        assert len(sample.queries) == data.query_count(index) and (sample.queries or sample.conversation)
        for pick, query in enumerate(sample.queries):
            for mask in query.masks:
                assert mask.dtype == np.uint8 and mask.shape == size and set(np.unique(mask).tolist()) <= {0, 1, 255}
            (alone,) = data.partial(index, [pick]).queries
            assert (alone.text, [m.tobytes() for m in alone.masks]) == (query.text, [m.tobytes() for m in query.masks])
        assert all(SEG_TEXT not in turn.instruction + str(turn.answer) for turn in sample.conversation)
    for outside in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[outside]
    with pytest.raises(IndexError):
        data.partial(0, [data.query_count(0)])


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_set_keeps_the_contract(name: str, root: Path) -> None:
    data = DATASETS.get(name)(root)
    check_contract(data)
    assert DATASETS.get(name).name == name
    assert content(DATASETS.get(name)(root)[0]) == content(data[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_root_without_the_set_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        DATASETS.get(name)(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_excluded_by_id(name: str, root: Path) -> None:
    data = DATASETS.get(name)(root)
    gone = data[0].image
    assert isinstance(gone, Path)
    rest = DATASETS.get(name)(root, exclude=[gone])
    assert len(rest) < len(data) and all(rest[k].image != gone for k in range(len(rest)))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_picture_is_named(name: str, tmp_path: Path) -> None:
    data = DATASETS.get(name)(make_root(tmp_path))
    gone = data[0].image
    assert isinstance(gone, Path)
    gone.unlink()
    with pytest.raises(DataError, match=gone.name):
        data[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("llava_instruct", "jsonl", "reasonseg")])
def test_a_picture_of_another_size_is_refused(name: str, tmp_path: Path) -> None:
    data = DATASETS.get(name)(make_root(tmp_path))
    path = data[0].image
    Image.new("RGB", (H, W)).save(path)  # turned by a quarter
    with pytest.raises(DataError, match="height"):
        data[0]


def test_unlabelled_pixels_are_never_background(root: Path) -> None:
    for name, first, hidden in (("ade20k", "wall", slice(0, 2)), ("cocostuff", "person", slice(3, 6)), ("mapillary", "bird", slice(8, 12))):
        queries = DATASETS.get(name)(root)[0].queries
        assert queries[0].text == first and all((q.masks[0][hidden] == 255).all() for q in queries)
        assert "wall-brick" not in {q.text for q in queries} and "unlabeled" not in {q.text for q in queries} and len(queries) == 2
        assert (sum((q.masks[0] == 1).astype(int) for q in queries) <= 1).all()


def test_instances_of_a_category_are_one_target(root: Path) -> None:
    handle, mug = DATASETS.get("paco_lvis")(root)[0].queries
    assert (handle.text, handle.rephrasings, handle.kind) == ("mug handle", ("handle of the mug",), "part")
    assert (mug.text, mug.kind) == ("mug", "category")
    assert (handle.masks[0] == 1).sum() > (mug.masks[0] == 1).sum() and (handle.masks[0][mug.masks[0] == 1] == 1).all()
    second = DATASETS.get("paco_lvis")(root)[1]
    assert [q.text for q in second.queries] == ["mug handle"]  # mugs are not exhaustively labelled there
    assert second.absent == ("trash can lid",)
    assert DATASETS.get("pascal_part")(root)[0].queries[0].text == "dog left ear"


def test_crowds_and_unlabelled_pixels_of_coco_are_ignored(root: Path) -> None:
    (person,) = DATASETS.get("coco_instances")(root)[0].queries  # cups are there only as a crowd
    assert (person.masks[0][:, W - 3 :] == 255).all() and (person.masks[0] == 1).any()
    masks = {q.text: q.masks[0] for q in DATASETS.get("coco_panoptic")(root)[0].queries}
    assert set(masks) == {"person", "floor", "wooden floor"}
    assert (masks["floor"][6:9] == 255).all() and (masks["floor"][0:3] == 0).all() and all((m[9:] == 255).all() for m in masks.values())


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco(split: str) -> None:
    data = CocoInstances(FIXTURES, split)
    check_contract(data)
    document = json.loads((FIXTURES / f"coco/annotations/instances_{split}.json").read_text(encoding="utf-8"))
    held = {(a["image_id"], a["category_id"]) for a in document["annotations"] if not a["iscrowd"]}
    assert sum(data.query_count(k) for k in range(len(data))) == len(held)
    panoptic = CocoPanoptic(FIXTURES, split, folder="coco_panoptic")
    check_contract(panoptic)
    for sample in panoptic:
        covered = sum((q.masks[0] == 1).astype(int) for q in sample.queries)
        assert covered.max() == 1  # panoptic segments do not overlap
        assert not ((covered == 0) & (sample.queries[0].masks[0] == 0)).any()  # what is in no segment has no verdict


def test_real_lvis() -> None:
    data = CocoInstances(FIXTURES, annotations=FIXTURES / "lvis/lvis_val.json", pictures=FIXTURES / "lvis/val2017")
    for image in data.file.images:
        image["file_name"] = image["file_name"].removeprefix("COCO_val2014_")
    check_contract(data)
    assert all(sample.absent and not {q.text for q in sample.queries} & set(sample.absent) for sample in data)


def test_real_trimaps() -> None:
    folder = FIXTURES / "pets"
    pets = LabelMaps(folder / "images", folder / "annotations/trimaps", {1: "pet", 2: "background"}, ignore=[3])
    pets.name = "pets"
    check_contract(pets)
    assert all((q.masks[0][pets.label_map(k) == 3] == 255).all() for k in range(2) for q in pets[k].queries)


@pytest.mark.parametrize("bad", ["value", "colour", "cut", "text"])
def test_a_wrong_label_map_is_named(bad: str, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    path = tmp_path / "labels/a.png"
    label_png(path, [(9 if bad == "value" else 1, H)])
    if bad == "colour":
        picture(path)
    elif bad != "value":
        path.write_bytes(path.read_bytes()[:45] if bad == "cut" else b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        LabelMaps(tmp_path / "images", tmp_path / "labels", {1: "x"})[0]


@pytest.mark.parametrize(
    ("key", "entry", "named"),
    [("images", {"id": 4, "file_name": "x.jpg", "height": 3, "width": 3}, r"images\[1\]"), ("images", {"id": 5}, r"images\[1\]"),
     ("annotations", {"image_id": 77}, r"annotations\[3\]"), ("annotations", {"image_id": 4, "category_id": 77}, r"annotations\[3\]"),
     ("annotations", {"image_id": 4, "category_id": 1, "segmentation": "x"}, r"annotations\[3\]"),
     ("annotations", {"image_id": 4, "category_id": 1}, r"annotations\[3\]"), ("categories", {"id": 3, "name": ""}, r"categories\[2\]")],
)  # fmt: skip
def test_a_wrong_coco_entry_is_named(key: str, entry: dict[str, object], named: str, tmp_path: Path) -> None:
    path = make_root(tmp_path) / "coco/annotations/instances_train2017.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data[key].append(entry)
    write_json(path, data)
    with pytest.raises(DataError, match=rf"instances_train2017\.json.*{named}"):
        CocoInstances(tmp_path)[0]


WRONG_TALKS = [
    [],
    [("human", "a")],
    [("gpt", "a"), ("human", "b")],
    [("human", "a"), ("gpt", "[SEG]")],
    [("human", "<image>"), ("gpt", "b")],
]


@pytest.mark.parametrize("said", WRONG_TALKS)
def test_a_wrong_conversation_is_named(said: list[tuple[str, str]], tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    write_json(tmp_path / "x.json", [{"id": "q7", "image": "a.jpg", "conversations": [{"from": who, "value": text} for who, text in said]}])
    with pytest.raises(DataError, match=r"x\.json, entry 0 \(id q7\)"):
        LlavaInstruct(tmp_path, annotations=tmp_path / "x.json", pictures=tmp_path)[0]
