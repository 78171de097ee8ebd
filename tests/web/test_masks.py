"""Browser flows: masks on the picture, their bond with the words, their list, and what is saved of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from tests.server.running import Server
from tests.web.desk import EXAMPLES, Desk

from lisaseg.formats import FORMATS, rle
from lisaseg.formats.answer import answer_from_dict

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.web
Sit = Callable[..., Desk]
FORGET = """async (session) => {
  const { image } = await (await fetch(`/v1/sessions/${session}`)).json();
  await fetch(`/v1/images/${image.id}`, { method: "DELETE" });
}"""


@pytest.fixture
def two(desk: Sit, stub: Server) -> Desk:
    """The recorded conversation of two turns and two masks, opened from its tile."""
    one = desk(stub)
    one.page.click(".tile >> nth=0")
    one.session()
    one.page.wait_for_selector(".turn:nth-child(2) .facts")
    one.page.mouse.move(2, 2)
    return one


def recorded() -> list[dict]:
    examples = json.loads((ROOT / "src/lisaseg/apps/web/examples/examples.json").read_text("utf-8"))
    return [turn["answer"] for turn in examples[0]["turns"]]


def on_stage(desk: Desk, mask: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Bool (H, W) of the stage: where a mask lies, and where the picture does, as long as the picture stands in the middle."""
    scale = float(desk.text("#zoom").split()[0]) / 100
    area = desk.page.locator("#view").bounding_box()
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    px = np.floor((xs - area["width"] / 2) / scale + mask.shape[1] / 2).astype(int)
    py = np.floor((ys - area["height"] / 2) / scale + mask.shape[0] / 2).astype(int)
    inside = (px >= 0) & (py >= 0) & (px < mask.shape[1]) & (py < mask.shape[0])
    placed = np.zeros(inside.shape, bool)
    placed[inside] = mask[py[inside], px[inside]]
    return placed, inside


def test_masks_lie_where_they_are(two: Desk) -> None:
    """Without outlines and at full opacity, the stage shows exactly the pixels of the mask, at any zoom."""
    mask = rle.decode(recorded()[0]["segments"][0]["mask"])
    two.page.uncheck(".layer >> nth=1 >> .show")
    two.page.uncheck("#outline")
    two.page.fill("#opacity", "100")
    two.page.mouse.move(2, 2)
    for zoom in (0, 8):
        two.page.click("#zoom-fit")
        for _ in range(zoom):
            two.page.click("#zoom-in")
        shown = two.pixels()
        two.page.locator("#compare").dispatch_event("pointerdown")
        bare = two.pixels()
        two.page.locator("#compare").dispatch_event("pointerup")
        expected, inside = on_stage(two, mask, shown.shape)
        painted = np.abs(shown[..., :3].astype(int) - np.array([213, 94, 0])).sum(2) < 8
        different = np.abs(shown.astype(int) - bare).sum(2) > 30
        agree = (painted & expected).sum() / (painted | expected).sum()
        assert agree > 0.97, f"IoU {agree:.3f} after {zoom} steps"  # the number covers some pixels, zoom is rounded
        assert (different & ~expected & inside).mean() < 0.01


def test_words_rows_and_pixels_light_together(two: Desk) -> None:
    calm = two.pixels()
    two.page.hover(".chip >> nth=1")
    assert two.page.locator(".layer.lit .number").inner_text() == "2"
    lit = two.pixels().astype(int)
    hair, inside = on_stage(two, rle.decode(recorded()[1]["segments"][0]["mask"]), lit.shape)
    before = calm[..., :3].astype(int).sum(2)
    darker, rest = lit[..., :3].sum(2) < 0.75 * before, inside & ~hair & (before > 90)  # black stays black
    assert darker[rest].mean() > 0.9 and darker[hair].mean() < 0.3, "all but the mask is darkened"
    two.page.hover(".phrase >> nth=0")
    assert two.page.locator(".layer.lit .number").inner_text() == "1"
    two.page.hover(".layer >> nth=1")
    assert two.page.locator(".chip.lit").inner_text().split()[0] == "2"
    two.page.mouse.move(2, 2)
    assert two.changed(calm) < 0.001
    two.point_of_badge(2)
    assert two.page.locator(".chip.lit").inner_text().split()[0] == "2"
    segment = recorded()[1]["segments"][0]
    share = 100 * segment["area"] / (segment["mask"]["size"][0] * segment["mask"]["size"][1])
    assert two.text("#tip") == f"2 {segment['phrase']} · {share:.1f} %"
    two.page.mouse.down()
    two.page.mouse.up()
    assert two.page.get_attribute(".chip >> nth=1", "aria-pressed") == "true", "a click holds it"
    two.page.mouse.move(2, 2)
    assert two.page.locator(".layer.lit").count() == 1
    two.page.keyboard.press("Escape")
    assert two.page.locator(".lit").count() == 0


def test_look_and_layers_never_ask_the_server(two: Desk) -> None:
    two.page.wait_for_timeout(300)
    before, both = len(two.requests), two.pixels()
    two.page.uncheck(".layer >> nth=0 >> .show")
    two.page.mouse.move(2, 2)
    assert two.changed(both) > 0.05
    two.page.check(".layer >> nth=0 >> .show")
    two.page.mouse.move(2, 2)
    assert two.changed(both) < 0.001
    two.page.uncheck("#outline")
    assert 0.001 < two.changed(both) < 0.1
    two.page.check("#outline")
    two.page.fill("#opacity", "0")
    assert two.changed(both) > 0.1
    two.page.fill("#opacity", "45")
    two.page.check("#only-last")
    assert two.changed(both) > 0.05
    assert "away" in (two.page.get_attribute(".layer >> nth=0", "class") or "")
    two.page.uncheck("#only-last")
    assert two.changed(both) < 0.001
    hold = two.page.locator("#compare").bounding_box()
    two.page.mouse.move(hold["x"] + 10, hold["y"] + 10)
    two.page.mouse.down()
    assert two.changed(both) > 0.1 and two.page.get_attribute("#compare", "aria-pressed") == "true"
    two.page.mouse.up()
    two.page.mouse.move(2, 2)
    assert two.changed(both) < 0.001
    asked = [request for request in two.requests[before:] if request[1] != "/readyz"]
    assert not asked


def test_zoom_and_move(two: Desk) -> None:
    fit = two.text("#zoom")
    area = two.page.locator("#view").bounding_box()
    centre = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    two.page.mouse.move(*centre)
    two.page.mouse.wheel(0, -500)
    assert float(two.text("#zoom").split()[0]) > 2 * float(fit.split()[0])
    near = two.pixels()
    two.page.mouse.down()
    two.page.mouse.move(centre[0] + 120, centre[1] + 60, steps=4)
    two.page.mouse.up()
    assert two.page.locator('.chip[aria-pressed="true"]').count() == 0, "a drag is no click"
    moved = two.pixels()
    same = np.abs(moved[160:460, 320:620].astype(int) - near[100:400, 200:500]).sum(2) < 12
    assert same.mean() > 0.9, "the picture follows the hand"
    two.page.mouse.dblclick(*centre)
    assert two.text("#zoom") == fit
    two.page.mouse.wheel(0, 5000)
    assert two.text("#zoom") == "100 %", "a small picture ends at its own size, a large one at the view"


def test_names_reach_words_picture_and_files(two: Desk) -> None:
    two.page.fill(".layer >> nth=1 >> .name", "red <hair>")
    assert two.page.locator(".chip >> nth=1").inner_text().split("\n")[-1] == "red <hair>"
    assert "red <hair>" in (two.page.get_attribute("#view", "aria-label") or "")
    two.page.click("#download")
    name, data = two.download('[data-kind="coco"]')
    assert name == "astronaut.coco.json"
    assert [c["name"] for c in json.loads(data)["categories"]] == ["the person", "red <hair>"]
    name, _ = two.download(".layer >> nth=1 >> .save")
    assert name == "red-hair.png", "a name that any disk takes"


def test_downloads(two: Desk) -> None:
    answers = recorded()
    masks = [rle.decode(answer["segments"][0]["mask"]) for answer in answers]

    def save(kind: str) -> tuple[str, bytes]:
        two.page.click("#download")
        return two.download(f'[data-kind="{kind}"]')

    name, data = save("overlay")
    picture = Image.open(io.BytesIO(data))
    assert (name, picture.format, picture.size) == ("astronaut.overlay.png", "PNG", (512, 512))
    plain = np.asarray(Image.open(EXAMPLES / "astronaut.jpg").convert("RGB")).astype(int)
    painted = np.abs(np.asarray(picture.convert("RGB")) - plain).sum(2) > 40
    assert painted[masks[1]].mean() > 0.8 and painted[~(masks[0] | masks[1])].mean() < 0.05

    name, data = save("json")
    assert name == "astronaut.json"
    read = [answer_from_dict(answer) for answer in json.loads(data)]
    assert [answer.text for answer in read] == [answer["text"] for answer in answers]
    assert all(np.array_equal(answer.masks[0], mask) for answer, mask in zip(read, masks, strict=True))

    name, data = save("coco")
    for annotation, mask in zip(json.loads(data)["annotations"], masks, strict=True):
        assert np.array_equal(coco.decode(annotation["segmentation"]).astype(bool), mask)

    name, data = save("masks")
    files = zipfile.ZipFile(io.BytesIO(data))
    assert (name, sorted(files.namelist())) == ("astronaut.masks.zip", ["astronaut.turn1.mask1.png", "astronaut.turn2.mask1.png"])
    for file, mask in zip(sorted(files.namelist()), masks, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(files.read(file)))), mask * np.uint8(255))

    name, data = save("zip")
    assert {Path(file).suffix for file in zipfile.ZipFile(io.BytesIO(data)).namelist()} == {".json", ".png"}

    name, data = two.download(".layer >> nth=0 >> .save")
    saved = Image.open(io.BytesIO(data))
    assert (name, saved.mode) == ("the-person.png", "L") and np.array_equal(np.asarray(saved), masks[0] * np.uint8(255))


@pytest.mark.parametrize("kind", ["jsonl", "reasonseg", "labelme", "labelstudio", "cvat", "yolo"])
def test_annotations_for_other_tools(two: Desk, tmp_path: Path, kind: str) -> None:
    """With the picture, and with the reader's names; also when the server has forgotten the picture meanwhile."""
    two.page.fill(".layer >> nth=1 >> .name", "hair")
    if kind == "jsonl":
        two.refusals = True
        two.page.evaluate(FORGET, two.session())
    uploads = two.sent("POST", "/v1/images")
    two.page.click("#download")
    name, data = two.download(f'[data-kind="{kind}"]')
    assert name == f"astronaut.{kind}.zip" and two.sent("POST", "/v1/images") == uploads + (kind == "jsonl")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(tmp_path)
    form = FORMATS.get(kind)
    samples = list(form.read(tmp_path / f"astronaut{form.suffix}" if form.suffix else tmp_path, None))
    queries = [query for sample in samples for query in sample.queries]
    answers = recorded()
    assert [query.text for query in queries] == ([answer["instruction"] for answer in answers] if form.asks else ["the person", "hair"])
    for query, answer in zip(queries, answers, strict=True):
        mask, got = rle.decode(answer["segments"][0]["mask"]), query.masks[0] == 1
        assert (got == mask).all() if "exact" in form.keeps else (got & mask).sum() >= 0.97 * (got | mask).sum()
    if kind == "jsonl":
        assert [query.name for query in queries] == ["the person", "hair"]


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_turn_as_a_program_gives_the_same_answer(desk: Sit, stub: Server, tmp_path: Path, language: str) -> None:
    """The second turn of a conversation, with quotes, dollars and signs in it: the snippet runs as it is copied."""
    one = desk(stub)
    one.example("coffee.jpg")
    one.session()
    one.ask("first: it's `this` $HOME")
    one.ask('second "quoted" it\'s 100% größer 🙂 \\n', "explain")
    one.page.click(".turn:nth-child(2) .turn-tools >> text=API")
    one.page.click(f"#api-tabs >> text={language}")
    program = one.page.locator("#api-code").inner_text()
    (tmp_path / "coffee.jpg").write_bytes((EXAMPLES / "coffee.jpg").read_bytes())
    command = {
        "curl": ["bash", "-c", program],
        "Python": [sys.executable, "-c", program],
        "JavaScript": ["node", "--input-type=module", "-e", program],
    }[language]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_PROXY": "127.0.0.1"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)["text"] if language == "curl" else found.stdout
    assert 'Turn 2: second "quoted" it\'s 100% größer 🙂 \\n [mask 1]' in said, "the history went along"
