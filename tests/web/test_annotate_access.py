"""`lisaseg annotate` with the keys alone, for screen readers, on small and dark screens, and its pictures in the documentation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.running import EXAMPLES
from tests.web.desk import DESKTOP, Desk
from tests.web.project import Hand, Project, save, share
from tests.web.test_access import ROOT, TOUCH, axe, shot

pytestmark = pytest.mark.web
Sit = Callable[..., Desk]


def test_keys_alone(desk: Sit, project: Project) -> None:
    """From the list of pictures to a saved sample with a drawn, erased and polygon mask, and a null mask, without a pointer."""
    one = desk(project.serve("--no-model"))
    Hand(one)
    keys = one.page.keyboard

    def tab_to(name: str) -> None:
        for _ in range(80):
            keys.press("Tab")
            if name in one.page.evaluate("document.activeElement.id || document.activeElement.className"):
                return
        raise AssertionError(f"Tab never reaches {name}")

    keys.press("Tab")
    assert one.page.evaluate("document.activeElement.className") == "skip"
    tab_to("entry")
    keys.press("Tab")
    keys.press("Enter")
    one.until("document.title.startsWith('coffee.jpg')")
    keys.press("/")
    keys.type("the thing one drinks from")
    keys.press("Escape")
    assert one.page.evaluate("document.activeElement.id") == "view"
    keys.press("b")
    keys.press("ArrowLeft")
    keys.press("Space")
    dab = share(one)
    assert dab > 0
    for _ in range(6):
        keys.press("Shift+ArrowRight")
    keys.press("Space")
    assert share(one) > 1.5 * dab
    keys.press("e")
    keys.press("Space")
    assert share(one) == pytest.approx(dab, abs=0.02)
    keys.press("n")
    keys.press("p")
    for way in ("ArrowUp", "ArrowRight", "ArrowDown"):
        for _ in range(4):
            keys.press(f"Shift+{way}")
        keys.press("Space")
    keys.press("Enter")
    assert one.page.locator("#masks li").count() == 2 and share(one, 2) > 0.3
    keys.press("Backspace")
    assert share(one, 2) == 0 or one.page.locator("#masks li").count() == 1
    keys.press("1")
    assert one.page.get_attribute("#masks li:nth-child(1) .pick", "aria-pressed") == "true"
    save(one)
    keys.press("q")
    assert one.page.evaluate("document.activeElement.id") == "text"
    keys.type("a whale")
    one.page.focus("#view")
    keys.press("x")
    save(one)
    assert [len(sample.queries[0].masks) for sample in project.samples()] == [1, 0]
    heard = one.text("#announce")
    assert heard == "Saved."


@pytest.mark.parametrize("context", [{}, {"color_scheme": "dark"}, TOUCH], ids=["desktop", "dark", "phone"])
def test_axe_finds_nothing(desk: Sit, project: Project, context: dict[str, Any]) -> None:
    record = {"id": "f", "image": "coffee.jpg", "text": "", "mask": None}
    project.path.write_text(json.dumps(record) + "\n")
    one = desk(project.serve("--stub-seconds", "0.05"), **context)
    Hand(one)
    one.page.fill("#text", "the cat")
    one.page.click("#propose")
    one.page.wait_for_selector("#said:not([hidden])")
    one.page.click("#more summary")
    one.settle()
    assert not axe(one), "a sample"
    one.page.click("#help")
    one.settle()
    assert not axe(one), "help"
    one.page.keyboard.press("Escape")
    one.page.click("#nothing")
    one.page.click("#save")
    one.page.wait_for_selector("#status[data-state=done]")
    one.page.click("#discard")
    one.settle()
    assert not axe(one), "the question before deleting"
    one.page.keyboard.press("Escape")
    one.page.click(".entry >> nth=1")
    one.page.wait_for_selector("#problem:not([hidden])")
    one.settle()
    assert not axe(one), "a faulty line"


def test_a_phone(desk: Sit, project: Project) -> None:
    """375 pixels: nothing sticks out, everything can be tapped, and a finger draws."""
    one = desk(project.serve("--no-model"), **TOUCH)
    hand = Hand(one)
    wide = """document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll("main *, header *")]
        .some((e) => e.offsetParent && !e.closest(".hidden, .entries") && e.getBoundingClientRect().right > innerWidth + 1)"""
    assert not one.page.evaluate(wide)
    room = one.page.evaluate("['#view', '.panel-body'].map((name) => document.querySelector(name).getBoundingClientRect().height)")
    assert room[0] >= 200 and room[1] >= 150, room
    one.page.touchscreen.tap(*hand.at(200, 150))
    assert share(one) > 0
    one.page.fill("#text", "what purrs")
    one.page.tap("#save")
    one.page.wait_for_selector("#status[data-state=done]")
    assert project.samples()[0].queries[0].masks[0][150, 200]
    small = one.page.evaluate(
        "[...document.querySelectorAll('button, a, input, summary')].filter((e) => e.offsetParent && !e.closest('.hidden'))"
        ".map((e) => [e.id || e.className, e.getBoundingClientRect()]).filter(([, r]) => r.width < 24 && r.height < 24).map(([n]) => n)"
    )
    assert set(small) <= {"todo", "is-sentence", "nothing"}, small


def test_screenshots(desk: Sit, project: Project, tmp_path: Path) -> None:
    """With LISASEG_SCREENSHOTS=1 (`make screenshots`) they go to docs/images."""
    folder = ROOT / "docs/images" if os.environ.get("LISASEG_SCREENSHOTS") else tmp_path
    for name in ("astronaut.jpg", "photographer.jpg"):
        shutil.copy(EXAMPLES / name, project.folder)
    server = project.serve("--dtype", "float32", engine="lisa")
    one = desk(server, viewport=DESKTOP)
    Hand(one)
    one.page.click(".entry >> nth=1")
    one.until("document.title.startsWith('cat.jpg')")

    def propose(text: str, wanted: Desk = one) -> None:
        wanted.page.fill("#text", text)
        wanted.page.click("#propose")
        wanted.page.wait_for_selector("#said:not([hidden])", timeout=60_000)

    propose("the animal that purrs")
    one.page.fill("#target", "cat")
    save(one)
    one.page.click(".entry >> nth=2")
    one.until("document.title.startsWith('coffee.jpg')")
    hand = Hand(one, 640, 427)
    one.page.fill("#text", "Which part of the picture would stain a shirt?")
    hand.polygon((232, 150), (250, 122), (300, 108), (360, 118), (385, 150), (360, 178), (300, 188), (255, 175))
    save(one)
    one.page.click("#new-question")
    propose("the thing one drinks from")
    one.page.fill("#target", "cup")
    one.page.click("#eraser")
    hand.size(36)
    hand.stroke((456, 70), (450, 130), (444, 180), (434, 225))
    hand.stroke((366, 332), (400, 338), (428, 300), (428, 262), (398, 264), (380, 296), (396, 312))
    hand.size(24)
    one.page.mouse.move(*hand.at(345, 280))
    shot(one, "annotate-desktop.png", folder)
    dark = desk(server, viewport=DESKTOP, color_scheme="dark")
    dark.page.click(".entry >> nth=0")
    dark.until("document.title.startsWith('astronaut.jpg')")
    hand = Hand(dark, 512, 512)
    propose("what she wears", dark)
    dark.page.click("#ignore")
    hand.size(26)
    hand.stroke((60, 40), (40, 200), (20, 400))
    dark.page.click("#more summary")
    dark.page.fill("#explanation", "A pressure suit keeps an astronaut alive if the cabin loses its air.")
    dark.page.mouse.move(2, 2)
    shot(dark, "annotate-dark.png", folder)
    phone = desk(server, **TOUCH)
    Hand(phone)
    phone.page.tap(".entry >> nth=1")
    phone.until("document.title.startsWith('cat.jpg')")
    Hand(phone)
    shot(phone, "annotate-phone.png", folder)
