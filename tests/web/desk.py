"""A person at the page: what they can do, and what they see."""

from __future__ import annotations

import base64
import io
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DESKTOP, PHONE = {"width": 1360, "height": 860}, {"width": 375, "height": 667}
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("home").dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""
PASTE = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
}"""
SHIFTS = "window.shifts = 0; new PerformanceObserver((list) => list.getEntries().forEach((e) => { if (!e.hadRecentInput) window.shifts += e.value }))"


class Desk:
    """The page in a browser profile of its own.

    Attributes:
        page: playwright's page.
        requests: (method, path) of all requests to the server so far.
        refusals: whether the test makes the server refuse; then the browser's own lines about that are no errors.
    """

    def __init__(self, browser: Any, url: str, path: str = "/", **context: Any) -> None:
        self.url, self.refusals = url, False
        self.requests: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.abroad: list[str] = []
        self.context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **context})
        self.context.set_default_timeout(20_000)
        self.context.add_init_script(SHIFTS + '.observe({ type: "layout-shift", buffered: true })')
        self.page = self.context.new_page()
        self.page.on("request", self._seen)
        self.page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.errors.append(line.text))
        self.page.goto(url + path)

    def _seen(self, request: Any) -> None:
        if request.url.startswith(self.url):
            self.requests.append((request.method, request.url.removeprefix(self.url)))
        elif not request.url.startswith(("blob:", "data:")):
            self.abroad.append(request.url)

    def close(self) -> None:
        """Leave; see the fixture `desk` for what is checked."""
        self.context.close()
        left = [line for line in self.errors if not (self.refusals and line.startswith("Failed to load resource"))]
        assert not left, left
        assert not self.abroad, self.abroad

    # --- doing -------------------------------------------------------------------------------------------------------------------------------------

    def choose(self, name: str, data: bytes, kind: str = "image/png") -> None:
        """Pick a file."""
        if len(data) < 2**20:
            self.page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})
            return
        with tempfile.TemporaryDirectory() as folder:  # large ones would go through playwright as text
            path = Path(folder) / name
            path.write_bytes(data)
            self.page.set_input_files("#file", path)
            self.page.wait_for_timeout(300)

    def example(self, name: str = "coffee.jpg") -> None:
        """Pick one of the example photos as a file of one's own."""
        self.choose(name, (EXAMPLES / name).read_bytes(), "image/jpeg")

    def drop(self, name: str, data: bytes, kind: str = "image/png", way: str = DROP) -> None:
        """Drop a file on the page, or paste it."""
        self.page.evaluate(way, [name, kind, base64.b64encode(data).decode()])

    def ask(self, text: str, mode: str | None = None, seconds: float = 30) -> None:
        """Ask and wait for the answer."""
        before = self.page.locator(".turn").count()
        self.send(text, mode)
        self.page.wait_for_selector(f".turn:nth-child({before + 1}) .facts", timeout=1000 * seconds)

    def send(self, text: str, mode: str | None = None) -> None:
        """Ask, and do not wait."""
        if mode:
            self.page.check(f"input[name=mode][value={mode}]", force=True)
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def download(self, click: str) -> tuple[str, bytes]:
        """Name and content of the file that a click saves."""
        with self.page.expect_download() as found:
            self.page.click(click)
        return found.value.suggested_filename, Path(found.value.path()).read_bytes()

    # --- seeing ------------------------------------------------------------------------------------------------------------------------------------

    def text(self, selector: str) -> str:
        """The visible text, white space joined."""
        return " ".join(self.page.inner_text(selector).split())

    def answers(self) -> list[str]:
        """The words of all answers, chips as "[mask 1]"."""
        plain = """(all) => all.map((words) => [...words.childNodes]
            .map((node) => node.className?.includes?.("chip") ? `[${node.lastChild.textContent}]` : node.textContent).join(""))"""
        return list(self.page.locator(".words").evaluate_all(plain))

    def settle(self) -> None:
        """Until nothing fades or moves."""
        self.page.wait_for_timeout(420)

    def pixels(self) -> np.ndarray:
        """What the stage shows, uint8 (H, W, 4)."""
        self.settle()
        data = self.page.evaluate('document.getElementById("canvas").toDataURL("image/png")')
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGBA"))

    def changed(self, before: np.ndarray) -> float:
        """Share of the stage's pixels that look different now."""
        now = self.pixels()
        return float((np.abs(now.astype(int) - before).sum(2) > 12).mean())

    def point_of_badge(self, number: int = 1) -> tuple[float, float]:
        """A point of the window that lies on a mask, away from its number."""
        area = self.page.locator("#view").bounding_box()
        for y in np.linspace(0.15, 0.85, 15):
            for x in np.linspace(0.15, 0.85, 15):
                point = area["x"] + x * area["width"], area["y"] + y * area["height"]
                self.page.mouse.move(*point)
                tip = self.page.locator("#tip")
                if tip.is_visible() and tip.inner_text().startswith(f"{number} "):
                    return point
        raise AssertionError(f"mask {number} is nowhere")

    def until(self, condition: str, seconds: float = 20) -> None:
        """Wait for an expression in the page. (playwright's own wait_for_function needs eval, which the policy of the page forbids.)"""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"never: {condition}"
            self.page.wait_for_timeout(50)

    def session(self) -> str:
        """The session that the address names."""
        self.until("location.hash.includes('s=ses_')")
        return re.search(r"s=(ses_\w+)", self.page.url)[1]  # type: ignore[index]

    def sent(self, method: str, ending: str) -> int:
        """How many requests of a kind there were."""
        return sum(1 for m, path in self.requests if m == method and path.endswith(ending))


def png(height: int, width: int, seed: int = 0, **options: Any) -> bytes:
    """A PNG of smooth noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return encoded(small.resize((width, height), Image.Resampling.BICUBIC), "PNG", **options)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
