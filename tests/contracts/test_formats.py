"""What every format must do: reading what was written gives the same in all that it says it keeps; faults name the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lisaseg.errors import DataError, LisaSegError, UsageError
from lisaseg.formats import FEATURES, FORMATS, Format
from lisaseg.formats.convert import convert
from lisaseg.formats.jsonl import write_jsonl
from lisaseg.types import IGNORE, TARGET, Query, Sample

H, W = 30, 44
NAMES = ["jsonl", "coco", "coco-polygons", "labelme", "yolo", "png", "png-index", "reasonseg", "labelstudio", "cvat"]
TEXTS = ["dog", "the thing that keeps the milk cold", 'a "quoted", one', "größe: 5 < 6 & 7", "猫", "it's: {a}", "x" * 200]
MOST_EXTRA = 2 * W  # pixels of a mask that went through an outline: the lines that join its parts and holes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pictures")
    (root / "b").mkdir()
    paths = [root / "a.jpg", root / "two words é.png", root / "b" / "a.jpg"]  # two of one name
    for k, path in enumerate(paths):
        Image.new("RGB", (W, H), (40 * k, 90, 200)).save(path)
    turned = Image.new("RGB", (H, W))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    return [*paths, root / "turned.jpg"]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Bool `(H, W)`: a few boxes, perhaps with a hole, perhaps in parts."""
    mask = np.zeros((H, W), bool)
    for _ in range(draw(st.integers(1, 2))):
        y, x = draw(st.integers(0, H - 8)), draw(st.integers(0, W - 8))
        h, w = draw(st.integers(5, H - y)), draw(st.integers(5, W - x))
        mask[y : y + h, x : x + w] = True
        if draw(st.booleans()):
            mask[y + 2 : y + h - 2, x + 2 : x + w - 2] = False
    return mask


@st.composite
def sample_lists(draw: st.DrawFn, overlaps: bool) -> list[list[Query]]:
    """Queries for up to three pictures. One ignored region a picture, outside of every target: all formats that keep one can keep it."""
    result = []
    for _ in range(draw(st.integers(1, 3))):
        covered, queries = np.zeros((H, W), bool), []
        texts = draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True))
        found = [[draw(masks()) for _ in range(draw(st.integers(0, 2)))] for _ in texts]
        for group in found:
            for k, mask in enumerate(group):
                group[k] = mask if overlaps else mask & ~covered
                covered |= mask
            group[:] = [mask for mask in group if mask.any()]
        hidden = draw(masks()) & ~covered if draw(st.booleans()) else np.zeros((H, W), bool)
        for text, group in zip(texts, found, strict=True):
            labelled = tuple(np.where(hidden, np.uint8(IGNORE), mask.astype(np.uint8)) for mask in group)
            reason, others = draw(st.sampled_from(["", "Because."])), draw(st.sampled_from([(), ("r1", "r2")]))
            queries.append(Query(text, labelled, draw(st.booleans()), draw(st.sampled_from(["", "n"])), reason, others, "reasoning"))
        result.append(queries)
    return result


def kept(query: Query, form: Format) -> Query | None:
    """What of a query a format promises to give back."""
    if not query.masks and "absent" not in form.keeps:
        return None
    group = query.masks
    if "ignore" not in form.keeps:
        group = tuple(np.where(mask == IGNORE, np.uint8(0), mask) for mask in group)
    if group and "instances" not in form.keeps:
        target = np.logical_or.reduce([mask == TARGET for mask in group])
        group = (np.where(target, np.uint8(TARGET), group[0]),)
    query = replace(query, masks=group)
    if "question" not in form.keeps:
        query = replace(query, is_sentence=False, explanation="", rephrasings=())
    return query if "kind" in form.keeps else replace(query, name="", kind="")


def expected(queries: list[Query], form: Format) -> list[Query]:
    return [one for query in queries if (one := kept(query, form)) is not None]


def same_mask(one: np.ndarray, two: np.ndarray, form: Format) -> bool:
    """Whether `two`, which was read, is `one` as far as the format promises."""
    if "exact" in form.keeps:
        return bool((one == two).all())
    missing, extra = ((a == TARGET) & (b != TARGET) for a, b in ((one, two), (two, one)))
    return not missing.any() and bool(extra.sum() <= MOST_EXTRA)


def assert_same(got: list[Query], wanted: list[Query], form: Format) -> None:
    assert sorted(query.text for query in got) == sorted(query.text for query in wanted)
    by_text = {query.text: query for query in got}
    for query in wanted:
        other = by_text[query.text]
        assert len(other.masks) == len(query.masks), query.text
        assert all(same_mask(a, b, form) for a, b in zip(query.masks, other.masks, strict=True)), query.text
        if "question" in form.keeps:
            for name in ("is_sentence", "explanation", "rephrasings"):
                assert getattr(query, name) == getattr(other, name)
        if "kind" in form.keeps:
            assert (query.name, query.kind) == (other.name, other.kind)


def gathered(samples: list[Sample]) -> list[list[Query]]:
    """Queries by picture, in order of first appearance; copies of a picture are told apart by their place."""
    found: dict[str, list[Query]] = {}
    for sample in samples:
        found.setdefault(str(Path(str(sample.image)).resolve()), []).extend(sample.queries)
    return list(found.values())


def test_every_registered_format_is_listed_here() -> None:
    assert set(NAMES) <= set(FORMATS.names()) and all(isinstance(FORMATS.get(name), Format) for name in NAMES)
    for name in FORMATS.names():
        form = FORMATS.get(name)
        assert form.name == name and form.keeps <= set(FEATURES) and form.about


def test_the_table_of_the_docs_is_what_the_formats_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): row[2:] for row in rows if len(row) == 8}
    assert sorted(table) == sorted(NAMES)
    for name, cells in table.items():
        kept_features = {feature for feature, cell in zip(FEATURES, cells, strict=False) if cell.startswith("yes")}
        assert kept_features == FORMATS.get(name).keeps - {"kind"}, name


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_reading_what_was_written_gives_the_same(
    name: str, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    form = FORMATS.get(name)
    asked = data.draw(sample_lists(overlaps="overlaps" in form.keeps))
    out = tmp_path_factory.mktemp("out") / f"data{form.suffix}"
    samples = [Sample(f"s{k}", pictures[k], tuple(queries)) for k, queries in enumerate(asked)]
    written = form.write(samples, out)
    again = list(form.read(out, None))
    wanted = [expected(queries, form) for queries in asked]
    assert written == sum(map(len, wanted))
    if form.asks and name == "reasonseg":  # a pair a query
        got = [[query] for sample in again for query in sample.queries]
        assert len(got) == sum(map(len, wanted))
        left = [query for queries in wanted for query in queries]
        for (query,) in got:
            match = next(one for one in left if _is_same(query, one, form))
            left = [one for one in left if one is not match]
        return
    if name in ("labelme", "yolo", "png-index"):  # in order of file names: a, b_a, two words
        wanted = [wanted[k] for k in (0, 2, 1) if k < len(wanted)]
    got, wanted = [queries for queries in gathered(again) if queries], [queries for queries in wanted if queries]
    for one, two in zip(got, wanted, strict=True):
        assert_same(one, two, form)


def _is_same(one: Query, two: Query, form: Format) -> bool:
    try:
        assert_same([one], [two], form)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_masks_follow_the_upright_picture(name: str, pictures: list[Path], tmp_path: Path) -> None:
    form = FORMATS.get(name)
    mask = np.zeros((H, W), np.uint8)
    mask[3:20, 5:9] = 1
    form.write([Sample("t", pictures[3], (Query("dog", (mask,)),))], tmp_path / f"out{form.suffix}")
    (sample,) = form.read(tmp_path / f"out{form.suffix}", None)
    assert same_mask(mask, sample.queries[0].masks[0], form) and sample.queries[0].masks[0].shape == (H, W)


@pytest.mark.parametrize("name", NAMES)
def test_reading_is_repeatable_and_pictures_may_lie_elsewhere(name: str, pictures: list[Path], tmp_path: Path) -> None:
    form = FORMATS.get(name)
    mask = np.zeros((H, W), np.uint8)
    mask[3:20, 5:9] = 1
    form.write([Sample("t", pictures[0], (Query("dog", (mask,)),))], tmp_path / f"out{form.suffix}")
    one, two = (next(iter(form.read(tmp_path / f"out{form.suffix}", None))) for _ in range(2))
    assert one.id == two.id and one.image == two.image and (one.queries[0].masks[0] == two.queries[0].masks[0]).all()
    if name == "jsonl":
        return  # its paths are taken as they are
    (sample,) = form.read(tmp_path / f"out{form.suffix}", pictures[0].parent) if name != "yolo" else [one]
    assert Path(str(sample.image)).name == "a.jpg"


@pytest.mark.parametrize("name", NAMES)
def test_rubbish_is_refused_by_name(name: str, tmp_path: Path) -> None:
    form = FORMATS.get(name)
    for k, rubbish in enumerate([b"", b"\xff\xfe\0", b"{", b"[[]]", b"<annotations/", b"null", b"[1, 2]", b'{"images": 3}', b"[" * 5000]):
        path = tmp_path / f"bad{k}{form.suffix}"
        if form.suffix:
            path.write_bytes(rubbish)
        else:
            (path / "SegmentationClass").mkdir(parents=True)
            (path / "masks").mkdir()
            for file in ("a.json", "masks.csv", "data.yaml", "class_names.txt", "SegmentationClass/a.png", "masks/a.png"):
                (path / file).write_bytes(rubbish)
        if name == "jsonl" and not rubbish:
            continue  # no lines is a legal file
        with pytest.raises(LisaSegError) as caught:
            list(form.read(path, None))
        assert path.name in caught.value.message and caught.value.next_step
    with pytest.raises(LisaSegError, match="nowhere"):
        list(form.read(tmp_path / f"nowhere{form.suffix}", None))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_gone_or_of_another_size_is_named(name: str, tmp_path: Path) -> None:
    form = FORMATS.get(name)
    picture, out = tmp_path / "p.jpg", tmp_path / f"out{form.suffix}"
    Image.new("RGB", (W, H)).save(picture)
    mask = np.zeros((H, W), np.uint8)
    mask[3:20, 5:9] = 1
    form.write([Sample("t", picture, (Query("dog", (mask,)),))], out)
    copies = [path for path in tmp_path.rglob("*") if path.suffix == ".jpg"]
    for path in copies:
        path.unlink()
    if name != "yolo":  # it lists pictures, so one that is gone is no fault
        with pytest.raises(DataError, match=r"p\b"):
            list(form.read(out, None))
    if name not in ("yolo", "reasonseg"):  # these write fractions and no size
        for path in copies:
            Image.new("RGB", (W + 1, H)).save(path)
        with pytest.raises(DataError, match=r"(?s)p\.(jpg|png|json)|:1"):
            list(form.read(out, None))


def test_where_numbers_collide_the_later_text_wins(pictures: list[Path], tmp_path: Path) -> None:
    one, two = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
    one[2:10, 2:10], two[6:20, 6:20] = 1, 1
    form = FORMATS.get("png-index")
    form.write([Sample("t", pictures[0], (Query("dog", (one,)), Query("cat", (two,))))], tmp_path / "out")
    (sample,) = form.read(tmp_path / "out", None)
    found = {query.text: query.masks[0] for query in sample.queries}
    assert (found["cat"] == two).all() and (found["dog"] == (one & ~two & 1)).all()


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_another_size_and_pictures_in_memory_are_not_written(name: str, pictures: list[Path], tmp_path: Path) -> None:
    form = FORMATS.get(name)
    with pytest.raises(DataError, match="not a file"):
        form.write([Sample("m", np.zeros((H, W, 3), np.uint8), (Query("dog"),))], tmp_path / f"m{form.suffix}")


# --- conversion -----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def native(pictures: list[Path], tmp_path: Path) -> Path:
    mask = np.zeros((H, W), np.uint8)
    mask[3:20, 5:9] = 1
    other = np.roll(mask, 20, 1)
    queries = (Query("dog", (mask, other), explanation="Fur."), Query("zebra"))
    write_jsonl([Sample("a", pictures[0], queries), Sample("b", pictures[1], (Query("猫", (other,)),))], tmp_path / "native.jsonl")
    return tmp_path / "native.jsonl"


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name: str, native: Path, tmp_path: Path) -> None:
    form = FORMATS.get(name)
    done = convert(native, tmp_path / f"there{form.suffix}", "jsonl", name)
    assert (done.samples, done.queries) == (3, 3) and set(done.losses) <= {FEATURES[lost] for lost in set(FEATURES) - form.keeps}
    if "absent" not in form.keeps:
        assert done.losses[FEATURES["absent"]] == 1 and done.written == 2
    convert(tmp_path / f"there{form.suffix}", tmp_path / "back.jsonl", name, "jsonl")
    back = {query.text: query for sample in FORMATS.get("jsonl").read(tmp_path / "back.jsonl", None) for query in sample.queries}
    assert set(back) == {"dog", "猫"} | ({"zebra"} if "absent" in form.keeps else set())
    assert not list(tmp_path.glob(".aside-*"))


def test_conversion_never_overwrites_and_leaves_nothing_half_written(native: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        convert(native, tmp_path / "taken", "jsonl", "labelme")
    with native.open("a", encoding="utf-8") as file:
        file.write('{"id": "z", "image": "none.jpg", "text": "x", "mask": null}\n')
    before = sorted(tmp_path.rglob("*"))
    for name in NAMES:
        with pytest.raises(DataError, match=r"native\.jsonl:4, field 'image'"):
            convert(native, tmp_path / f"new-{name}{FORMATS.get(name).suffix}", "jsonl", name)
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no sample"):
        convert(tmp_path / "empty.jsonl", tmp_path / "n.json", "jsonl", "coco")
    with pytest.raises(UsageError, match="coco-polygons"):
        convert(native, tmp_path / "n.json", "jsonl", "coc-polygons")
    with pytest.raises(UsageError, match="no Format"):
        convert(native, tmp_path / "n.json", "jsonl", "lisaseg.types:Query")
    with pytest.raises(UsageError, match="There is no"):
        convert(tmp_path / "none.jsonl", tmp_path / "n.json", "jsonl", "coco")
