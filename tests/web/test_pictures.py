"""Browser flows: how a picture comes to the page, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from tests.server.running import Server
from tests.web.desk import EXAMPLES, PASTE, Desk, encoded, png

pytestmark = pytest.mark.web
Sit = Callable[..., Desk]


def test_choose_a_file(desk: Sit, tiny: Server) -> None:
    one = desk(tiny)
    one.example("cat.jpg")
    one.page.wait_for_selector("#work:not([hidden])")
    assert one.session().startswith("ses_")
    assert one.page.title() == "cat.jpg - lisaseg"
    picture = np.asarray(Image.open(EXAMPLES / "cat.jpg"))
    shown = one.pixels()
    inside = shown[(shown[..., 3] > 0)][:, :3]
    assert np.abs(inside.mean(0) - picture.reshape(-1, 3).mean(0)).max() < 3


def test_drop_a_file(desk: Sit, stub: Server) -> None:
    one = desk(stub)
    one.drop("dropped.png", png(40, 60))
    one.session()
    assert one.page.title() == "dropped.png - lisaseg"
    one.drop("second.png", png(50, 60))
    one.until("document.title.startsWith('second.png')")


def test_paste_a_picture(desk: Sit, stub: Server) -> None:
    one = desk(stub)
    one.drop("image.png", png(40, 60), way=PASTE)
    one.session()
    assert one.page.title() == "image.png - lisaseg"


def test_an_example_answers_at_once_even_while_the_model_loads(start: Callable[..., Server], desk: Sit) -> None:
    """The recorded answer and its mask are there before the server could answer anything; a question asked then is answered when it can."""
    server = start("--dtype", "float32", engine="lisa", wait=False)
    one = desk(server)
    one.refusals = True  # "not ready yet"
    one.page.wait_for_selector(".tile")
    one.page.evaluate("window.clicked = 0; addEventListener('click', () => (window.clicked = performance.now()), { once: true, capture: true })")
    one.page.click(".tile >> nth=2")
    one.page.wait_for_selector(".facts")
    took = one.page.evaluate("performance.now() - window.clicked")
    assert took < 1000, f"{took:.0f} ms"
    assert one.sent("POST", "/messages") == 0
    assert "Recorded with lisa-tiny" in one.text(".facts")
    assert one.answers() == ["It is the cup [mask 1]."]
    assert one.page.locator(".layer").count() == 1
    one.ask("the table", seconds=90)
    assert len(one.answers()) == 2


def test_every_example_opens(desk: Sit, tiny: Server) -> None:
    one = desk(tiny)
    one.page.wait_for_selector(".tile")
    for k in range(one.page.locator(".tile").count()):
        one.page.click(f".tile >> nth={k}")
        one.session()
        one.page.wait_for_selector(".facts")
        masks = one.page.locator(".layer").count()
        assert masks == one.page.locator(".chip").count()
        assert masks or "nothing in the picture fits" in one.text(".turns")
        one.page.click("#home")
        one.page.wait_for_selector("#welcome:not([hidden])")


def bomb(side: int) -> bytes:
    """A small PNG that says it is huge; only its head is honest enough to be read."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(b"\0" * ((side // 8 + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "kind", "code"),
    [
        ("big.png", b"\x89PNG" + bytes(26 * 2**20), "image/png", "body_too_large"),
        ("bomb.png", bomb(13_000), "image/png", "image_too_large"),
        ("thin.png", png(2, 900), "image/png", "extreme_aspect_ratio"),
        ("notes.txt", b"no picture", "text/plain", "unsupported_format"),
        ("empty.png", b"", "image/png", "corrupt_image"),
    ],
)
def test_what_the_server_would_refuse_is_not_even_sent(desk: Sit, stub: Server, name: str, data: bytes, kind: str, code: str) -> None:
    one = desk(stub)
    one.until("document.getElementById('drop-limits').textContent.trim() !== ''")  # the limits are known
    one.choose(name, data, kind)
    assert one.page.get_attribute("#welcome-problem .problem", "data-code") == code
    message = one.text("#welcome-problem")
    assert name in message and message.count(".") >= 2, "what was wrong, and what to do"
    assert one.sent("POST", "/v1/images") == 0
    one.choose("fine.png", png(20, 30))
    one.session()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (png(200, 300)[:-500], "truncated_image"),
        (png(200, 300).replace(b"IDAT", b"IDAT?", 1), "corrupt_image"),
        (b"no picture", "unsupported_format"),
    ],
)
def test_what_the_server_refuses_is_explained(desk: Sit, stub: Server, data: bytes, code: str) -> None:
    one = desk(stub)
    one.refusals = True
    one.choose("odd.png", data)
    problem = one.page.wait_for_selector("#notes .problem")
    assert problem.get_attribute("data-code") == code
    assert "Choose another picture" in one.text("#notes") and "Request req_" in one.text("#notes")
    one.send("what is it?")
    one.page.wait_for_selector(".turn .problem")
    assert "Another picture" in one.text(".turn .problem")


def test_rotated_photos_stand_upright_and_their_masks_fit(desk: Sit, tiny: Server) -> None:
    """EXIF orientation 6: stored lying, shown standing, by browser and server alike."""
    photo = Image.open(EXAMPLES / "cat.jpg").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    one = desk(tiny)
    one.choose("turned.jpg", encoded(photo.rotate(90, expand=True), "JPEG", exif=exif, quality=92), "image/jpeg")
    one.session()
    shown = one.pixels()
    rows, columns = np.nonzero(shown[..., 3].any(1))[0], np.nonzero(shown[..., 3].any(0))[0]
    assert (columns[-1] - columns[0]) / (rows[-1] - rows[0]) == pytest.approx(photo.width / photo.height, rel=0.02)
    one.ask("the cat")
    name, data = one.download(".layer .save")
    assert name == "the-cat.png"
    mask = np.asarray(Image.open(io.BytesIO(data)))
    assert mask.shape == (photo.height, photo.width) and set(np.unique(mask)) <= {0, 255}
    assert mask[photo.height // 2, photo.width // 3] == 255, "the cat sits left of the middle"


def test_pictures_that_the_browser_cannot_show_still_work(desk: Sit, tiny: Server) -> None:
    one = desk(tiny)
    one.choose("scan.tif", encoded(Image.open(EXAMPLES / "coffee.jpg"), "TIFF"), "image/tiff")
    one.session()
    assert "cannot show" in one.text("#notes")
    one.ask("the cup")
    _, data = one.download(".layer .save")
    assert Image.open(io.BytesIO(data)).size == (600, 400)
    assert one.page.locator(".layer").count() == 1
    assert len(np.unique(one.pixels()[..., :3].reshape(-1, 3), axis=0)) > 3


def test_the_first_of_many_pages_is_used_and_said(desk: Sit, stub: Server) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    one = desk(stub)
    one.choose("film.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100), "image/gif")
    one.session()
    one.page.wait_for_selector("#notes .note")
    assert "first" in one.text("#notes")
    assert one.pixels()[..., 0].max() == 255


def test_upload_shows_its_progress(desk: Sit, stub: Server) -> None:
    """On a slow line: the picture is there at once, the bar moves, and a question asked meanwhile waits for it."""
    one = desk(stub)
    line = one.context.new_cdp_session(one.page)
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", {"offline": False, "latency": 20, "downloadThroughput": -1, "uploadThroughput": 150_000})
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)), "PNG")
    one.choose("noise.png", data)
    one.page.wait_for_selector("#upload:not([hidden])")
    assert one.pixels().any()
    shares = set()
    one.send("what is it?")
    while one.page.is_visible("#upload"):
        shares.add(one.page.evaluate("document.getElementById('upload-bar').value"))
        one.page.wait_for_timeout(100)
    assert len(shares) >= 3 and max(shares) <= 1
    one.page.wait_for_selector(".facts")
