from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lisaseg.errors import DataError
from lisaseg.formats import rle
from lisaseg.formats.jsonl import read_jsonl, write_jsonl
from lisaseg.types import Query, Sample

H, W = 6, 9
BOX = np.zeros((H, W), bool)
BOX[1:4, 2:7] = True
CORNER = np.zeros((H, W), bool)
CORNER[:2, :3] = True
BOX_POLYGON = {"polygons": [[2, 1, 7, 1, 7, 4, 2, 4]]}
BOX_RUNS = {"size": [H, W], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 14]}

words = st.text(max_size=20)
full_words = words.filter(lambda text: bool(text.strip()))
label_masks = arrays(np.uint8, (H, W), elements=st.sampled_from([0, 1, 255]))
queries = st.builds(
    Query,
    text=full_words,
    masks=st.lists(label_masks, max_size=3).map(tuple),
    is_sentence=st.booleans(),
    name=words,
    explanation=words,
    rephrasings=st.lists(full_words, max_size=2).map(tuple),
    kind=full_words,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    Image.new("RGB", (W, H)).save(root / "images" / "a.png")
    Image.fromarray(BOX.astype(np.uint8) * 255).save(root / "box.png")
    Image.fromarray(BOX.astype(np.uint8)).save(root / "box01.png")
    Image.fromarray(BOX).save(root / "box1bit.png")
    turned = Image.new("RGB", (H, W))  # stored on its side
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    return root


def write(folder: Path, *records: Any, name: str = "d.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", "utf-8")
    return path


def record(**fields: Any) -> dict[str, Any]:
    base = {"id": "a1", "image": "images/a.png", "text": "the box", "is_sentence": False, "mask": None}
    return {key: value for key, value in {**base, **fields}.items() if value is not ...}


def only(folder: Path, **fields: Any) -> Query:
    (sample,) = read_jsonl(write(folder, record(**fields)))
    return sample.queries[0]


def assert_same(one: Query, two: Query) -> None:
    assert all((a == b).all() for a, b in zip(one.masks, two.masks, strict=True))
    for field in ("text", "is_sentence", "name", "explanation", "rephrasings", "kind"):
        assert getattr(one, field) == getattr(two, field), field


@settings(max_examples=60, deadline=None)
@given(st.lists(queries, max_size=4))
def test_what_is_written_is_read_back(folder: Path, asked: list[Query]) -> None:
    asked = [Query(**{**vars(query), "name": query.name if query.name.strip() else ""}) for query in asked]
    image = folder / "images" / "a.png"
    samples = [Sample(f"s{k}", image, (query,)) for k, query in enumerate(asked)]
    assert write_jsonl(samples, folder / "round.jsonl") == len(samples)
    again = list(read_jsonl(folder / "round.jsonl"))
    assert [sample.id for sample in again] == [sample.id for sample in samples]
    for one, two in zip(samples, again, strict=True):
        assert Path(two.image).resolve() == image.resolve() and two.source == "round"  # type: ignore[arg-type]
        assert_same(one.queries[0], two.queries[0])


def test_paths_are_relative_to_the_file(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True, exist_ok=True)
    path = folder / "deep" / "er" / "d.jsonl"
    write_jsonl([Sample("a", folder / "images" / "a.png", (Query("x"), Query("y")))], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["../../images/a.png"] * 2 and [line["id"] for line in lines] == ["a", "a_1"]
    assert len(list(read_jsonl(path))) == 2


@pytest.mark.parametrize("form", [rle.encode(BOX), BOX_RUNS, BOX_POLYGON, "box.png", "box01.png", "box1bit.png"], ids=str)
def test_every_mask_form_gives_the_same_mask(folder: Path, form: Any) -> None:
    assert (only(folder, mask=form).masks[0] == BOX).all()
    two = only(folder, mask=[form, rle.encode(CORNER)])
    assert len(two.masks) == 2 and (two.masks[0] == BOX).all() and (two.masks[1] == CORNER).all()
    ignored = only(folder, mask=rle.encode(CORNER), ignore=form).masks[0]
    assert (ignored == np.where(BOX, 255, CORNER)).all()


def test_null_means_nothing_fits(folder: Path) -> None:
    assert only(folder, mask=None).masks == ()


def test_ignore_for_each_mask(folder: Path) -> None:
    first, second = only(folder, mask=["box.png", "box.png"], ignore=[None, rle.encode(CORNER)]).masks
    assert set(np.unique(first)) == {0, 1} and (second == np.where(CORNER, 255, BOX)).all()


def test_masks_follow_the_upright_picture(folder: Path) -> None:
    assert only(folder, image="turned.jpg", mask=rle.encode(BOX)).masks[0].shape == (H, W)


def test_texts_and_defaults(folder: Path) -> None:
    query = only(folder, target=["wine glass", "bottle"], rephrasings=["r"], explanation="e", kind="plain", more=1)
    assert (query.name, query.rephrasings, query.explanation, query.kind) == ("wine glass, bottle", ("r",), "e", "plain")
    bare = only(folder, is_sentence=..., target="cup")
    assert (bare.name, bare.is_sentence, bare.kind, bare.explanation) == ("cup", False, "reasoning", "")


def test_lines_are_read_as_they_are_asked_for(folder: Path) -> None:
    lines = read_jsonl(write(folder, record(), "", "   ", record(id="a2"), "broken"))
    assert [next(lines).id, next(lines).id] == ["a1", "a2"]
    with pytest.raises(DataError, match=r"d\.jsonl:5"):
        next(lines)


def test_byte_order_mark_and_missing_id(folder: Path) -> None:
    path = folder / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record(id=...)).encode())
    (sample,) = read_jsonl(path)
    assert sample.id == f"{path}:1"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ("[" * 100_000, "JSON"),
        (record(image=...), "image"),
        (record(image=3), "image"),
        (record(image="images/none.png"), "image"),
        (record(image="d.jsonl"), "image"),
        (record(image="images"), "image"),
        (record(image="a\0.png"), "image"),
        (record(text=""), "text"),
        (record(text="  \n"), "text"),
        (record(text=["a"]), "text"),
        (record(is_sentence="false"), "is_sentence"),
        (record(is_sentance=True, is_sentence=...), "is_sentance"),
        (record(mask=...), "mask"),
        (record(mask=[]), "mask"),
        (record(mask=7), "mask"),
        (record(mask={}), "mask"),
        (record(mask=[None]), "mask"),
        (record(mask="images/a.png"), "mask"),
        (record(mask="none.png"), "mask"),
        (record(mask="d.jsonl"), "mask"),
        (record(mask={"size": [W, H], "counts": [W * H]}), "mask"),
        (record(mask={"size": 3, "counts": [W * H]}), "mask"),
        (record(mask={"size": [H, W], "counts": "0"}), "mask"),
        (record(mask=[BOX_RUNS, {"size": [H, W], "counts": [1]}]), "mask[1]"),
        (record(mask={"polygons": [[1, 2, 3, 4]]}), "mask"),
        (record(mask=BOX_RUNS, ignore=[BOX_RUNS, None]), "ignore"),
        (record(mask=None, ignore=BOX_RUNS), "ignore"),
        (record(rephrasings="one"), "rephrasings"),
        (record(rephrasings=[""]), "rephrasings"),
        (record(target=3), "target"),
        (record(explanation=1), "explanation"),
        (record(kind=1), "kind"),
        (record(id=1), "id"),
    ],
    ids=lambda value: str(value)[-60:] if not isinstance(value, str) else value[:20],
)
def test_errors_name_file_line_and_field(folder: Path, line: Any, field: str) -> None:
    path = write(folder, record(id="good"), line)
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert caught.value.message.startswith(f"{path}:2") and field in caught.value.message and caught.value.next_step


def test_grey_levels_are_no_mask(folder: Path) -> None:
    Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W)).save(folder / "grey.png")
    Image.fromarray(BOX[:-1].astype(np.uint8)).save(folder / "short.png")
    for name, problem in (("grey.png", "values"), ("short.png", "size")):
        with pytest.raises(DataError, match=problem):
            only(folder, mask=name)


def test_ids_are_unique_and_bytes_are_utf8(folder: Path) -> None:
    with pytest.raises(DataError, match=r":2, field 'id'.*line 1"):
        list(read_jsonl(write(folder, record(), record())))
    path = folder / "latin.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(DataError, match=r"latin\.jsonl:1.*UTF-8"):
        list(read_jsonl(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_jsonl(folder / "none.jsonl"))


def test_truncated_pictures_are_found_on_request(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((90, 60)).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
    path = write(folder, record(image="cut.jpg"))
    assert len(list(read_jsonl(path))) == 1
    with pytest.raises(DataError, match="field 'image'"):
        list(read_jsonl(path, decode_images=True))


def test_pictures_in_memory_cannot_be_written(folder: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        write_jsonl([Sample("a", np.zeros((H, W, 3), np.uint8), (Query("x"),))], folder / "memory.jsonl")
    assert not (folder / "memory.jsonl").exists()
