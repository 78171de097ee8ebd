"""Browser flows of `lisaseg annotate`: draw, save, come back, and what happens when something goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from tests.web.desk import Desk
from tests.web.project import Hand, Project, save, share

pytestmark = pytest.mark.web
Sit = Callable[..., Desk]


def test_draw_erase_polygon_undo_save_and_come_back(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--no-model"))
    hand = Hand(one)
    assert one.page.locator("#propose").is_hidden() and one.page.is_disabled("#save")
    one.page.fill("#text", "what purrs")
    hand.size(20)
    bare = one.pixels()
    hand.stroke((60, 100), (260, 100))
    assert one.changed(bare) > 0.02, "the stroke is seen"
    drawn = share(one)
    assert drawn == pytest.approx(100 * (200 * 20 + np.pi * 100) / (451 * 300), abs=0.1)
    one.page.click("#eraser")
    hand.stroke((160, 60), (160, 140))
    erased = share(one)
    assert erased == pytest.approx(drawn - 100 * 400 / (451 * 300), abs=0.1)
    hand.polygon((100, 150), (300, 150), (300, 250), (100, 250))
    filled = share(one)
    assert filled == pytest.approx(erased + 100 * 20000 / (451 * 300), abs=0.3)
    hand.polygon((150, 180), (200, 180), (200, 220), (150, 220), close="Shift+Enter")
    assert share(one) == pytest.approx(filled - 100 * 2000 / (451 * 300), abs=0.2)
    one.page.keyboard.press("Control+z")
    assert share(one) == filled
    one.page.keyboard.press("Control+z")
    one.page.click("#undo")
    assert share(one) == drawn
    one.page.keyboard.press("Control+y")
    one.page.click("#redo")
    assert share(one) == filled and one.text("#status") == "Not saved"
    save(one)
    (sample,) = project.samples()
    assert sample.queries[0].text == "what purrs" and 100 * sample.queries[0].masks[0].mean() == pytest.approx(filled, abs=0.06)
    mask = sample.queries[0].masks[0]
    assert mask[100, 70] and mask[200, 200] and not mask[100, 160] and not mask[10, 10] and not mask[120, 70]
    before = project.path.read_bytes()
    seen = one.pixels()
    one.page.reload()
    hand = Hand(one)
    assert one.page.input_value("#text") == "what purrs" and share(one) == filled and one.text("#status") == "Saved"
    one.page.mouse.move(2, 2)
    assert one.changed(seen) < 0.01 and project.path.read_bytes() == before
    assert "1 sample" in one.text(".entry >> nth=0") and one.text("#done") == "1 of 3"
    one.page.keyboard.press("PageDown")
    one.until("document.title.startsWith('coffee.jpg')")
    assert one.page.input_value("#text") == ""


def test_keys_write_in_a_text_and_act_beside_it(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--no-model"))
    hand = Hand(one)
    one.page.click("#more summary")
    hand.stroke((60, 100), (260, 100))
    drawn, title, typed = share(one), one.page.title(), "bephnixcq/[]+-=0129"
    for field in ("#text", "#target", "#explanation", "#rephrasings"):
        one.page.fill(field, "")
        one.page.focus(field)
        for key in (*typed, "PageDown", "PageUp", "PageDown", "Control+z", "Control+y", "Shift+PageDown"):
            one.page.keyboard.press(key)
        assert one.page.evaluate("document.activeElement.id") == field[1:] and one.page.input_value(field) == typed, field
        assert (one.page.title(), share(one), one.page.locator("#masks li").count()) == (title, drawn, 1), field
    assert one.page.get_attribute("#brush", "aria-pressed") == "true" and not one.page.is_checked("#nothing")
    before = one.page.input_value("#size")
    one.page.focus("#size")
    one.page.keyboard.press("PageUp")
    assert one.page.title() == title and one.page.input_value("#size") != before, "a slider keeps its keys"
    one.page.focus("#target")
    one.page.keyboard.press("Control+s")
    one.page.wait_for_selector("#status[data-state=done]")
    one.page.keyboard.press("Escape")
    one.page.keyboard.press("PageDown")
    one.until("document.title.startsWith('coffee.jpg')")


def test_a_proposal_is_corrected_and_replaced(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--stub-seconds", "0.3"))
    hand = Hand(one)
    assert one.page.is_disabled("#propose"), "there is nothing to ask yet"
    one.page.fill("#text", "the cat")
    one.page.click("#propose")
    one.page.wait_for_selector("#said:not([hidden])")
    assert one.text("#said") == "lisa-tiny: Turn 1: the cat [mask 1]." and share(one) > 0
    first = share(one)
    one.page.fill("#text", "the nose")
    one.page.press("#text", "Control+Enter")
    one.until("document.getElementById('said').textContent.includes('the nose')")
    assert one.page.locator("#masks li").count() == 1 and share(one) != first, "an untouched proposal makes room"
    hand.stroke((300, 250), (400, 250))
    one.page.fill("#text", "the ear")
    one.page.click("#propose")
    one.until("document.getElementById('said').textContent.includes('the ear')")
    assert one.page.locator("#masks li").count() == 2, "a corrected one stays"
    one.page.click("#masks li:nth-child(1) .away-with")
    one.page.keyboard.press("Control+z")
    assert one.page.locator("#masks li").count() == 2
    save(one)
    assert len(project.samples()[0].queries[0].masks) == 2
    one.refusals = True
    one.page.fill("#text", "!raise")
    one.page.click("#propose")
    one.page.wait_for_selector(".toast .problem")
    assert one.page.locator("#masks li").count() == 2 and one.page.input_value("#text") == "!raise", "a failure takes nothing away"


def test_several_masks_an_ignored_area_and_nothing_fits(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--no-model"))
    hand = Hand(one)
    one.page.fill("#text", "Which of them could see at night?")
    assert one.page.is_checked("#is-sentence"), "it ends like a sentence"
    hand.stroke((50, 50), (120, 50))
    one.page.click("#new-mask")
    hand.stroke((200, 200), (280, 200))
    one.page.click("#ignore")
    hand.stroke((50, 270), (400, 270))
    one.page.fill("#target", "eye, other eye")
    one.page.click("#more summary")
    one.page.fill("#explanation", "Cats see\nin the dark.")
    one.page.fill("#rephrasings", "What glows?\n\nWhat shines?")
    save(one)
    (sample,) = project.samples()
    query = sample.queries[0]
    assert len(query.masks) == 2 and query.is_sentence and query.name == "eye, other eye" and query.explanation == "Cats see in the dark."
    assert query.rephrasings == ("What glows?", "What shines?")
    assert all(mask[270, 200] == 255 for mask in query.masks) and query.masks[0][50, 80] == 1 and query.masks[1][50, 80] == 0
    one.page.click("#new-question")
    one.page.fill("#text", "the thing that barks")
    one.page.click("#save")
    one.page.wait_for_selector(".toast .problem")
    assert "say that nothing in the picture fits" in one.text(".toast")
    one.refusals = True
    one.page.check("#nothing")
    save(one)
    assert [len(sample.queries[0].masks) for sample in project.samples()] == [2, 0]
    assert one.page.locator(".question").count() == 2
    hand.stroke((50, 50), (120, 50))
    assert not one.page.is_checked("#nothing"), "who draws says that something fits"
    one.page.keyboard.press("Control+z")
    assert one.page.is_checked("#nothing") and one.text("#status") == "Saved"
    one.page.fill("#text", "something else")
    hand.stroke((50, 50), (120, 50))
    assert one.text("#discard") == "Revert"
    one.page.click("#discard")
    assert one.page.input_value("#text") == "the thing that barks" and one.page.is_checked("#nothing") and one.text("#status") == "Saved"
    one.page.click("#discard")
    one.page.click("#discard-dialog >> text=Delete >> nth=1")
    one.page.wait_for_selector(".question >> nth=1", state="detached")
    assert len(project.samples()) == 1


def test_nothing_is_lost_when_tab_or_server_dies(desk: Sit, project: Project) -> None:
    server = project.serve("--no-model")
    one = desk(server)
    one.refusals = True
    hand = Hand(one)
    one.page.fill("#text", "saved")
    hand.stroke((50, 50), (120, 50))
    save(one)
    hand.stroke((50, 150), (220, 150))
    one.page.click("#new-question")
    one.page.fill("#text", "never saved")
    hand.stroke((250, 50), (320, 50))
    drawn = share(one)
    one.page.wait_for_timeout(400)
    server.kill()
    one.page.click("#save")
    one.page.wait_for_selector(".toast .problem")
    assert one.page.input_value("#text") == "never saved" and share(one) == drawn
    port = server.url.rsplit(":", 1)[1]
    server = project.serve("--no-model", port=port)
    one.page.close()
    one.page = one.context.new_page()  # the tab died, too
    one.page.goto(server.url)
    hand = Hand(one)
    assert "unsaved" in one.text(".entry >> nth=0")
    assert one.page.locator(".question").count() == 2, "the page opens where something is not saved"
    one.page.click(".question >> nth=1")
    assert one.page.input_value("#text") == "never saved" and share(one) == drawn and one.text("#status") == "Not saved"
    save(one)
    one.page.click(".question >> nth=0")
    assert one.text("#status") == "Not saved", "the second stroke was not saved"
    save(one)
    assert sorted(sample.queries[0].text for sample in project.samples()) == ["never saved", "saved"]
    assert one.page.evaluate("Object.keys(localStorage).filter((name) => name.includes('annotate')).length") == 0


def test_somebody_else_changes_the_file(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--no-model"))
    one.refusals = True
    Hand(one).stroke((50, 50), (120, 50))
    one.page.fill("#text", "mine")
    save(one)

    def meanwhile(text: str) -> None:
        record = json.loads(project.path.read_text())
        project.path.write_text(json.dumps({**record, "text": text}) + "\n")

    for answer, winner in (("Keep mine", "mine, better: Keep mine"), ("Take theirs", "theirs")):
        meanwhile("theirs")
        one.page.fill("#text", f"mine, better: {answer}")
        one.page.click("#save")
        one.page.wait_for_selector("#changed-dialog[open]")
        assert "theirs" in one.text("#theirs") and json.loads(project.path.read_text())["text"] == "theirs"
        one.page.click(f"#changed-dialog >> text={answer}")
        one.page.wait_for_selector("#status[data-state=done]")
        assert one.page.input_value("#text") == winner and project.samples()[0].queries[0].text == winner
    one.page.fill("#text", "once more")
    project.path.write_text("")
    one.page.click("#save")
    one.page.wait_for_selector("#changed-dialog[open]")
    assert one.page.locator("#take-theirs").is_hidden()
    one.page.click("#keep-mine")
    one.page.wait_for_selector("#status[data-state=done]")
    assert project.samples()[0].queries[0].text == "once more"


def test_an_existing_file_and_strange_pictures(desk: Sit, project: Project) -> None:
    """Polygons and faulty lines of a file from elsewhere, a TIFF, a turned photo, a broken file."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(project.folder / "a-scan.tiff")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 60), (200, 30, 30)).save(project.folder / "b-turned.jpg", exif=exif)
    (project.folder / "c-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines = [
        {"id": "t", "image": "b-turned.jpg", "text": "the red one", "mask": {"polygons": [[10, 10, 50, 10, 50, 70, 10, 70]]}},
        {"id": "f", "image": "b-turned.jpg", "text": "", "mask": None},
    ]
    project.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = desk(project.serve("--no-model"))
    one.refusals = True
    hand = Hand(one, 80, 60)
    assert one.page.title().startswith("a-scan.tiff") and "80 by 60" in (one.page.get_attribute("#view", "aria-label") or "")
    hand.stroke((20, 20), (60, 20))
    assert share(one) > 0
    one.page.click(".entry >> nth=1")
    one.until("document.title.startsWith('b-turned.jpg')")
    Hand(one, 60, 80)
    assert share(one) == 50.0 and one.page.input_value("#text") == "the red one"
    one.page.click(".question >> nth=1")
    assert "field 'text'" in one.text("#problem") and one.page.is_disabled("#save")
    one.page.click(".question >> nth=0")
    one.page.fill("#text", "the red area")
    save(one)
    now = [json.loads(line) for line in project.path.read_text().splitlines()]
    assert now[0]["text"] == "the red area" and now[0]["mask"] == lines[0]["mask"] and now[1] == lines[1]
    one.page.click(".entry >> nth=2")
    one.page.wait_for_selector(".toast .problem")
    assert "c-broken.png" in one.text(".toast")
    assert one.page.title().startswith("b-turned.jpg")


def test_zoom_space_and_middle_button_move_and_do_not_draw(desk: Sit, project: Project) -> None:
    one = desk(project.serve("--no-model"))
    hand = Hand(one)
    one.page.mouse.move(*hand.at(220, 150))
    one.page.mouse.wheel(0, -600)
    zoomed = one.text("#zoom")
    one.page.focus("#view")
    one.page.keyboard.down(" ")
    seen = one.pixels()
    hand.stroke((220, 150), (300, 200))
    one.page.keyboard.up(" ")
    assert one.changed(seen) > 0.1 and one.text("#zoom") == zoomed and one.page.is_disabled("#undo"), "moved, not drawn"
    one.page.keyboard.press("0")
    assert one.text("#zoom") != zoomed
    hand.stroke((220, 150), (240, 150))
    full = one.pixels()
    one.page.keyboard.press("c")
    assert one.changed(full) > 0.002
    one.page.keyboard.press("c")
    assert share(one) > 0
