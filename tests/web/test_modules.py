"""The page's modules against what they must agree with: pycocotools, lisaseg.drawing, the catalogue of errors, PNG readers. Run by node."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from tests.web.node import WEB, run

from lisaseg.apps.server.catalogue import CATALOGUE
from lisaseg.drawing import PALETTE
from lisaseg.formats import rle

pytestmark = pytest.mark.web


def random_masks(count: int = 300) -> list[np.ndarray]:
    """Noise of every density, blobs, lines, full and empty ones, down to one pixel."""
    rng = np.random.default_rng(7)
    masks = [np.zeros((1, 1), bool), np.ones((1, 1), bool), np.zeros((3, 5), bool), np.ones((70, 33), bool), np.eye(40, dtype=bool)]
    while len(masks) < count:
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        kind = len(masks) % 3
        if kind == 0:
            mask = rng.random((height, width)) < rng.random()
        elif kind == 1:
            y, x = np.mgrid[:height, :width]
            mask = np.zeros((height, width), bool)
            for _ in range(4):
                cy, cx, radius = rng.random() * height, rng.random() * width, rng.random() * 20
                mask ^= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        else:
            mask = np.zeros((height, width), bool)
            mask[rng.integers(height) :, :: int(rng.integers(1, 4))] = True
        masks.append(mask)
    return masks


MASKS = random_masks()


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    big = np.zeros((3000, 4000), bool)  # runs of more than one, two, three characters
    big[7:2900, 11:3990] = True
    big[1000:1003, 2000:2100] = False
    encoded = [rle.encode(mask) for mask in [*MASKS, big]]
    found = run(
        """
        const { Mask } = await import("WEB/rle.js");
        give(data.map((one) => {
          const mask = new Mask(one);
          const small = mask.width * mask.height < 1e6;
          return { area: mask.area, box: mask.box(), bytes: small ? Buffer.from(mask.bytes(255)).toString("base64") : null,
            has: small ? Array.from({ length: mask.height }, (_, y) => Array.from({ length: mask.width }, (_, x) => +mask.has(x, y))) : null };
        }));
        """,
        encoded,
    )
    for mask, one, code in zip([*MASKS, big], found, encoded, strict=True):
        assert one["area"] == mask.sum() == coco.area(code)
        x, y, w, h = (int(n) for n in coco.toBbox(code))
        assert one["box"] == ([x, y, x + w, y + h] if mask.any() else None)
        if one["bytes"] is not None:
            assert np.array_equal(np.frombuffer(base64.b64decode(one["bytes"]), np.uint8).reshape(mask.shape), mask * np.uint8(255))
            assert np.array_equal(np.array(one["has"], bool), mask)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": [2, 2], "counts": "P"},  # ends inside a number
        {"size": [2, 2], "counts": "5"},  # 5 pixels of 4
        {"size": [2, 2], "counts": [2, -1, 3]},
        {"size": [2, 2], "counts": " "},
        {"size": [2, 2], "counts": ""},
    ],
)
def test_broken_run_lengths_are_refused(bad: object) -> None:
    script = 'const { Mask } = await import("WEB/rle.js"); let name = ""; try { new Mask(data) } catch (error) { name = error.name } give(name);'
    assert run(script, bad) == "RangeError"


def test_the_border_encloses_exactly_the_mask() -> None:
    """Filled by the even-odd and by the non-zero rule, the lines give the mask back; so do their winding numbers: 1 inside, 0 outside."""
    lines = run(
        """
        const { Mask } = await import("WEB/rle.js"); const { outline } = await import("WEB/shapes.js");
        give(data.map((one) => outline(new Mask(one))));
        """,
        [rle.encode(mask) for mask in MASKS],
    )
    for mask, found in zip(MASKS, lines, strict=True):
        winding = np.zeros(mask.shape, int)
        for line in found:
            points = np.array(line).reshape(-1, 2)
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
                assert (x0 == x1) != (y0 == y1), "edges follow the pixels"
                if x0 == x1:  # crossed by all pixels to the right of it
                    winding[min(y0, y1) : max(y0, y1), x0:] += 1 if y1 < y0 else -1
        assert np.array_equal(winding, mask.astype(int))


def test_cut_corners_stay_within_half_a_pixel_and_close() -> None:
    found = run('const { cutCorners } = await import("WEB/shapes.js"); give(cutCorners(data));', [0, 0, 1, 0, 1, 5, 0, 5])
    points, square = np.array(found).reshape(-1, 2), np.array([[0, 0], [1, 0], [1, 5], [0, 5]])
    assert len(points) == 8
    assert (np.abs(points[:, None] - square[None]).sum(2).min(1) <= 0.5).all()


def test_the_number_of_a_mask_stands_on_it_where_it_is_thick() -> None:
    found = run(
        """
        const { Mask } = await import("WEB/rle.js"); const { deepest } = await import("WEB/shapes.js");
        give(data.map((one) => { const mask = new Mask(one); return deepest(mask, mask.box()); }));
        """,
        [rle.encode(mask) for mask in MASKS],
    )
    for mask, spot in zip(MASKS, found, strict=True):
        assert (spot is None) == (not mask.any())
        if spot is None:
            continue
        assert mask[spot["y"], spot["x"]]
        ys, xs = np.nonzero(~np.pad(mask, 1))
        distance = np.hypot(ys - 1 - spot["y"], xs - 1 - spot["x"]).min()
        best = max(np.hypot(ys - 1 - y, xs - 1 - x).min() for y, x in np.argwhere(mask))
        assert distance >= 0.8 * best - 1


def test_masks_are_saved_as_grey_png_of_0_and_255() -> None:
    mask = MASKS[10]
    script = """
        const { greyPng } = await import("WEB/png.js");
        const blob = await greyPng(new Uint8Array(Buffer.from(data.bytes, "base64")), data.width, data.height);
        give(Buffer.from(await blob.arrayBuffer()).toString("base64"));
    """
    grey = (mask * np.uint8(255)).tobytes()
    found = base64.b64decode(run(script, {"bytes": base64.b64encode(grey).decode(), "width": mask.shape[1], "height": mask.shape[0]}))
    image = Image.open(io.BytesIO(found))
    image.load()
    assert (image.mode, image.format) == ("L", "PNG")
    assert np.array_equal(np.asarray(image), mask * np.uint8(255))


def test_colours_are_those_of_the_files() -> None:
    assert run('const { PALETTE } = await import("WEB/palette.js"); give(PALETTE);') == [list(colour) for colour in PALETTE]


def test_every_error_code_has_words_and_a_remedy() -> None:
    found = run('const { CATALOGUE } = await import("WEB/errors.js"); give(CATALOGUE);')
    assert set(CATALOGUE) == set(found) - {"offline", "interrupted"}
    for code, (title, remedy) in found.items():
        assert re.fullmatch(r"[A-Z][^.]+\.", title), code
        assert remedy in {"resend", "edit", "new-chat", "picture", "key", "none"}, code


def test_passing_errors_are_those_that_the_server_calls_passing() -> None:
    """What the page repeats by itself is 429, 503 or a busy session; and never what will fail again."""
    passing = set(run('const { PASSING } = await import("WEB/errors.js"); give([...PASSING]);')) - {"offline", "interrupted"}
    assert {CATALOGUE[code].status for code in passing} == {429, 503, 409}
    assert not passing & {"out_of_memory", "storage_full", "nothing_to_undo"}


def test_events_survive_any_cut_of_the_stream() -> None:
    stream = 'event: start\ndata: {"id": "a"}\n\n: ping\n\nevent: delta\r\ndata: {"text": " größer 🙂"}\r\n\r\nevent: done\ndata: {"a":\ndata: 1}\n\n'
    found = run(
        """
        const { serverEvents } = await import("WEB/sse.js");
        const bytes = new TextEncoder().encode(data);
        const all = [];
        for (let size = 1; size <= bytes.length; size++) {
          const parts = [];
          for (let at = 0; at < bytes.length; at += size) parts.push(bytes.subarray(at, at + size));
          const events = [];
          for await (const event of serverEvents((async function* () { yield* parts })())) events.push(event);
          all.push(events);
        }
        give(all);
        """,
        stream,
    )
    expected = [{"event": "start", "data": {"id": "a"}}, {"event": "delta", "data": {"text": " größer 🙂"}}, {"event": "done", "data": {"a": 1}}]
    assert all(events == expected for events in found)


def test_modules_parse_and_name_only_what_exists() -> None:
    """Each module can be linked: every import names a file and an export."""
    run('for (const name of data) if (name !== "theme.js") { const found = await import("WEB/" + name).catch((error) => error); '
        'if (found instanceof SyntaxError || found?.code === "ERR_MODULE_NOT_FOUND") throw new Error(name + ": " + found); } give(1);',
        sorted(path.name for path in (WEB / "js").glob("*.js")))  # fmt: skip
