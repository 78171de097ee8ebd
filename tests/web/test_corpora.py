"""I and P through the page: every picture is taken or explained by its code, every prompt is shown as the text that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.corpora.images import ACCEPT, image_cases
from tests.corpora.instructions import instruction_cases
from tests.server.running import Server
from tests.server.sizes import size
from tests.web.desk import Desk, png

from lisaseg.tokenization import clean_instruction

pytestmark = pytest.mark.web
Sit = Callable[..., Desk]
TURNS = 20  # of one conversation


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("quick"), "--stub-seconds", "0")
    yield server
    assert server.stop() == 0


def test_pictures(desk: Sit, quick: Server) -> None:
    one = desk(quick)
    one.refusals = True
    for case in [case for case in image_cases() if len(case.data) < 25 * 2**20][:: size(12, 1)]:
        one.page.goto("about:blank")
        one.page.goto(f"{quick.url}/")
        one.until("document.getElementById('drop-limits').textContent.trim() !== ''")
        one.choose(case.filename, case.data, "image/png")
        if case.expected == ACCEPT:
            one.session()
            continue
        one.page.wait_for_selector(".problem[data-code]")
        code = one.page.get_attribute(".problem", "data-code")
        assert code in (case.expected, {"image_not_found": "corrupt_image"}.get(case.expected), "" if case.data else "missing_image"), (
            case.name,
            code,
        )
        assert one.text(".problem").count(".") >= 2, "what was wrong, and what to do"


def test_prompts(desk: Sit, quick: Server) -> None:
    one = desk(quick)
    texts = [case.text for case in instruction_cases() if case.expected == ACCEPT and len(case.text) <= 300]
    texts = [text for text in texts if text.encode("utf-8", "ignore").decode() == text and "\n" not in text][:: size(25, 1)]
    for n, text in enumerate(texts):
        if n % TURNS == 0:
            one.page.goto("about:blank")
            one.page.goto(f"{quick.url}/")
            one.choose("a.png", png(60, 90, seed=n))
            one.session()
        one.ask(text)
        shown = one.page.locator(".turn .ask p").last.text_content() or ""
        assert clean_instruction(shown) == clean_instruction(text), ascii(text)
        assert one.page.locator(".turn img, .turn b, .turn a, .turn script, .turn iframe, .turn svg[onload]").count() == 0, ascii(text)
