"""Browser flows: a conversation, from the first question to what is left of it after a restart of the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.published_folder import random_model, write_folder
from tests.server.running import KEYS, Server
from tests.web.desk import Desk, png

pytestmark = pytest.mark.web
Sit = Callable[..., Desk]


def opened(desk: Sit, server: Server, name: str = "coffee.jpg", **context: object) -> Desk:
    one = desk(server, **context)
    one.example(name)
    one.session()
    return one


def test_three_turns_about_one_picture(desk: Sit, tiny: Server) -> None:
    """Masks add up, the picture is sent and read once, and each question knows those before it."""
    before = tiny.metric('lisaseg_encoder_runs_total{encoder="image"}')
    one = opened(desk, tiny)
    for question in ("the thing one drinks from", "the table", "the spoon"):
        one.ask(question)
    assert one.sent("POST", "/v1/images") == 1
    assert tiny.metric('lisaseg_encoder_runs_total{encoder="image"}') - before <= 1
    assert one.page.locator(".layer").count() == one.page.locator(".chip").count() >= 2
    numbers = [int(text) for text in one.page.locator(".layer .number").all_inner_texts()]
    assert numbers == list(range(1, len(numbers) + 1)), "numbers count through the conversation"
    turns = tiny.http.get(f"/v1/sessions/{one.session()}").json()["turns"]
    assert [turn["prompt"] for turn in turns] == ["the thing one drinks from", "the table", "the spoon"]


def test_the_text_streams(desk: Sit, stub: Server) -> None:
    """Words appear before the answer is complete; the page does not jump while they do."""
    one = desk(stub)
    one.choose("a.png", png(60, 90))
    one.session()
    one.page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const words = document.querySelector(".reply[data-state=streaming] .words");
            if (words) window.seen.push(words.textContent);
          }).observe(document.getElementById("turns"), { childList: true, subtree: true, characterData: true });
        }"""
    )
    one.page.evaluate("window.shifts = 0")
    one.ask("one two three four five six")
    seen = one.page.evaluate("window.seen")
    assert len({text for text in seen if text}) >= 3
    assert one.page.evaluate("window.shifts") < 0.1
    assert one.answers() == ["Turn 1: one two three four five six [mask 1]."]


@pytest.mark.parametrize(("mode", "tag"), [("segment", "Segment"), ("explain", "Segment + why"), ("text", "Answer")])
def test_modes(desk: Sit, tiny: Server, mode: str, tag: str) -> None:
    one = opened(desk, tiny)
    one.ask("the cup", mode)
    assert one.text(".turn .tag") == tag
    assert tiny.http.get(f"/v1/sessions/{one.session()}").json()["turns"][0]["mode"] == mode
    assert one.page.locator(".layer").count() == (0 if mode == "text" else 1)
    if mode == "text":
        assert "no masks" in one.text(".facts")
    one.page.reload()
    one.page.wait_for_selector(".facts")
    assert one.page.is_checked(f"input[name=mode][value={mode}]"), "the choice is kept"


def test_a_model_with_more_modes_shows_them(desk: Sit, stub: Server, start: Callable[..., Server], tmp_path: Path) -> None:
    """LISA++'s, also when the page was there before the model; a choice that another model does not have falls back to Auto."""
    folder = write_folder(tmp_path / "LISA", random_model(), mm_use_im_start_end=False)
    server = start("-m", str(folder), "--dtype", "float32", engine="lisa", wait=False)
    one = desk(server)
    one.refusals = True  # /readyz says 503 while the model loads
    one.page.wait_for_selector("input[value=explain_instances]", state="attached")
    assert one.page.locator(".modes span").all_inner_texts()[4:] == ["Each one", "Each one + why", "Step by step"]
    one.choose("a.png", png(60, 90))
    one.ask("the cups", "instances")
    assert one.text(".turn .tag") == "Each one"
    assert server.http.get(f"/v1/sessions/{one.session()}").json()["turns"][0]["mode"] == "instances"
    one.page.reload()
    one.page.wait_for_selector("input[value=instances]:checked", state="attached")
    other = opened(desk, stub)
    other.page.evaluate("localStorage.setItem('lisaseg.mode', 'instances')")
    other.page.reload()
    other.page.wait_for_selector("input[value=auto]:checked", state="attached")
    assert other.page.locator("input[name=mode]").count() == 4


def test_retry_asks_the_last_question_again(desk: Sit, stub: Server) -> None:
    one = opened(desk, stub)
    one.ask("the cup")
    one.page.fill(".layer .name", "my cup")
    first = one.page.locator(".turn .facts").inner_text()
    one.page.click(".turn-tools >> text=Retry")
    one.page.wait_for_selector(".reply[data-state=done] .facts")
    assert one.page.locator(".turn").count() == one.page.locator(".layer").count() == 1
    assert one.sent("POST", "/retry") == 1
    assert len(stub.http.get(f"/v1/sessions/{one.session()}").json()["turns"]) == 1
    assert one.page.input_value(".layer .name") == "", "the new mask has not the old one's name"
    assert first


def test_stop_ends_the_answer_and_leaves_the_conversation_as_it_was(start: Callable[..., Server], desk: Sit) -> None:
    server = start("--stub-seconds", "4")
    one = desk(server)
    one.choose("a.png", png(60, 90))
    one.session()
    one.send("this takes four seconds")
    one.page.wait_for_selector(".reply[data-state=streaming]")
    one.page.click("#stop")
    one.page.wait_for_selector(".reply[data-state=stopped]")
    assert "Stopped" in one.text(".reply")
    assert server.http.get(f"/v1/sessions/{one.session()}").json()["turns"] == []
    one.send("and again")
    one.page.wait_for_selector(".turn:nth-child(2) .reply[data-state=streaming]")
    one.page.keyboard.press("Escape")
    one.page.wait_for_selector(".turn:nth-child(2) .reply[data-state=stopped]")
    assert one.page.locator("#stop").is_hidden()
    one.refusals = True  # the session may be busy for another moment: the page waits
    one.page.click(".turn:nth-child(2) .turn-tools >> text=Retry")
    one.page.wait_for_selector(".turn:nth-child(2) .facts")


def test_undo_gives_the_question_back(desk: Sit, stub: Server) -> None:
    one = opened(desk, stub)
    one.ask("the cup")
    one.ask("the table")
    one.page.click("#undo")
    one.until("document.querySelectorAll('.turn').length === 1")
    assert one.page.input_value("#prompt") == "the table"
    assert one.page.locator(".layer").count() == 1
    assert len(stub.http.get(f"/v1/sessions/{one.session()}").json()["turns"]) == 1
    one.page.fill("#prompt", "")
    one.page.click("#undo")
    one.until("document.querySelectorAll('.turn').length === 0")
    assert one.page.is_disabled("#undo")


def test_new_chat_keeps_the_picture(desk: Sit, tiny: Server) -> None:
    one = opened(desk, tiny)
    one.ask("the cup")
    old = one.session()
    one.page.click("#new-chat")
    one.until(f"!location.hash.includes('{old}') && location.hash.includes('ses_')")
    assert one.page.locator(".turn").count() == one.page.locator(".layer").count() == 0
    assert one.sent("POST", "/v1/images") == 1, "the picture is not sent again"
    assert tiny.http.get(f"/v1/sessions/{one.session()}").json()["turns"] == []
    one.page.go_back()
    one.page.wait_for_selector(".facts")
    assert one.session() == old and one.answers() == ["It is the cup [mask 1]."]


def test_a_reload_loses_nothing(desk: Sit, tiny: Server) -> None:
    one = opened(desk, tiny)
    one.ask("the cup")
    one.ask("the table")
    one.page.fill(".layer >> nth=0 >> .name", "espresso")
    one.page.uncheck(".layer >> nth=1 >> .show")
    words, picture = one.answers(), one.pixels()
    one.page.wait_for_timeout(300)
    one.page.reload()
    one.page.wait_for_selector(".turn:nth-child(2) .facts")
    assert one.answers() == words
    assert one.page.input_value(".layer >> nth=0 >> .name") == "espresso"
    assert not one.page.is_checked(".layer >> nth=1 >> .show")
    assert one.changed(picture) < 0.001
    one.ask("the spoon")
    assert len(tiny.http.get(f"/v1/sessions/{one.session()}").json()["turns"]) == 3


def test_another_browser_finds_the_conversation_on_the_server(desk: Sit, stub: Server) -> None:
    """With the address alone, nothing kept locally: picture, words and masks come from the server."""
    one = opened(desk, stub)
    one.ask("the cup")
    two = desk(stub, f"/#s={one.session()}")
    two.page.wait_for_selector(".facts")
    assert two.answers() == one.answers()
    assert two.page.locator(".layer").count() == 1
    assert two.sent("POST", "/v1/images") == 0


def test_a_restart_of_the_server_loses_nothing(desk: Sit, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The page says that the server is away, waits with a question until it is back, and goes on."""
    state = tmp_path_factory.mktemp("restart")
    server = Server(state, "--stub-seconds", "0.2")
    port = server.url.rpartition(":")[2]
    one = desk(server)
    one.refusals = True
    one.choose("a.png", png(60, 90))
    one.ask("the first")
    name = one.session()
    server.kill()
    one.send("the second")
    one.page.wait_for_selector(".notice:has-text('cannot be reached')")
    server = Server(state, "--stub-seconds", "0.2", "--port", port)
    try:
        one.page.wait_for_selector(".turn:nth-child(2) .facts", timeout=40_000)
        assert one.session() == name
        assert one.answers() == ["Turn 1: the first [mask 1].", "Turn 2: the second [mask 2]."]
        one.page.reload()
        one.page.wait_for_selector(".turn:nth-child(2) .facts")
    finally:
        one.close()
        server.kill()


@pytest.mark.parametrize("what", ["session", "image"])
def test_what_the_server_has_forgotten_is_given_back_without_a_word(desk: Sit, tiny: Server, what: str) -> None:
    one = opened(desk, tiny)
    one.refusals = True
    one.ask("the cup")
    old = one.session()
    image = tiny.http.get(f"/v1/sessions/{old}").json()["image"]["id"]
    assert tiny.http.delete(f"/v1/sessions/{old}").status_code == 204
    if what == "image":
        assert tiny.http.delete(f"/v1/images/{image}").status_code == 204
    one.ask("the table")
    assert one.session() != old
    assert one.sent("POST", "/v1/images") == (2 if what == "image" else 1)
    turns = tiny.http.get(f"/v1/sessions/{one.session()}").json()["turns"]
    assert [turn["prompt"] for turn in turns] == ["the cup", "the table"], "history went along"
    words = one.answers()
    one.page.reload()
    one.page.wait_for_selector(".turn:nth-child(2) .facts")
    assert one.answers() == words and one.page.locator(".layer").count() == 2, "also what the server knows as history only"
    one.page.click("#home")
    one.page.wait_for_selector(".recent")
    assert one.page.locator(".recent").count() == 1, "still one conversation"


def test_a_conversation_that_is_nowhere_is_said_to_be_gone(desk: Sit, stub: Server) -> None:
    one = desk(stub, "/#s=ses_0123456789abcdef")
    one.refusals = True
    one.page.wait_for_selector(".toast")
    assert "kept neither here nor on the server" in one.text(".toast")
    assert one.page.is_visible("#welcome") and "#s=" not in one.page.url


def test_recent_conversations_wait_on_the_first_page_until_deleted(desk: Sit, stub: Server) -> None:
    one = opened(desk, stub)
    one.ask("the cup")
    old = one.session()
    one.page.click("#home")
    one.page.click(".recent")
    one.page.wait_for_selector(".facts")
    assert one.session() == old and one.answers() == ["Turn 1: the cup [mask 1]."]
    one.refusals = True
    one.page.click("#forget")
    one.page.click("#forget-dialog >> text=Keep it")
    assert one.page.is_visible(".turn")
    one.page.click("#forget")
    one.page.click("#forget-dialog .danger")
    one.page.wait_for_selector("#welcome:not([hidden])")
    assert one.page.is_hidden("#recent")
    assert stub.http.get(f"/v1/sessions/{old}").status_code in (404, 410)


def test_a_full_queue_is_waited_for(start: Callable[..., Server], desk: Sit) -> None:
    """Other people fill the queue; the page says so, asks again when it may, and gets its answer."""
    from concurrent.futures import ThreadPoolExecutor

    server = start("--stub-seconds", "1.5", "--max-queue", "1", "--max-batch", "1")
    one = desk(server)
    one.refusals = True
    one.choose("a.png", png(60, 90))
    one.session()
    image = server.upload(png(30, 30))
    with ThreadPoolExecutor(3) as others:
        for k in range(3):
            others.submit(server.ask, image, f"other {k}")
        one.page.wait_for_timeout(200)
        one.send("mine")
        one.page.wait_for_selector(".notice:has-text('Trying again in')")
        assert "more questions than it can take" in one.text(".notice")
        one.page.wait_for_selector(".facts", timeout=40_000)
    assert one.answers() == ["Turn 1: mine [mask 1]."]


def test_a_crash_of_the_engine_is_survived(start: Callable[..., Server], desk: Sit) -> None:
    """The question that kills the engine fails in the end, with words; the next one is answered."""
    server = start("--stub-seconds", "0.1")
    one = desk(server)
    one.refusals = True
    one.choose("a.png", png(60, 90))
    one.session()
    one.send("!crash")
    one.page.wait_for_selector(".notice:has-text('restarted')")
    one.page.click("#stop")
    one.page.wait_for_selector(".reply[data-state=stopped]")
    server.wait_ready()
    one.ask("fine")
    assert one.answers()[-1] == "Turn 1: fine [mask 1]."


def test_faults_are_told_with_what_to_do(start: Callable[..., Server], desk: Sit) -> None:
    server = start("--stub-seconds", "3", "--limit", "deadline_seconds=1", "--limit", "max_turns=1")
    one = desk(server)
    one.refusals = True
    one.choose("a.png", png(60, 90))
    one.session()
    one.send("too slow")
    one.page.wait_for_selector(".problem[data-code=deadline_exceeded]", timeout=30_000)
    assert "Try again" in one.text(".problem") and "Request req_" in one.text(".problem")
    assert one.page.get_attribute(".problem a", "href") == "/docs/errors#deadline_exceeded"


def test_a_conversation_has_an_end_and_goes_on_in_a_new_one(start: Callable[..., Server], desk: Sit) -> None:
    server = start("--stub-seconds", "0.1", "--limit", "max_turns=2")
    one = desk(server)
    one.refusals = True
    one.choose("a.png", png(60, 90))
    one.session()
    one.ask("one")
    one.ask("two")
    one.send("three")
    one.page.wait_for_selector(".problem[data-code=too_many_turns]")
    one.page.click(".problem >> text=New chat on this picture")
    one.until("document.querySelectorAll('.turn').length === 0")
    one.ask("fresh")
    assert one.answers() == ["Turn 1: fresh [mask 1]."]


def test_long_questions_are_counted_before_they_are_sent(desk: Sit, stub: Server) -> None:
    one = desk(stub)
    one.choose("a.png", png(60, 90))
    one.session()
    one.page.fill("#prompt", "🙂" * 1999)
    assert one.text("#counter") == "1999 of 2000 characters" and one.page.is_enabled("#send")
    one.page.fill("#prompt", "🙂" * 2001)
    assert one.page.is_disabled("#send")
    one.page.press("#prompt", "Enter")
    assert one.page.locator(".turn").count() == 0


def test_a_key_is_asked_for_and_kept_in_the_tab(start: Callable[..., Server], desk: Sit) -> None:
    server = start("--stub-seconds", "0.1", keys=KEYS[:1])
    one = desk(server)
    one.refusals = True
    one.page.wait_for_selector("#key-dialog[open]")
    one.page.fill("#key-input", "wrong-wrong-wrong-wrong")
    one.page.click("#key-dialog .primary")
    one.page.wait_for_selector("#key-dialog[open]")
    one.page.fill("#key-input", KEYS[0])
    one.page.click("#key-dialog .primary")
    one.until("document.getElementById('drop-limits').textContent.trim() !== ''")
    one.choose("a.png", png(60, 90))
    one.session()
    one.ask("hello")
    one.page.reload()
    one.page.wait_for_selector(".facts")
    assert KEYS[0] not in one.page.url
    two = desk(server, f"/#key={KEYS[0]}")
    two.until("document.getElementById('drop-limits').textContent.trim() !== ''")
    assert "key" not in two.page.url, "it leaves the address at once"


def test_words_are_never_markup(desk: Sit, stub: Server) -> None:
    """The stub repeats the question, so this is what a model could say."""
    one = desk(stub)
    one.choose("a.png", png(60, 90))
    one.session()
    evil = '<img src=x onerror="document.title=1"> <b>bold</b> [mask 7] [x](http://example.invalid) \u202egnp\u0301 </p><script>alert(1)</script>'
    one.ask(evil)
    assert evil in one.page.locator(".turn .ask p").inner_text()
    assert "<b>bold</b>" in one.answers()[0]
    assert one.page.locator(".turn img, .turn b, .turn a, .turn script").count() == 0
    assert one.page.locator(".chip").count() == 1, "a typed [mask 7] is no mask"
