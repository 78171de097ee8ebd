"""The page's drawing against numpy and pycocotools: run lengths that go back and forth, strokes and polygons to the pixel. Run by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.web.node import run
from tests.web.test_modules import MASKS

from lisaseg.formats import rle

pytestmark = pytest.mark.web
HEIGHT, WIDTH = 40, 56


def test_run_lengths_are_written_as_pycocotools_writes_them() -> None:
    big = np.zeros((3000, 4000), bool)
    big[7:2900, 11:3990] = True
    big[1000:1003, 2000:2100] = False
    encoded = [rle.encode(mask) for mask in [*MASKS, big]]
    found = run('const { Raster } = await import("WEB/raster.js"); give(data.map((one) => Raster.of(one).rle()));', encoded)
    assert found == encoded


def drawn(steps: list[dict[str, Any]]) -> list[np.ndarray]:
    """What the steps, each on an empty mask (or a full one, to erase), leave; bool (H, W)."""
    found = run(
        """
        const { Raster } = await import("WEB/raster.js");
        give(data.steps.map(({ points, radius, value }) => {
          const raster = new Raster(data.width, data.height);
          if (!value) raster.cells.fill(1);
          if (radius) raster.stroke(points, radius, value); else raster.polygon(points, value);
          return raster.rle();
        }));
        """,
        {"steps": steps, "width": WIDTH, "height": HEIGHT},
    )
    return [rle.decode(one) for one in found]


def centres() -> np.ndarray:
    """(H, W, 2), x and y of the centre of each pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x + 0.5, y + 0.5], -1)


def within(points: list[list[float]], radius: float) -> np.ndarray:
    """Pixels whose centre is at most `radius` from the line, and those under its points."""
    at, hit = centres(), np.zeros((HEIGHT, WIDTH), bool)
    for a, b in zip(np.array([points[0], *points]), np.array([*points, points[-1]]), strict=True):
        along = np.clip((at - a) @ (b - a) / max(1e-12, float((b - a) @ (b - a))), 0, 1)
        hit |= np.linalg.norm(at - a - along[..., None] * (b - a), axis=-1) <= radius
    for x, y in points:
        if 0 <= x < WIDTH and 0 <= y < HEIGHT:
            hit[int(y), int(x)] = True
    return hit


def test_strokes_are_exact_to_the_pixel() -> None:
    rng = np.random.default_rng(1)
    steps = []
    for k in range(200):  # on, across and beyond the border; dots, short and long lines, brushes down to one pixel
        points = (rng.random((int(rng.integers(1, 5)), 2)) * [WIDTH * 1.4, HEIGHT * 1.4] - [WIDTH * 0.2, HEIGHT * 0.2]).round(3)
        steps.append({"points": points.tolist(), "radius": float(rng.choice([0.5, 1.0, 2.5, 7.3, 30.0])), "value": k % 2})
    for step, mask in zip(steps, drawn(steps), strict=True):
        hit = within(step["points"], step["radius"])
        assert np.array_equal(mask, hit if step["value"] else ~hit), step


def even_odd(points: list[list[float]]) -> np.ndarray:
    at, inside = centres(), np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip([points[-1], *points], points, strict=False):
        if x0 != x1:
            crossed = ((x0 <= at[..., 0]) != (x1 <= at[..., 0])) & (y0 + (at[..., 0] - x0) * (y1 - y0) / (x1 - x0) <= at[..., 1])
            inside ^= crossed
    return inside


def test_polygons_are_exact_to_the_pixel() -> None:
    rng = np.random.default_rng(2)
    steps = [{"points": [[4.0, 4.0], [20.0, 4.0], [20.0, 10.0], [4.0, 10.0]], "radius": 0, "value": 1}]
    for k in range(200):
        points = (rng.random((int(rng.integers(3, 9)), 2)) * [WIDTH * 1.4, HEIGHT * 1.4] - [WIDTH * 0.2, HEIGHT * 0.2]).round(3)
        steps.append({"points": points.tolist(), "radius": 0, "value": k % 2})
    masks = drawn(steps)
    assert masks[0].sum() == 16 * 6
    for step, mask in zip(steps, masks, strict=True):
        hit = even_odd(step["points"])
        assert np.array_equal(mask, hit if step["value"] else ~hit), step


def test_a_draft_goes_to_the_server_and_back_unchanged() -> None:
    mask = rle.encode(MASKS[5])
    sample = {"id": "a", "revision": "r", "text": "t", "is_sentence": True, "target": ["a cup", "b"], "masks": [mask, mask], "ignore": mask,
              "explanation": "e", "rephrasings": ["x", "y"]}  # fmt: skip
    nothing = {**sample, "masks": None, "ignore": None}
    found = run(
        """
        const { fromSample, toBody, content, blank, History } = await import("WEB/annotate/draft.js");
        const history = new History();
        const steps = Array.from({ length: 300 }, (_, k) => ({ masks: [], ignore: null, nothing: false, active: k }));
        for (const step of steps.slice(0, -1)) history.push(step);
        let at = steps[steps.length - 1];
        let taken = 0;
        for (let before; (before = history.undo(at)); taken++) at = before;
        const oldest = at.active;
        for (let after; (after = history.redo(at)); ) at = after;
        const bodies = data.map((one) => toBody(fromSample(one), "p"));
        give({ bodies, empty: content(blank("a")) === content(blank("b")), taken, oldest, newest: at.active });
        """,
        [sample, nothing],
    )
    for body, wanted in zip(found["bodies"], [sample, nothing], strict=True):
        assert body == {"picture": "p", **{name: value for name, value in wanted.items() if name != "id"}}
    assert found["empty"] and found["newest"] == 299 and found["taken"] == 200 and found["oldest"] == 99
