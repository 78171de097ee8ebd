"""Browser flows: keyboard alone, screen readers, small and dark screens, and the pictures of the page in the documentation."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.server.running import Server
from tests.web.desk import DESKTOP, PHONE, Desk, png

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.web
Sit = Callable[..., Desk]
TOUCH = {"viewport": PHONE, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def axe(desk: Desk) -> list[str]:
    """What axe-core finds wrong, with the element. (Run outside of the page's own world: its policy forbids scripts of others.)"""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(desk.page, options={"resultTypes": ["violations"]}).response
    return [f"{v['id']} ({v['impact']}): {[node['html'][:120] for node in v['nodes']][:3]}" for v in found["violations"]]


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, TOUCH], ids=["desktop", "dark", "phone"])
def test_axe_finds_nothing(desk: Sit, stub: Server, context: dict[str, Any]) -> None:
    one = desk(stub, **context)
    one.page.wait_for_selector(".tile")
    one.settle()
    assert not axe(one), "the first page"
    one.page.click(".tile >> nth=0")
    one.page.wait_for_selector(".facts")
    one.ask("what else? 123")
    if context is TOUCH:
        one.page.click("#layers-fold")
    one.settle()
    assert not axe(one), "the conversation"
    one.page.click(".turn >> nth=0 >> text=API")
    one.settle()
    assert not axe(one), "the window with the program"
    one.page.keyboard.press("Escape")
    one.page.click("#help")
    one.settle()
    assert not axe(one), "help"
    one.page.keyboard.press("Escape")
    one.page.click("#download")
    one.settle()
    assert not axe(one), "the menu"
    one.page.keyboard.press("Escape")
    one.refusals = True
    one.send("!raise")
    one.page.wait_for_selector(".problem")
    one.settle()
    assert not axe(one), "a failure"


def test_keyboard_alone(desk: Sit, stub: Server) -> None:
    """From the first page to a named, hidden, saved mask without a pointer."""
    one = desk(stub)
    one.page.wait_for_selector(".tile")

    def focused() -> str:
        return str(one.page.evaluate("document.activeElement.id || document.activeElement.className"))

    def tab_to(name: str, back: bool = False) -> None:
        for _ in range(60):
            one.page.keyboard.press("Shift+Tab" if back else "Tab")
            if name in focused():
                width = one.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                ring = one.page.evaluate("getComputedStyle(document.activeElement.closest('.field, label, input, button, a, div, ol')).borderColor")
                assert width != "none" or ring, f"{name} shows no focus"
                return
        raise AssertionError(f"Tab never reaches {name}")

    one.page.keyboard.press("Tab")
    assert focused() == "skip"
    tab_to("choose")
    tab_to("tile")
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector(".facts")
    assert focused() == "prompt"
    one.page.keyboard.type("what is this?")
    one.page.keyboard.press("Enter")
    one.page.wait_for_selector(".turn:nth-child(3) .facts")
    assert focused() == "prompt"
    tab_to("chip", back=True)
    assert one.page.locator(".layer.lit .number").inner_text() == "3", "reaching a word lights its mask"
    one.page.keyboard.press("Enter")
    assert one.page.locator('.chip[aria-pressed="true"]').count() == 1
    one.page.keyboard.press("Escape")
    tab_to("view", back=True)
    before = one.pixels()
    one.page.keyboard.press("1")
    assert not one.page.is_checked(".layer >> nth=0 >> .show")
    one.page.keyboard.press("1")
    fit = one.text("#zoom")
    one.page.keyboard.press("+")
    one.page.keyboard.press("ArrowLeft")
    assert one.text("#zoom") != fit
    one.page.keyboard.press("0")
    assert one.text("#zoom") == fit
    one.page.keyboard.down("c")
    assert one.changed(before) > 0.05
    one.page.keyboard.up("c")
    assert one.changed(before) < 0.001
    tab_to("name")
    one.page.keyboard.type("mine")
    one.page.keyboard.press("Enter")
    assert one.page.locator(".chip >> nth=0").inner_text().endswith("mine")
    one.page.keyboard.press("/")
    assert focused() == "prompt"
    one.page.keyboard.press("Shift+Enter")
    assert one.page.input_value("#prompt") == "\n", "a new line, not a question"


def test_screen_readers_hear_the_answer_once(desk: Sit, stub: Server) -> None:
    one = desk(stub)
    one.choose("a.png", png(60, 90))
    one.session()
    one.page.evaluate(
        """() => {
          window.heard = [];
          new MutationObserver(() => window.heard.push(document.getElementById("announce").textContent))
            .observe(document.getElementById("announce"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    one.ask("what is it")
    one.page.wait_for_timeout(200)
    heard = [text for text in one.page.evaluate("window.heard") if text]
    assert len(heard) == 1 and heard[0].startswith("Answer: Turn 1: what is it mask 1. mask 1 covers ")
    label = one.page.get_attribute(".chip", "aria-label") or ""
    assert label.startswith("mask 1, ") and label.endswith("% of the picture")
    assert "mask 1" in (one.page.get_attribute("#view", "aria-label") or "")
    assert one.page.locator("#turns").evaluate("e => e.closest('[aria-live]')") is None, "streamed words are not read one by one"


def test_a_phone(desk: Sit, stub: Server) -> None:
    """375 pixels: nothing sticks out, everything can be tapped, masks too."""
    one = desk(stub, **TOUCH)
    wide = """document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll("main:not([hidden]) *, header *")]
        .some((e) => e.offsetParent && !e.closest(".hidden, .turns, pre") && e.getBoundingClientRect().right > innerWidth + 1)"""
    one.page.wait_for_selector(".tile")
    assert not one.page.evaluate(wide)
    one.page.tap(".tile >> nth=0")
    one.page.wait_for_selector(".facts")
    one.settle()
    assert not one.page.evaluate(wide)
    room = one.page.evaluate("['stage', 'turns', 'composer'].map((name) => document.querySelector(`.${name}`).getBoundingClientRect().height)")
    assert room[0] >= 200 and room[1] >= 150 and room[2] < 160, room
    calm = one.pixels()
    one.page.tap(".chip >> nth=1")
    assert one.changed(calm) > 0.2, "a tap holds the mask"
    one.page.tap(".chip >> nth=1")
    one.page.tap("#layers-fold")
    assert one.page.locator(".layer").first.is_visible()
    one.page.tap("#layers-fold")
    one.ask("a question from the bus")
    small = one.page.evaluate(
        "[...document.querySelectorAll('button, a, input')].filter((e) => e.offsetParent && !e.closest('.hidden, .words') && e.type !== 'file')"
        ".map((e) => [e.id || e.className, e.getBoundingClientRect()]).filter(([, r]) => r.width < 24 && r.height < 24).map(([n]) => n)"
    )
    assert set(small) <= {"show"}, small


def test_colours_follow_the_system_and_the_switch(desk: Sit, stub: Server) -> None:
    one = desk(stub, color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    assert one.page.evaluate(theme) == "dark"
    one.page.emulate_media(color_scheme="light")
    one.until(f"{theme} === 'light'")
    one.page.click("#theme")
    one.page.emulate_media(color_scheme="dark")
    one.page.wait_for_timeout(200)
    assert one.page.evaluate(theme) == "light", "chosen: light"
    one.page.reload()
    assert one.page.evaluate(theme) == "light", "kept"
    one.page.click("#theme")
    assert one.page.evaluate(theme) == "dark"
    one.page.click("#theme")
    assert one.page.get_attribute("#theme", "aria-label") == "Colours: as the system"


def test_reduced_motion_is_obeyed(desk: Sit, stub: Server) -> None:
    one = desk(stub, reduced_motion="reduce")
    one.page.wait_for_selector(".tile")
    one.page.click(".tile >> nth=0")
    one.page.wait_for_selector(".facts")
    one.send("slowly please")
    one.page.wait_for_selector(".reply[data-state=streaming], .reply[data-state=waiting]")
    assert one.page.evaluate("document.getAnimations().length") == 0


def test_the_page_is_usable_soon_and_small(desk: Sit, stub: Server) -> None:
    one = desk(stub)
    one.page.wait_for_selector(".tile")
    sizes = one.page.evaluate("performance.getEntriesByType('resource').map((e) => e.decodedBodySize)")
    assert sum(sizes) < 600_000, "all of it, photos included"
    assert one.page.evaluate("window.shifts") < 0.1
    assert one.page.evaluate("performance.now()") < 5000


# --- pictures for the documentation ---------------------------------------------------------------------------------------------------------------

LIMIT, EXACT = 300_000, 56


def shot(one: Desk, name: str, folder: Path) -> None:
    """A screenshot in 256 colours: the commonest as they are, so that flat parts stay flat, the others near to what the photos need."""
    one.settle()
    image = Image.open(io.BytesIO(one.page.screenshot())).convert("RGB")
    common = [colour for _, colour in sorted(image.getcolors(image.width * image.height) or [], reverse=True)[:EXACT]]
    others = (image.quantize(256 - EXACT).getpalette() or [])[: 3 * (256 - EXACT)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(value for colour in common for value in colour), *others])
    file = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    assert len(file.getvalue()) < LIMIT, f"{name} has {len(file.getvalue())} bytes"
    (folder / name).write_bytes(file.getvalue())


def test_screenshots(desk: Sit, tiny: Server, tmp_path: Path) -> None:
    """With LISASEG_SCREENSHOTS=1 (`make screenshots`) they go to docs/images."""
    folder = ROOT / "docs/images" if os.environ.get("LISASEG_SCREENSHOTS") else tmp_path
    one = desk(tiny, viewport=DESKTOP)
    one.page.wait_for_selector(".tile")
    shot(one, "page-start.png", folder)
    one.page.click(".tile >> nth=0")
    one.session()
    one.page.wait_for_selector(".facts")
    one.ask("her skin", "segment")
    one.page.mouse.move(2, 2)
    shot(one, "page-desktop.png", folder)
    one.page.click(".turn >> nth=1 >> text=API")
    one.page.click("#api-tabs >> text=Python")
    shot(one, "page-api.png", folder)
    dark = desk(tiny, viewport=DESKTOP, color_scheme="dark")
    dark.page.click(".tile >> nth=2")
    dark.session()
    dark.page.wait_for_selector(".facts")
    dark.page.hover(".chip >> nth=0")
    shot(dark, "page-dark.png", folder)
    phone = desk(tiny, **TOUCH)
    phone.page.tap(".tile >> nth=1")
    phone.session()
    phone.page.wait_for_selector(".facts")
    shot(phone, "page-phone.png", folder)
    assert json.dumps(sorted(path.name for path in folder.glob("page-*.png")))
