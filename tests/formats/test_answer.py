from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from lisaseg.errors import DataError, UsageError
from lisaseg.formats.answer import answer_from_dict, answer_to_dict
from lisaseg.types import Answer, Segment

names = st.text(max_size=20)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = draw(st.lists(arrays(np.bool_, size), max_size=3))
    segments = []
    for k, mask in enumerate(masks):
        span = (k, k + draw(st.integers(0, 9)))
        segments.append(Segment.from_mask(k, mask, span, draw(st.none() | st.floats(0, 1)), draw(names)))
    return Answer(
        text=draw(st.text(st.characters(), max_size=20)),
        raw_text="[SEG]" * len(masks),
        status="masks" if masks else draw(st.sampled_from(["no_target", "no_mask_requested", "truncated"])),
        segments=tuple(segments),
        image_size=size,
        instruction=draw(names),
        model=draw(names),
        image=np.zeros((*size, 3), np.uint8),
        timings_ms=draw(st.dictionaries(names, st.floats(0, 1e6), max_size=2)),
        usage=draw(st.dictionaries(names, st.integers(0, 10**6), max_size=2)),
        warnings=tuple(draw(st.lists(st.tuples(names, names), max_size=2))),
    )


def example(n: int = 2, *, picture: bool = True) -> Answer:
    masks = np.zeros((n, 6, 8), bool)
    for k in range(n):
        masks[k, k : k + 3, 1:5] = True
    segments = tuple(Segment.from_mask(k, mask, (6 + k, 14 + k), 0.5, "the dog" if k == 0 else "") for k, mask in enumerate(masks))
    image = np.zeros((6, 8, 3), np.uint8) if picture else None
    return Answer("It is [mask 1].", "[SEG]" * n, "masks" if n else "no_target", segments, (6, 8), "What barks?", "m", image, {"mask": 1.5}, {"n": 3})


@given(answers())
def test_json_round_trip(answer: Answer) -> None:
    data = json.loads(json.dumps(answer.to_dict()))
    again = answer_from_dict(data)
    assert answer_to_dict(again) == data
    assert (again.masks == answer.masks).all() and [s.box for s in again.segments] == [s.box for s in answer.segments]
    assert again.warnings == answer.warnings and again.image is None


def test_the_keys_are_stable() -> None:
    data = example(1).to_dict()
    assert list(data) == ["text", "raw_text", "status", "instruction", "model", "image", "segments", "usage", "timings_ms", "warnings"]
    assert list(data["segments"][0]) == ["index", "phrase", "span", "box_xyxy", "area", "score", "mask"]
    assert data["image"] == {"width": 8, "height": 6} and data["segments"][0]["box_xyxy"] == [1, 0, 5, 3] and data["segments"][0]["area"] == 12


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text": None}, "text"),
        ({"status": "perhaps"}, "status"),
        ({"image": {"width": 8}}, "height"),
        ({"image": {"width": 8, "height": True}}, "height"),
        ({"segments": [3]}, "segment 0"),
        ({"segments": None}, "segments"),
        ({"usage": {"a": "many"}}, "usage"),
        ({"warnings": ["w"]}, "warnings"),
        ({"raw_text": ""}, "SEG"),
        ({"image": {"width": 9, "height": 6}}, "shape"),
    ],
)
def test_malformed_json_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        answer_from_dict({**example().to_dict(), **change})


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan"), 10**400], ids=["inf", "-inf", "nan", "10**400"])
def test_numbers_that_json_cannot_say_are_refused(number: float) -> None:
    """`1e999` is JSON and infinite; what was read must be JSON again when it is written."""
    good = example().to_dict()
    for change in ({"timings_ms": {"encode": number}}, {"segments": [{**good["segments"][0], "score": number}, *good["segments"][1:]]}):
        with pytest.raises(DataError):
            answer_from_dict({**good, **change})
    if isinstance(number, float):
        with pytest.raises(DataError, match="usage"):
            answer_from_dict({**good, "usage": {"a": number}})


@pytest.mark.parametrize("change", [{"mask": {"size": [6, 8], "counts": "0"}}, {"mask": None}, {"span": [1]}, {"score": "high"}, {"index": "0"}])
def test_malformed_segments_are_refused(change: dict[str, Any]) -> None:
    data = example(1).to_dict()
    data["segments"][0] |= change
    with pytest.raises(DataError, match="segment 0"):
        answer_from_dict(data)


@given(answers())
def test_coco_annotations_fit_the_masks(answer: Answer) -> None:
    document = json.loads(json.dumps(answer.to_coco()))
    ids = {category["id"]: category["name"] for category in document["categories"]}
    assert len(document["annotations"]) == len(answer.segments)
    for note, segment in zip(document["annotations"], answer.segments, strict=True):
        assert (coco.decode(note["segmentation"]) == segment.mask).all() and note["area"] == segment.area
        assert note["bbox"] == coco.toBbox(note["segmentation"]).tolist() or not segment.area
        assert ids[note["category_id"]] == (segment.phrase or answer.instruction or "object")


@settings(max_examples=10, deadline=None)
@given(answers())
def test_saved_files_hold_the_answer(tmp_path_factory: pytest.TempPathFactory, answer: Answer) -> None:
    folder = tmp_path_factory.mktemp("out")
    paths = answer.save(folder, "a")
    assert paths == [folder / "a.overlay.png", *(folder / f"a.mask{k + 1}.png" for k in range(len(answer.segments))), folder / "a.json"]
    assert sorted(folder.iterdir()) == sorted(paths), "nothing else is left behind"
    for path, mask in zip(paths[1:-1], answer.masks, strict=True):
        with Image.open(path) as image:
            assert image.mode == "L" and (np.asarray(image) == mask * np.uint8(255)).all()
    assert json.loads(paths[-1].read_text("utf-8")) == answer.to_dict()


def test_a_second_save_leaves_no_mask_of_the_first(tmp_path: Path) -> None:
    example(3).save(tmp_path, "a")
    others = [*example(2).save(tmp_path, "a.mask"), *example(2).save(tmp_path, "ab")]
    (tmp_path / "a.mask1.jpg").touch()
    kept = example(1, picture=False).save(tmp_path, "a")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, *others, tmp_path / "a.mask1.jpg"])


@pytest.mark.parametrize("stem", ["", "../a", "a/b", "..", "a\\b", "a\0b"])
def test_a_stem_cannot_leave_the_folder(tmp_path: Path, stem: str) -> None:
    with pytest.raises(UsageError):
        example().save(tmp_path / "out", stem)
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file") as caught:
        example().save(tmp_path / "file")
    assert caught.value.code == "cannot_write" and caught.value.next_step


def test_lone_surrogates_survive_in_the_file(tmp_path: Path) -> None:
    answer = Answer("\ud800é", "", "no_target", (), (1, 1))
    path = answer.save(tmp_path)[-1]
    assert "é" in path.read_text("utf-8") and json.loads(path.read_text("utf-8"))["text"] == "\ud800é"


@given(answers())
def test_answers_travel_between_processes_and_print_in_a_few_lines(answer: Answer) -> None:
    again = pickle.loads(pickle.dumps(answer))
    assert answer_to_dict(again) == answer_to_dict(answer) and np.array_equal(again.image, answer.image)
    assert "array(" not in repr(answer), "masks and picture are not spelled out"


def test_an_answer_has_its_way_back_and_a_face_in_notebooks() -> None:
    answer = example()
    again = Answer.from_dict(json.loads(json.dumps(answer.to_dict())))
    assert again.to_dict() == answer.to_dict() and again.image is None and again._repr_png_() is None
    shown = np.asarray(Image.open(io.BytesIO(answer._repr_png_() or b"")))
    assert np.array_equal(shown, np.asarray(answer.plot()))


def test_annotations_beside_a_picture_are_not_overwritten(tmp_path: Path) -> None:
    """labelme and ReasonSeg call them `<stem>.json`, as we call answers."""
    note = tmp_path / "street.json"
    note.write_text('{"shapes": []}')
    with pytest.raises(UsageError, match=r"street\.json"):
        example().save(tmp_path, "street")
    assert [path.name for path in tmp_path.iterdir()] == ["street.json"] and note.read_text() == '{"shapes": []}'
    note.unlink()
    assert example(2).save(tmp_path, "street") and example(1).save(tmp_path, "street"), "an answer makes room for the next"
