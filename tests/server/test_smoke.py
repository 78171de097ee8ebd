"""The service in a minute's work of a user: page, picture, question, conversation, stream. The rest of the room is marked `serve`."""

from __future__ import annotations

import json

import httpx2
import pytest
from tests.server.running import EXAMPLES, Server, code_of, events, picture
from tests.test_budgets import HEAVY, loaded_after

from lisaseg import Client
from lisaseg.apps.server.schemas import Answer
from lisaseg.formats.answer import answer_from_dict


def test_the_http_process_never_loads_torch() -> None:
    code = "import lisaseg.apps.server.serve, lisaseg.apps.server.worker, lisaseg.apps.server.stub, lisaseg.client; import lisaseg; lisaseg.Client"
    assert not loaded_after(code).intersection(HEAVY)


def test_page_and_documents_come_without_anything_from_elsewhere(stub: Server) -> None:
    for path in ("/", "/docs", "/docs/errors", "/docs/style.css"):
        response = stub.http.get(path)
        assert response.status_code == 200
        assert "http://" not in response.text.replace("http://www.w3.org/", "").replace("http://127.0.0.1", "") or path == "/"
        assert "default-src 'none'" in response.headers["content-security-policy"] and "unsafe" not in response.headers["content-security-policy"]
    assert stub.http.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert stub.http.get("/healthz").json() == {"status": "ok"} and stub.http.get("/readyz").json()["status"] == "ready"


def test_a_picture_is_sent_once_and_asked_often(stub: Server) -> None:
    data = picture(1)
    image_id = stub.upload(data)
    assert stub.upload(data) == image_id
    facts = stub.http.get(f"/v1/images/{image_id}").json()
    assert (facts["width"], facts["height"], facts["format"]) == (32, 24, "png")
    assert stub.http.get(f"/v1/images/{image_id}/content").content == data
    answer = stub.ask(image_id, "the cup").json()
    Answer.model_validate(answer, strict=False)
    assert answer["text"] == "Turn 1: the cup [mask 1]." and answer["image"] == {"id": image_id, "width": 32, "height": 24}
    assert answer_from_dict(answer).segments[0].mask.shape == (24, 32)
    assert stub.ask(image_id, "the cup", mask_format="none").json()["segments"][0]["mask"] is None


def test_a_conversation_with_a_stream_a_retry_and_an_undo(stub: Server) -> None:
    session = stub.http.post("/v1/sessions", json={"image_id": stub.upload(picture(2))}).json()
    path = f"/v1/sessions/{session['id']}"
    first = stub.http.post(f"{path}/messages", json={"prompt": "one"}).json()
    with stub.http.stream("POST", f"{path}/messages", json={"prompt": "two", "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        got = events(response)
    assert [name for name, _ in got][:2] == ["start", "delta"] and [name for name, _ in got][-2:] == ["segment", "done"]
    text = ""
    for name, data in got:
        text = text + data["text"] if name == "delta" else data["text"] if name == "replace" else text
    assert text == got[-1][1]["text"] == "Turn 2: two [mask 1]."
    again = stub.http.post(f"{path}/retry", json={"mode": "segment"}).json()
    assert again["text"] == "Turn 2: two [mask 1]." and again["mode"] == "segment"
    turns = stub.http.get(path).json()["turns"]
    assert [turn["prompt"] for turn in turns] == ["one", "two"] and turns[0]["answer"] == first and turns[1]["answer"] == again
    assert stub.http.post(f"{path}/undo").json() == {"removed": turns[1], "turns_left": 1}
    assert stub.http.post(f"{path}/messages", json={"prompt": "three"}).json()["text"].startswith("Turn 2")
    assert stub.http.delete(path).status_code == 204
    assert code_of(stub.http.get(path)) == "session_expired"


def test_the_python_client_answers_like_a_model(stub: Server) -> None:
    with Client(stub.url) as model:
        assert model.name == "lisa-tiny"
        sofar: list[str] = []
        chat = model.chat(EXAMPLES / "cat.jpg")
        answer = chat.ask("the cat", on_text=sofar.append)
        assert answer.masks.shape == (1, *answer.image_size) and answer.image is not None and sofar[-1] == answer.text
        assert chat.ask("its ear").raw_text.startswith("Turn 2") and chat.undo() is not None
        assert chat.ask("its tail").raw_text.startswith("Turn 2")
        assert [a.raw_text for a in model.ask_batch([(EXAMPLES / "cat.jpg", f"q{k}") for k in range(4)])] == [
            f"Turn 1: q{k} [SEG]." for k in range(4)
        ]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/segment", b"{", "invalid_json"),
        ("/v1/segment", b"[]", "invalid_json"),
        ("/v1/segment", b'{"prompt": "x", "image_id": "img_x", "max_new_tokens": NaN}', "invalid_json"),
        ("/v1/segment", b'{"prompt": "x"}', "missing_image"),
        ("/v1/segment", b'{"prompt": "x", "image_id": "img_0"}', "not_found"),
        ("/v1/segment", b'{"prompt": "x", "image_id": "img_0", "colour": 1}', "invalid_request"),
        ("/v1/segment", b'{"prompt": "x", "image": {"type": "base64", "value": "data:image/png"}}', "invalid_base64"),
        ("/v1/segment", b'{"prompt": "x", "image": {"type": "url", "value": "https://example.invalid/a.png"}}', "url_input_disabled"),
        ("/v1/segment", b"[" * 100_000, "invalid_json"),
        ("/v1/sessions", b'{"image_id": "../../x"}', "invalid_request"),
        ("/v1/nothing", b"{}", "not_found"),
    ],
)
def test_bad_requests_get_their_code(stub: Server, path: str, body: bytes, code: str) -> None:
    assert code_of(stub.http.post(path, content=body, headers={"Content-Type": "application/json"})) == code


def test_the_log_holds_no_content(stub: Server) -> None:
    image_id = stub.upload(picture(3))
    assert stub.ask(image_id, "my secret question").status_code == 200
    assert httpx2.get(f"{stub.url}/healthz", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    log = "\n".join(stub.lines)
    assert "secret question" not in log and image_id not in log
    assert all(json.loads(line)["event"] for line in stub.lines[1:])
