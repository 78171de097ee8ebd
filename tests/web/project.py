"""A project of `lisaseg annotate` in a folder, and a hand on its page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.server.running import EXAMPLES, Server
from tests.web.desk import Desk

from lisaseg.formats.jsonl import read_jsonl
from lisaseg.formats.jsonl_check import check_jsonl

MARGIN = 14  # of a picture that fits, viewport.js


class Project:
    """A folder with the example photos, served."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("cat.jpg", "coffee.jpg", "rocket.jpg")) -> None:
        self.folder = folder / "photos"
        self.folder.mkdir()
        for name in names:
            shutil.copy(EXAMPLES / name, self.folder)
        self.path = self.folder / "annotations.jsonl"
        self.state = folder / "state"
        self.server: Server | None = None

    def serve(self, *options: str, port: str = "0", **more: Any) -> Server:
        self.server = Server(self.state, *options, command=("annotate", str(self.folder), "--port", port), **more)
        return self.server

    def samples(self) -> list[Any]:
        assert not [fault for _, faults in check_jsonl(self.path) for fault in faults]
        return list(read_jsonl(self.path))


class Hand:
    """A hand on the picture, in its pixels."""

    def __init__(self, one: Desk, width: int = 451, height: int = 300) -> None:
        self.one, self.width, self.height = one, width, height
        one.page.wait_for_selector("#view[aria-busy=false]")
        one.page.wait_for_selector(".pick")

    def at(self, x: float, y: float) -> tuple[float, float]:
        box = self.one.page.locator("#view").bounding_box()
        scale = min((box["width"] - 2 * MARGIN) / self.width, (box["height"] - 2 * MARGIN) / self.height, 8)
        return box["x"] + (box["width"] - self.width * scale) / 2 + x * scale, box["y"] + (box["height"] - self.height * scale) / 2 + y * scale

    def stroke(self, *points: tuple[float, float]) -> None:
        mouse = self.one.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=4)
        mouse.up()

    def polygon(self, *points: tuple[float, float], close: str = "Enter") -> None:
        self.one.page.click("#polygon")
        for point in points:
            self.one.page.mouse.click(*self.at(*point))
        self.one.page.keyboard.press(close)

    def size(self, pixels: int) -> None:
        self.one.page.evaluate(f"(s => {{ s.value = {pixels}; s.dispatchEvent(new Event('input')) }})(document.getElementById('size'))")


def share(one: Desk, mask: int = 1) -> float:
    """What the list says that a mask covers, in per cent."""
    return float(one.page.inner_text(f"#masks li:nth-child({mask}) .share").removesuffix(" %").replace("draw it", "0"))


def save(one: Desk) -> None:
    one.page.keyboard.press("Control+s")
    one.page.wait_for_selector("#status[data-state=done]")
