"""Laws of the file that is annotated: what is written can be read, what is not touched stays, what others wrote is never lost."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lisaseg.apps.annotate import samples
from lisaseg.apps.annotate.pictures import Project, content, thumbnail
from lisaseg.apps.annotate.sample_file import Changed, SampleFile
from lisaseg.apps.annotate.samples import MaskDraft, SampleDraft
from lisaseg.errors import DataError, LisaSegError, UsageError
from lisaseg.formats import rle
from lisaseg.formats.jsonl import read_jsonl
from lisaseg.formats.jsonl_check import check_jsonl
from lisaseg.imaging import open_image

HEIGHT, WIDTH = 12, 18


def masks(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = rng.random((count, HEIGHT, WIDTH)) < 0.4
    found[:, 0, 0] = True
    return list(found)


def draft(**fields: Any) -> SampleDraft:
    coded = {name: [rle.encode(m) for m in value] if name == "masks" else rle.encode(value) for name, value in fields.items()
             if name in ("masks", "ignore") and value is not None}  # fmt: skip
    return SampleDraft.model_validate({"picture": "p", "revision": None, "text": "what keeps milk cold", "masks": None, **fields, **coded})


class Desk:
    """A project in a folder, used as the routes use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.picture = folder / "a b.png"
        Image.new("RGB", (WIDTH, HEIGHT)).save(self.picture)
        self.path = folder / "annotations.jsonl"
        self.file = SampleFile(self.path)

    def save(self, sample_id: str = "s1", revision: str | None = None, file: SampleFile | None = None, **fields: Any) -> str:
        """The new revision."""
        wanted = draft(revision=revision, **fields)
        build = samples.build
        line = (file or self.file).save(sample_id, revision, lambda old, where: build(wanted, sample_id, self.picture, self.folder, old, where))
        return line.revision

    def views(self) -> list[dict[str, Any]]:
        return [samples.view(line, self.folder, self.file.where(line.number)) for line in self.file.lines()]

    def faults(self) -> list[Any]:
        return [fault for _, faults in check_jsonl(self.path) for fault in faults]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".aside")] == [], "nothing half written stays"


TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: samples.one_line(text))


@given(
    text=TEXTS, is_sentence=st.booleans(), target=st.lists(TEXTS, max_size=3), explanation=st.text(max_size=30),
    rephrasings=st.lists(TEXTS, max_size=3),
    count=st.none() | st.integers(1, 3), ignored=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_saved_is_what_training_reads(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int | None, ignored: bool, **words: Any
) -> None:
    desk = Desk(tmp_path_factory.mktemp("law"))
    drawn = None if count is None else masks(count, seed)
    ignore = masks(1, seed + 100)[0] if ignored else None
    desk.save(masks=drawn, ignore=ignore, **words)
    assert not desk.faults()
    (sample,) = read_jsonl(desk.path, decode_images=True)
    query = sample.queries[0]
    assert query.text == samples.one_line(words["text"]) and query.is_sentence == words["is_sentence"]
    assert query.rephrasings == tuple(map(samples.one_line, words["rephrasings"])) and query.explanation == samples.one_line(words["explanation"])
    assert len(query.masks) == (count or 0)
    for mask, wanted in zip(query.masks, drawn or [], strict=True):
        hidden = ignore if ignore is not None else np.zeros_like(wanted)
        assert np.array_equal(mask == 1, wanted & ~hidden) and np.array_equal(mask == 255, hidden)
    (view,) = desk.views()  # and the page gets back what it sent
    assert view["masks"] == (None if drawn is None else [rle.encode(mask) for mask in drawn])
    assert view["ignore"] == (rle.encode(ignore) if ignore is not None and drawn else None)


def test_lines_that_are_not_edited_stay_byte_for_byte(desk: Desk) -> None:
    strange = [
        b'\xef\xbb\xbf{"image":"a b.png",  "text":"first","mask":null, "of": "somebody else", "id": "x"}\r',
        b"this is no JSON",
        b'{"image": "gone.png", "text": "", "mask": 3}',
        b'{"id": "x", "image": "a b.png", "text": "the same id again", "mask": null}',
    ]
    desk.path.write_bytes(b"\n".join(strange))  # the last line without its end
    revision = desk.save("new", text="one")
    desk.save("new", revision, text="two")
    assert desk.path.read_bytes().split(b"\n")[:4] == strange and desk.views()[-1]["text"] == "two"
    problems = [view.get("problem", "") for view in desk.views()]
    assert problems[0] == "" and all(problems[1:4]) and not problems[4]
    desk.file.delete("new", desk.views()[-1]["revision"])
    assert desk.path.read_bytes() == b"\n".join(strange) + b"\n"


def test_what_was_not_touched_keeps_its_form(desk: Desk) -> None:
    """Polygons, PNG masks, an ignored area for each mask, other fields: a new text does not rewrite them."""
    png = masks(1, 5)[0]
    Image.fromarray(png.astype(np.uint8) * 255).save(desk.folder / "m.png")
    polygon = {"polygons": [[1, 1, 9, 1, 9, 8, 1, 8]]}
    names = {"target": ["a", "b"], "kind": "part", "by": "me"}
    record = {"id": "k", "image": "./a b.png", "text": "old", "mask": ["m.png", polygon], "ignore": [None, polygon], **names}
    desk.path.write_text(json.dumps(record) + "\n")
    (view,) = desk.views()
    words = {"text": "new", "target": ["a", "b"]}
    body = SampleDraft.model_validate({"picture": "p", "revision": view["revision"], **words, "masks": view["masks"], "ignore": view["ignore"]})
    desk.file.save("k", view["revision"], lambda old, where: samples.build(body, "k", desk.picture, desk.folder, old, where))
    now = json.loads(desk.path.read_text())
    assert {name: now[name] for name in record} == {**record, "text": "new"}
    (view,) = desk.views()
    body = body.model_copy(update={"masks": [MaskDraft(**mask) for mask in [view["masks"][1], rle.encode(masks(1, 9)[0])]]})
    desk.file.save("k", view["revision"], lambda old, where: samples.build(body, "k", desk.picture, desk.folder, old, where))
    now = json.loads(desk.path.read_text())
    assert now["mask"][0] == polygon and now["mask"][1] == rle.encode(masks(1, 9)[0]), "the one that was drawn is new, the other as it was"
    assert not desk.faults()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " \n "}, "instruction is empty"), ({"masks": []}, "no mask"), ({"masks": [np.zeros((HEIGHT, WIDTH), bool)]}, "Mask 1 is empty"),
        ({"masks": [np.ones((WIDTH, HEIGHT), bool)]}, "size"), ({"masks": [*masks(1), np.zeros((HEIGHT, WIDTH), bool)]}, "Mask 2 is empty"),
        ({"masks": masks(1), "ignore": np.ones((3, 3), bool)}, "ignore"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused_and_nothing_written(desk: Desk, fields: dict[str, Any], message: str) -> None:
    desk.save("before", text="is there")
    was = desk.path.read_bytes()
    with pytest.raises(DataError, match=message) as caught:
        desk.save(**fields)
    assert caught.value.next_step and caught.value.code == "sample_refused"
    assert desk.path.read_bytes() == was


def test_a_change_by_somebody_else_is_never_overwritten(desk: Desk) -> None:
    revision = desk.save(text="mine")
    other = SampleFile(desk.path)
    theirs = desk.save("s1", revision, file=other, text="theirs")
    with pytest.raises(Changed) as caught:
        desk.save("s1", revision, text="mine again")
    assert caught.value.line is not None and caught.value.line.revision == theirs and desk.views()[0]["text"] == "theirs"
    with pytest.raises(Changed):
        desk.file.delete("s1", revision)
    with pytest.raises(Changed):
        desk.save("s1", None, text="a new one of the same name")
    assert desk.save("s1", theirs, text="mine after all") != theirs
    other.delete("s1", desk.views()[0]["revision"])
    with pytest.raises(Changed) as caught:
        desk.save("s1", theirs, text="mine")
    assert caught.value.line is None
    desk.save("s1", None, text="back")
    assert [view["text"] for view in desk.views()] == ["back"]


def test_what_others_wrote_beside_it_is_taken_over(desk: Desk) -> None:
    revision = desk.save(text="mine")
    with desk.path.open("ab") as file:  # an editor appends
        file.write(b'{"id": "e", "image": "a b.png", "text": "by hand", "mask": null}\n')
    desk.save("s1", revision, text="mine, better")
    assert [view["text"] for view in desk.views()] == ["mine, better", "by hand"]


def test_saving_twice_is_saving_once(desk: Desk) -> None:
    """The answer to the first one was lost: the repeat finds its own work, whatever revision it names."""
    first = desk.save(text="once")
    stamp = desk.path.stat().st_mtime_ns
    assert desk.save(text="once") == first and desk.path.stat().st_mtime_ns == stamp
    desk.file.delete("s1", first)
    desk.file.delete("s1", first)


def test_many_hands_at_once_lose_nothing(desk: Desk) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for k in range(5):
                desk.save(f"{name}-{k}", text=f"{name} {k}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(desk.views()) == 20 and not desk.faults()


def test_a_full_disk_leaves_the_old_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = desk.save(text="old")
    was = desk.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        desk.save("s1", revision, text="new")
    assert desk.path.read_bytes() == was and desk.views()[0]["text"] == "old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "pictures")
    real = tmp_path / "elsewhere.jsonl"
    real.write_text("")
    desk.path.symlink_to(real)
    desk.file = SampleFile(desk.path)
    desk.save(text="through the link")
    assert desk.path.is_symlink() and json.loads(real.read_text())["image"] == "a b.png" and not desk.faults()


# --- the pictures ---------------------------------------------------------------------------------------------------------------------------------


def test_the_pictures_of_a_project(desk: Desk) -> None:
    """In natural order, to any depth, without hidden ones and masks, with those that only the file names."""
    outside = desk.folder.parent / f"{desk.folder.name}-outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    for name in ("p10.png", "p9.png", "deep/er/c.JPG", ".hidden/x.png", "m/mask.png"):
        (desk.folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(desk.folder / name)
    (desk.folder / "notes.txt").write_text("no picture")
    lines = [{"image": "p9.png", "text": "t", "mask": "m/mask.png"}, {"image": f"../{outside.name}", "text": "t", "mask": None}]
    desk.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    project = Project(desk.folder)
    found = project.pictures()
    assert [picture.name for picture in found] == ["a b.png", "deep/er/c.JPG", "p9.png", "p10.png", f"../{outside.name}"]
    assert len({picture.id for picture in found}) == 5 and [p.id for p in Project(desk.folder).pictures()] == [p.id for p in found]
    (desk.folder / "p9.png").unlink()
    assert project.picture(found[2].id) is None and project.picture("0" * 16) is None
    outside.unlink()


@pytest.mark.parametrize("bad", ["missing", "empty", "out is a folder"])
def test_a_project_that_cannot_be(tmp_path: Path, bad: str) -> None:
    (tmp_path / "empty").mkdir()
    if bad == "out is a folder":
        Image.new("RGB", (4, 4)).save(tmp_path / "empty/a.png")
    with pytest.raises(UsageError) as caught:
        Project(tmp_path / bad.replace("out is a folder", "empty"), tmp_path if bad == "out is a folder" else None)
    assert caught.value.next_step


def variants(folder: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "plain.png": (rgb, {}), "turned.png": (rgb, {"exif": exif}), "grey.png": (rgb.convert("L"), {}), "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "photo.tiff": (rgb, {}), "photo.bmp": (rgb, {}), "deep.png": (Image.fromarray(rng.integers(0, 4000, (20, 30), np.uint16)), {}),
        "animated.gif": (rgb.convert("P"), {"save_all": True, "append_images": [rgb.rotate(90).resize((30, 20)).convert("P")]}),
        "photo.webp": (rgb, {"lossless": True}),
    }  # fmt: skip
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]


def test_the_page_gets_the_pixels_that_the_model_gets(tmp_path: Path) -> None:
    for path in variants(tmp_path):
        data, kind = content(path)
        assert kind in ("image/png", "image/jpeg", "image/webp"), "what every browser shows"
        assert np.array_equal(open_image(data).rgb, open_image(path).rgb), path.name
        plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(plain, open_image(path).rgb), f"{path.name}: nothing is left for the browser to do"
        small = open_image(thumbnail(path))
        assert max(small.size) <= 176 and (small.size[0] > small.size[1]) == (open_image(path).size[0] > open_image(path).size[1])
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(turned, exif=exif)
    assert content(turned)[0] == turned.read_bytes(), "browsers turn a JPEG by themselves"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for do in (content, thumbnail):
        with pytest.raises(LisaSegError):
            do(tmp_path / "broken.png")
