"""`/v1/export` and `mask_format`: what leaves the service reads back as the masks that the model drew, in every format."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from tests.server.running import Server, code_of, events, picture

from lisaseg import Client
from lisaseg.apps.server.schemas import ExportFormat
from lisaseg.errors import UsageError
from lisaseg.formats import FORMATS
from lisaseg.formats.answer import answer_from_dict
from lisaseg.formats.jsonl_check import check_jsonl
from lisaseg.types import Answer, MaskFormat, Sample, Segment

H, W = 48, 64
ANNOTATIONS = sorted(set(get_args(ExportFormat)) - {"json", "coco", "masks", "overlay", "zip"})
RING, PARTS, BOX = (np.zeros((H, W), bool) for _ in range(3))
yy, xx = np.mgrid[:H, :W]
RING[(yy - 20) ** 2 + (xx - 22) ** 2 < 300] = True
RING[(yy - 20) ** 2 + (xx - 22) ** 2 < 60] = False
PARTS[2:20, 44:60], PARTS[24:44, 46:62] = True, True
BOX[40:, :20] = True


def answer(*masks: np.ndarray, instruction: str = "What is round?", phrases: tuple[str, ...] = (), **more: Any) -> Answer:
    phrases += ("",) * (len(masks) - len(phrases))
    segments = tuple(Segment.from_mask(k, mask, (0, 1), 0.5, phrase) for k, (mask, phrase) in enumerate(zip(masks, phrases, strict=True)))
    status = more.pop("status", "masks")
    return Answer("t", "[SEG]" * len(masks), status, segments, (H, W), instruction, "m", **more)


def photo(kind: str = "PNG", turned: bool = False) -> bytes:
    """A picture of H x W upright."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (W, H, 3) if turned else (H, W, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    file = io.BytesIO()
    image.save(file, kind, **({} if kind == "GIF" else {"exif": exif}))
    return file.getvalue()


def export(server: Server, answers: list[Answer], to: str, image: bytes | None = None, **more: Any) -> Any:
    found = {"image_id": server.upload(image)} if image is not None else {}
    return server.http.post("/v1/export", json={"answers": [one.to_dict() for one in answers], "to": to, "name": "my street!", **found, **more})


def unpacked(content: bytes, folder: Path, to: str) -> Path:
    """The archive in a folder, and what a reader of the format takes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == sorted(archive.namelist())
        archive.extractall(folder)
    return folder / f"my-street{FORMATS.get(to).suffix}" if FORMATS.get(to).suffix else folder


def masks_of(samples: list[Sample]) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        for query in sample.queries:
            found.setdefault(query.text, []).extend(mask == 1 for mask in query.masks)
    return found


def iou(one: np.ndarray, two: np.ndarray) -> float:
    return float((one & two).sum() / (one | two).sum())


def test_every_format_of_the_library_is_offered(stub: Server) -> None:
    assert set(ANNOTATIONS) | {"coco"} == set(FORMATS.names())
    assert stub.http.get("/v1/limits").json()["exports"] == list(get_args(ExportFormat))
    assert stub.http.get("/openapi.json").json()["components"]["schemas"]["ExportRequest"]["properties"]["to"]["enum"] == list(get_args(ExportFormat))


@pytest.mark.parametrize("kind", ["JPEG turned", "GIF"])
@pytest.mark.parametrize("to", ANNOTATIONS)
def test_what_is_exported_reads_back(stub: Server, tmp_path: Path, to: str, kind: str) -> None:
    answers = [answer(RING, PARTS, phrases=("the wheel", "the dog [SEG]")), answer(BOX, instruction="größe: 5 < 6")]
    data = photo(kind.split()[0], "turned" in kind)
    response = export(stub, answers, to, data)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip" and f'filename="my-street.{to}.zip"' in response.headers["content-disposition"]
    assert export(stub, answers, to, data).content == response.content, "the same answers make the same bytes"
    form = FORMATS.get(to)
    samples = list(form.read(unpacked(response.content, tmp_path, to), None))
    assert {Path(str(sample.image)).is_relative_to(tmp_path) for sample in samples} == {True}, "the archive holds its pictures"
    found = masks_of(samples)
    if form.asks:
        wanted = {"What is round?": [RING, PARTS] if "instances" in form.keeps else [RING | PARTS], "größe: 5 < 6": [BOX]}
    else:
        wanted = {"the wheel": [RING], "the dog": [PARTS], "größe: 5 < 6": [BOX]}
    assert set(found) == set(wanted)
    for text, masks in wanted.items():
        assert len(found[text]) == len(masks)
        for mask, got in zip(masks, found[text], strict=True):
            assert (got == mask).all() if "exact" in form.keeps else iou(got, mask) >= 0.97


def test_the_samples_pass_the_check_of_training_data_and_hold_the_names(stub: Server, tmp_path: Path) -> None:
    answers = [
        answer(RING, PARTS, phrases=("the wheel", "the dog")),
        answer(instruction="the zebra", status="no_target"),
        answer(instruction="What is this?", status="no_mask_requested"),
    ]
    path = unpacked(export(stub, answers, "jsonl", photo()).content, tmp_path, "jsonl")
    assert [faults for _, faults in check_jsonl(path)] == [[], []]
    (first,), (second,) = (sample.queries for sample in FORMATS.get("jsonl").read(path, None))
    assert (first.text, first.name, first.is_sentence) == ("What is round?", "the wheel, the dog", True)
    assert (second.text, second.masks) == ("the zebra", ()), "what is not there is an annotation; words only are none"


@pytest.mark.parametrize("to", ["coco", "coco-polygons"])
def test_pycocotools_reads_it(stub: Server, tmp_path: Path, to: str) -> None:
    response = export(stub, [answer(RING, PARTS, phrases=("the wheel", "the dog"))], to, photo())
    file = tmp_path / "my-street.json"
    if to == "coco":
        file.write_bytes(response.content)
    else:
        unpacked(response.content, tmp_path, to)
    coco = COCO(str(file))
    found = {coco.cats[a["category_id"]]["name"]: coco.annToMask(a) for a in coco.dataset["annotations"]}
    assert set(found) == {"the wheel", "the dog"} and (found["the wheel"] == RING).all() and (found["the dog"] == PARTS).all()


def test_cvat_sdk_reads_it(stub: Server, tmp_path: Path) -> None:
    from cvat_sdk.masks import decode_mask

    path = unpacked(export(stub, [answer(RING)], "cvat", photo(), labels=["wheel"]).content, tmp_path, "cvat")
    (image,) = ElementTree.fromstring(path.read_bytes()).iter("image")
    assert (tmp_path / image.attrib["name"]).is_file(), "CVAT finds pictures by this name"
    (mask,) = image.iter("mask")
    left, top, width, height = (int(mask.attrib[key]) for key in ("left", "top", "width", "height"))
    points = [*(int(run) for run in mask.attrib["rle"].split(",")), left, top, left + width - 1, top + height - 1]
    assert mask.attrib["label"] == "wheel" and (decode_mask(points, image_width=W, image_height=H) == RING).all()


def test_labels_name_the_masks(stub: Server, tmp_path: Path) -> None:
    answers = [answer(RING, PARTS, phrases=("the wheel", "the dog")), answer(BOX, instruction="")]

    def names(to: str = "coco", **more: Any) -> list[str]:
        return [c["name"] for c in export(stub, answers, to, **more).json()["categories"]]

    assert names() == ["the wheel", "the dog", "object"]
    assert names(labels=["thing"]) == ["thing"]
    assert names(labels=["a", " ", "../c"]) == ["a", "the dog", "../c"]
    unpacked(export(stub, answers, "yolo", photo(), labels=["a", "b", "../c"]).content, tmp_path, "yolo")
    assert set(masks_of(list(FORMATS.get("yolo").read(tmp_path, None)))) == {"a", "b", "../c"}
    for labels in ([], ["a", "b"], ["a"] * 4):
        response = export(stub, answers, "coco", labels=labels)
        assert code_of(response) == "export_failed" and response.json()["error"]["param"] == "labels"
    assert code_of(export(stub, answers, "coco", labels=["x" * 201])) == "invalid_request"


def test_what_cannot_be_written_is_refused_with_its_code(stub: Server) -> None:
    good = answer(RING)
    assert code_of(export(stub, [good], "labelme")) == "missing_image"
    assert code_of(export(stub, [good], "yolo", picture())) == "export_failed", "another picture"
    assert code_of(export(stub, [answer(status="no_mask_requested")], "jsonl", photo())) == "export_failed"
    assert code_of(export(stub, [good], "excel", photo())) == "invalid_request"
    noise = np.random.default_rng(0).random((1200, 1000)) < 0.5
    ragged = Answer("t", "[SEG]", "masks", (Segment.from_mask(0, noise, (0, 1)),), noise.shape)
    file = io.BytesIO()
    Image.new("RGB", (1000, 1200)).save(file, "PNG")
    response = export(stub, [ragged], "yolo", file.getvalue())
    assert code_of(response) == "export_failed" and "edges" in response.json()["error"]["message"]
    specks = np.zeros((200, 200), bool)
    specks[::3, ::3] = True
    file = io.BytesIO()
    Image.new("RGB", (200, 200)).save(file, "PNG")
    response = export(stub, [Answer("t", "[SEG]", "masks", (Segment.from_mask(0, specks, (0, 1)),), (200, 200))], "yolo", file.getvalue())
    assert code_of(response) == "export_failed" and "separate parts" in response.json()["error"]["message"]
    for form in ("polygon", "png", "none"):
        body = {"answers": [good.to_dict(form)], "to": "coco"}
        assert code_of(stub.http.post("/v1/export", json=body)) == "export_failed"


def test_masks_are_the_same_in_every_form(stub: Server) -> None:
    image_id = stub.upload(photo())
    wanted = answer_from_dict(stub.ask(image_id, "the cup").json())
    session = stub.http.post("/v1/sessions", json={"image_id": image_id}).json()["id"]
    assert get_args(MaskFormat) == tuple(stub.http.get("/v1/limits").json()["mask_formats"])
    for form, key in (("rle", "counts"), ("polygon", "polygons"), ("png", "png")):
        asked = {"prompt": "the cup", "mask_format": form}
        plain = stub.http.post("/v1/segment", json={**asked, "image_id": image_id}).json()
        stored = stub.http.post(f"/v1/sessions/{session}/messages", json=asked).json()
        again = stub.http.post(f"/v1/sessions/{session}/retry", json={"mask_format": form}).json()
        with stub.http.stream("POST", "/v1/segment", json={**asked, "image_id": image_id, "stream": True}) as response:
            streamed = events(response)
        chat = {"model": "lisa-tiny", "lisaseg": {"mask_format": form}}
        part = {"type": "image_url", "image_url": None, "uuid": image_id}
        message = {"role": "user", "content": [part, {"type": "text", "text": "the cup"}]}
        openai = stub.http.post("/v1/chat/completions", json={**chat, "messages": [message]}).json()["choices"][0]["message"]
        assert [data for name, data in streamed if name == "segment"] == streamed[-1][1]["segments"] == plain["segments"] == openai["segments"]
        for data in (plain, stored, again, streamed[-1][1]):
            assert set(data["segments"][0]["mask"]) == {"size", key}
            assert (answer_from_dict(data).masks == wanted.masks).all()
        stub.http.post(f"/v1/sessions/{session}/undo")
    assert stub.http.post(f"/v1/sessions/{session}/messages", json={"prompt": "x", "mask_format": "none"}).json()["segments"][0]["mask"] is None
    assert "counts" in stub.http.get(f"/v1/sessions/{session}").json()["turns"][0]["answer"]["segments"][0]["mask"], "stored as run lengths"
    assert code_of(stub.ask(image_id, "x", mask_format="bitmap")) == "invalid_request"


@pytest.mark.parametrize("form", ["rle", "polygon", "png"])
def test_the_client_reads_every_form(stub: Server, form: MaskFormat) -> None:
    with Client(stub.url) as plain, Client(stub.url, mask_format=form) as model:
        one, two = (client.ask(photo(), "the cup") for client in (plain, model))
        assert replace(one, timings_ms={}).to_dict() == replace(two, timings_ms={}).to_dict() and one.masks.any()
        sofar: list[str] = []
        assert (model.ask(photo(), "the cup", on_text=sofar.append).masks == one.masks).all() and sofar


def test_a_client_without_masks_is_refused() -> None:
    with pytest.raises(UsageError, match="none"):
        Client("http://127.0.0.1:1", mask_format="none")


def test_the_old_kinds_are_as_they_were(stub: Server) -> None:
    answers = [answer(RING, PARTS, phrases=("the wheel", ""))]
    assert [answer_from_dict(one).to_dict() for one in export(stub, answers, "json").json()] == [one.to_dict() for one in answers]
    with zipfile.ZipFile(io.BytesIO(export(stub, answers, "masks").content)) as archive:
        assert archive.namelist() == ["my-street.turn1.mask1.png", "my-street.turn1.mask2.png"]
        for name, mask in zip(archive.namelist(), (RING, PARTS), strict=True):
            assert (np.asarray(Image.open(io.BytesIO(archive.read(name)))) == mask * np.uint8(255)).all()
    with zipfile.ZipFile(io.BytesIO(export(stub, answers, "zip", photo()).content)) as archive:
        assert json.loads(archive.read("my-street.json")) == [one.to_dict() for one in answers]
        assert "my-street.turn1.overlay.png" in archive.namelist()
